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
    running.process.stdin.write(json.dumps(wish) + "\n")
    running.process.stdin.flush()
    line = running.process.stdout.readline()
    if not line:
        raise RuntimeError(f"{running.process.args} ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


@dataclass(frozen=True)
class Request:
    """What a load sends.

    Attributes:
        path: of HTTP.
        headers: of HTTP.
        bodies: files, sent in turns.
        least: bytes that an answer has at least.
        skip: bytes at the start of each file that are not sent.
        logits: of the bodies, which answers end with in FP32; empty where they are not looked at.
        grpc: in place of path and headers: ``kind``, ``shape`` and ``input`` of `serving_grpc_load.py`.
    """

    path: str
    headers: dict[str, str]
    bodies: Sequence[Path]
    least: int = 1
    skip: int = 0
    logits: Sequence[Sequence[float]] = ()
    grpc: dict[str, Any] | None = None


def load(running: Running, request: Request, concurrency: int, seconds: float, url: str = "") -> dict[str, Any]:
    """Load a server, at ``url`` where it has several, from another process.

    Returns:
        What `serving_load.py` says, and of server and client the ms of CPU for each request.

    Raises:
        TooSlow: nothing was answered.
        RuntimeError: requests were not answered rightly.
    """
    wish = {
        "url": url or running.url,
        "path": request.path,
        "headers": request.headers,
        "bodies": [str(body) for body in request.bodies],
        "least": request.least,
        "skip": request.skip,
        "logits": request.logits,
        "concurrency": concurrency,
        "warmup": WARMUP_S,
        "seconds": seconds,
        **(request.grpc or {}),
    }
    program = "serving_load.py" if request.grpc is None else "serving_grpc_load.py"
    before, start = running.cpu_s(), time.monotonic()
    command = [sys.executable, str(HERE / program)]
    client = subprocess.run(command, input=json.dumps(wish), capture_output=True, text=True)
    if client.returncode:
        raise RuntimeError(f"{running.url}: {client.stderr[-2000:]}")
    took, used = time.monotonic() - start, running.cpu_s() - before
    answer: dict[str, Any] = json.loads(client.stdout)
    if not answer["bad"] and not answer["rate"]:
        raise TooSlow(f"{running.url}{request.path} answered nothing in {seconds:g} s")
    if answer["bad"]:
        raise RuntimeError(f"{running.url}{request.path}: {answer['bad']} requests were not answered rightly")
    loaded_s = min(took, WARMUP_S + seconds)
    answer["server_cpu_ms"] = 1000 * used / (answer["rate"] * loaded_s)
    answer["client_cpu_ms"] = 1000 * answer["client_cores"] / answer["rate"]
    return answer
