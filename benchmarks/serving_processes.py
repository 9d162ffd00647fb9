"""Servers and loads as processes, and the seconds of CPU that they take."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Seconds in which a server must have said where it listens.
START_S = 90.0
#: Seconds of load that are not measured, before those that are.
WARMUP_S = 0.5


class TooSlow(Exception):
    """No request was answered in the time of a load."""


@dataclass(frozen=True)
class Running:
    """A process that answers lines, or requests at ``url``."""

    process: subprocess.Popen[str]
    url: str
    facts: dict[str, Any]

    def cpu_s(self) -> float:
        """Return the seconds of CPU that it and the processes below it have taken."""
        return sum(cpu_seconds(pid) for pid in family(self.process.pid))


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def began(pid: int) -> str | None:
    """Return when a process began, in the words of the system; None of one that is gone."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return None


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process has taken; 0 of one that is gone."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@contextlib.contextmanager
def started(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Running]:
    """Start a process and wait for its first line: a URL, or JSON with ``url``.

    Raises:
        RuntimeError: it ended, or said nothing in time.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    lines: queue.Queue[str] = queue.Queue()
    thread = threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True)
    thread.start()
    try:
        line = lines.get(timeout=START_S).strip()
        if not line:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.wait()}")
        facts = json.loads(line) if line.startswith("{") else {"url": line}
        yield Running(process, facts["url"], facts)
    except queue.Empty:
        raise RuntimeError(f"{' '.join(command)} said nothing in {START_S:g} s") from None
    finally:
        below = {pid: began(pid) for pid in family(process.pid)[1:]}
        for pid in (process.pid, *below):  # those that are stopped do not hear
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid, when in below.items():  # what the process left behind, if it is still that
            if when is not None and began(pid) == when:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        thread.join(1)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def signal_all(running: Running, number: signal.Signals) -> None:
    """Send a signal to a process and all below it: servers that are not measured are stopped, for some poll."""
    for pid in family(running.process.pid):
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def ask(running: Running, wish: dict[str, Any]) -> dict[str, Any]:
    """Send a line of JSON to a process and return the line that it answers.

    Raises:
        RuntimeError: it has ended.
    """
    return ask_all([running], wish)[0]


def ask_all(several: Sequence[Running], wish: dict[str, Any]) -> list[dict[str, Any]]:
    """Send the same line to processes, which work on it at the same time, and return their answers.

    Raises:
        RuntimeError: one has ended.
    """
    for running in several:
        running.process.stdin.write(json.dumps(wish) + "\n")
        running.process.stdin.flush()
    lines = [running.process.stdout.readline() for running in several]
    if not all(lines):
        raise RuntimeError(f"{several[lines.index('')].process.args} ended")
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Request:
    """What a load sends.

    Attributes:
        path: of HTTP.
        headers: of HTTP.
        bodies: files, sent in turns.
        least: bytes that an answer has at least.
        skip: bytes at the start of each file that are not sent.
        logits: of the bodies, which every answer is held against; empty where answers are not looked at.
        answers: how logits are answered: see :func:`serving_answers.checker`.
        grpc: in place of path and headers: ``kind``, ``shape`` and ``input`` of `serving_grpc_load.py`.
    """

    path: str
    headers: dict[str, str]
    bodies: Sequence[Path]
    least: int = 1
    skip: int = 0
    logits: Sequence[Sequence[float]] = ()
    answers: str = "logits"
    grpc: dict[str, Any] | None = None

    def wish(self, url: str) -> dict[str, Any]:
        """Return what a load is told."""
        return {
            "url": url,
            "path": self.path,
            "headers": self.headers,
            "bodies": [str(body) for body in self.bodies],
            "least": self.least,
            "skip": self.skip,
            "logits": self.logits,
            "answers": self.answers,
            "warmup": WARMUP_S,
            **(self.grpc or {}),
        }


def load(running: Running, request: Request, concurrency: int, seconds: float, url: str = "") -> dict[str, Any]:
    """Load a server, at ``url`` where it has several, from another process.

    Returns:
        What `serving_load.py` says, and of server and client the ms of CPU for each request.

    Raises:
        TooSlow: nothing was answered.
        RuntimeError: requests were not answered rightly.
    """
    program = "serving_load.py" if request.grpc is None else "serving_grpc_load.py"
    before, start = running.cpu_s(), time.monotonic()
    answer = _loaded(program, {**request.wish(url or running.url), "concurrency": concurrency, "seconds": seconds})
    took, used = time.monotonic() - start, running.cpu_s() - before
    if not answer["bad"] and not answer["rate"]:
        raise TooSlow(f"{running.url}{request.path} answered nothing in {seconds:g} s")
    if answer["bad"]:
        raise RuntimeError(f"{running.url}{request.path}: {answer['bad']} requests were not answered rightly")
    loaded_s = min(took, WARMUP_S + seconds)
    answer["server_cpu_ms"] = 1000 * used / (answer["rate"] * loaded_s)
    answer["client_cpu_ms"] = 1000 * answer["client_cores"] / answer["rate"]
    return answer


def flood(running: Running, request: Request, rate: float, seconds: float) -> dict[str, Any]:
    """Send so many requests a second, answered or not; returns what :func:`serving_load.flooded` says."""
    return _loaded("serving_load.py", {**request.wish(running.url), "rate": rate, "seconds": seconds})


def _loaded(program: str, wish: dict[str, Any]) -> dict[str, Any]:
    client = subprocess.run(
        [sys.executable, str(HERE / program)], input=json.dumps(wish), capture_output=True, text=True
    )
    if client.returncode:
        raise RuntimeError(f"{wish['url']}: {client.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(client.stdout)
    return answer
