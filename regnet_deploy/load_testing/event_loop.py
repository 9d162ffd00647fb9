"""One piece of asynchronous work on an event loop of its own, uvloop's where it is installed."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_on_event_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run work to its end.

    Raises:
        KeyboardInterrupt: on SIGINT; the work was cancelled and has cleaned up.
    """
    loop = _new_loop()
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        task = loop.create_task(work())
        if main:
            loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    finally:
        if main:
            loop.remove_signal_handler(signal.SIGINT)
        loop.run_until_complete(_end_others())
        loop.close()
        if main:
            # uvloop puts its own back, which does nothing any more: nobody could interrupt what comes after.
            signal.signal(signal.SIGINT, before)


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # closed transports let go of their sockets


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
