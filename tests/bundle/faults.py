"""Lets a function fail, or its process die, at any of its system calls."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import Any

#: The calls with which files are written, replaced, deleted and locked.
CALLS = {
    os: ("open", "write", "fchmod", "fsync", "close", "replace", "rename", "unlink", "listdir", "mkdir", "rmdir"),
    fcntl: ("flock",),
}
#: Exit code of a process whose function ran to its end; another one with an error.
DONE, FAILED = 0, 9
#: Writes what a process has to say.
Say = Callable[[str], None]


def run_with_fault(work: Callable[[], Any], fault: Callable[[int, str, Callable[[], Any]], Any]) -> tuple[int, str]:
    """Run a function in a process of its own, in which ``fault`` makes each system call.

    Args:
        work: the function.
        fault: gets the number of the call, from 1, its name and the call itself, and returns the result of the call.

    Returns:
        The exit code of the process (negative: killed by a signal) and the text of the error that ``work`` raised.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        close, write, leave = os.close, os.write, os._exit
        close(reader)
        code = DONE
        try:
            _install(fault)
            work()
        except BaseException as error:
            code = FAILED
            write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        leave(code)
    os.close(writer)
    said = b""
    while part := os.read(reader, 4096):
        said += part
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()


def _install(fault: Callable[[int, str, Callable[[], Any]], Any]) -> None:
    count = 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            return fault(count, name, lambda: real(*arguments, **more))

        return call

    for module, names in CALLS.items():
        for name in names:
            setattr(module, name, wrapped(name, getattr(module, name)))


def kill_at(number: int) -> Callable[..., Any]:
    """Return a fault: the process is killed just before this call."""

    def fault(count: int, name: str, call: Callable[[], Any]) -> Any:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return call()

    return fault


def interrupt_after(number: int) -> Callable[..., Any]:
    """Return a fault: Ctrl-C comes just behind this call."""

    def fault(count: int, name: str, call: Callable[[], Any]) -> Any:
        result = call()
        if count == number:
            raise KeyboardInterrupt
        return result

    return fault


def fail_at(number: int, code: int, *, for_good: bool = False) -> Callable[..., Any]:
    """Return a fault: this call fails; with ``for_good`` also all later ones that need space on the disk."""

    def fault(count: int, name: str, call: Callable[[], Any]) -> Any:
        if name not in ("close", "listdir") and (count == number or (for_good and count > number and name == "write")):
            raise OSError(code, os.strerror(code))
        return call()

    return fault


def unsupported(names: tuple[str, ...], code: int) -> Callable[..., Any]:
    """Return a fault: the file system does not have these calls."""

    def fault(count: int, name: str, call: Callable[[], Any]) -> Any:
        if name in names:
            raise OSError(code, os.strerror(code))
        return call()

    return fault


def number_of_calls(work: Callable[[], Any]) -> int:
    """Return the number of system calls of a function, which is run once, in a process of its own."""
    calls: list[int] = []

    def count(number: int, name: str, call: Callable[[], Any]) -> Any:
        calls[:] = [number]
        return call()

    def counted() -> None:
        work()
        raise RuntimeError(str(calls[0]))

    code, said = run_with_fault(counted, count)
    assert code == FAILED, said
    assert said.startswith("RuntimeError: "), said
    return int(said.split()[1])


#: What a full disk, a defective one and a file system without a call answer.
FULL, DEFECT = errno.ENOSPC, errno.EIO
