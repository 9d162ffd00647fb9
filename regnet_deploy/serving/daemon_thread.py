"""Runs functions in daemon threads, which the server does not wait for when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from regnet_deploy.serving.scheduling import restore_default_scheduling

T = TypeVar("T")

_NAME = "daemon-work"


async def run_in_daemon_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function that may take long or never return in a daemon thread.

    Unlike a thread of an executor, it is waited for neither at the end of the event loop nor at the end of the
    interpreter. A call that is cancelled runs on, and its result is dropped.

    Args:
        function: to run.
        arguments: its arguments.

    Raises:
        RuntimeError: no more threads can be started.
        Exception: what the function raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # cancelled: nobody waits any more
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            restore_default_scheduling()  # also for the threads that the function starts
            result = function(*arguments)
        except StopIteration as raised:  # a future does not accept it
            error = RuntimeError(f"StopIteration {raised}")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=_NAME, daemon=True).start()
    return await future


def exit_if_threads_remain(code: int) -> None:
    """End the process at once if a function of :func:`run_in_daemon_thread` still runs; output is flushed.

    The interpreter may abort at its end when a thread returns from native code.
    """
    if any(thread.name == _NAME for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
