"""Runs `serve` in a process of its own while it is measured."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from regnet_deploy.errors import ServerError

_START_S, _END_S = 300.0, 15.0

#: Runs the program. On Linux the kernel sends it SIGTERM when the thread that started it ends, also where this process
#: is killed and cannot end it itself.
_LAUNCHER = """
import ctypes, os, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != parent:
        sys.exit("the process that started this server is gone")
from regnet_deploy.cli.main import run
run(sys.argv[1:])
"""


@contextlib.contextmanager
def running_server(bundle: str | Path, options: Sequence[str], start_s: float = _START_S) -> Iterator[str]:
    """Run a server on a free port of this machine while the context is open; the value is its URL.

    The server gets no environment variables ``REGNET_DEPLOY_...`` and no Ctrl-C of the terminal. This process ends it;
    on Linux the kernel does where this process is killed.

    Args:
        bundle: the bundle to serve.
        options: options of `serve` beside the port.
        start_s: seconds within which it must be ready.

    Raises:
        ServerError: it does not start; the message is its own.
    """
    command = [sys.executable, "-c", _LAUNCHER, str(os.getpid())]
    command += ["serve", str(bundle), "--port", "0", "--json", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGNET_DEPLOY_")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            yield _url(process, errors, start_s)
        finally:
            _end(process)


def _url(process: subprocess.Popen[bytes], errors: IO[str], start_s: float) -> str:
    assert process.stdout is not None
    line, until = b"", time.monotonic() + start_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                raise ServerError(f"the server was not ready after {start_s:g} s")
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its stdout and runs on
                    process.wait(_END_S)
                raise ServerError(f"the server did not start: {_last_line(errors) or _state(process)}")
            line += part
    url: str = json.loads(line)["url"]
    return url


def _state(process: subprocess.Popen[bytes]) -> str:
    return "it printed no address" if process.returncode is None else f"exit code {process.returncode}"


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return lines[-1].removeprefix("regnet-deploy: ") if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        except BaseException:  # a second Ctrl-C
            process.kill()
            process.wait()
            raise
    if process.stdout is not None:
        process.stdout.close()
