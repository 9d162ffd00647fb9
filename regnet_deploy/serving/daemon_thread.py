"""Work off the event loop that nobody waits for when the server ends."""

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
    """Run a function in a thread of its own, for what may take long or never come back.

    Unlike the threads of an executor it is waited for neither when the loop ends nor when the interpreter does. One
    that is cancelled runs on, and what comes of it is dropped.

    Args:
        function: to run.
        arguments: of it.

    Raises:
        RuntimeError: the system starts no more threads.
        Exception: what the function raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # cancelled: whoever waited has gone
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            restore_default_scheduling()  # as do the threads that what is opened here starts
            result = function(*arguments)
        except StopIteration as raised:  # which a future does not take
            error = RuntimeError(f"StopIteration {raised}")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=_NAME, daemon=True).start()
    return await future


def exit_if_threads_remain(code: int) -> None:
    """End the process now, where work of :func:`in_daemon` is still done; what is written is flushed.

    An interpreter that is taken down under a thread that comes back from native code may abort.
    """
    if any(thread.name == _NAME for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
