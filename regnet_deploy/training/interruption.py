"""SIGINT and SIGTERM while a run trains: a checkpoint is written before the run ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was ended by a signal, after its checkpoint was written."""


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """Explain an interruption while the context is open: the run has not begun, and the bundle is as it was."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the training had not begun and the bundle is unchanged: repeat the command to begin it"
        ) from None


@contextlib.contextmanager
def stop_signals(
    repeated: bool = False, said: Callable[[str], None] = lambda _: None, also: Callable[[], bool] = bool
) -> Iterator[Callable[[], bool]]:
    """Return a function that tells whether SIGINT or SIGTERM has arrived since the context was opened, or ``also``.

    The second signal has its usual effect at once, unless signals may come ``repeated``: a launcher of several
    processes passes on to them what the machine has sent to all, and kills those that do not end in time. Signals are
    handled in the main thread only, and those that the process ignores (as under nohup) remain ignored.

    Args:
        repeated: whether the signals may come more than once.
        said: called by another thread with the name of the first signal when it arrives, also while a long operation
            of PyTorch keeps Python from handling it.
        also: another way to ask for the end.
    """
    arrived: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        arrived.append(number)
        if not repeated:
            restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: it was not installed from Python
                before[number] = handler
                signal.signal(number, handle)
    try:
        with _first_arrival(before, said) if before else contextlib.nullcontext():
            yield lambda: bool(arrived) or also()
    finally:
        if repeated or not arrived:
            restore()


@contextlib.contextmanager
def _first_arrival(numbers: Iterable[int], said: Callable[[str], None]) -> Iterator[None]:
    """Call the function with the name of the first of these signals, at the time at which the process receives it."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        told = False
        while received := reader.recv(64):
            number = next((each for each in received if each in numbers), None)
            if number is not None and not told:
                told = True
                said(signal.Signals(number).name)

    listener = threading.Thread(target=listen, name="stop-signals", daemon=True)
    listener.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        # Ends the thread. Closing the writer would not: processes that were forked meanwhile have copies of it.
        reader.shutdown(socket.SHUT_RDWR)
        listener.join()
        reader.close()
        writer.close()
