"""Threads that nobody waits for."""

import asyncio
import subprocess
import sys
import threading

import pytest

from regnet_deploy.serving.daemon_thread import run_in_daemon_thread


def test_what_the_function_returns_or_raises_comes_back():
    async def work() -> None:
        assert await run_in_daemon_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await run_in_daemon_thread(divmod, 7, 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run_in_daemon_thread(next, iter(()))

    asyncio.run(work())


def test_one_that_is_cancelled_leaves_its_thread_to_itself():
    gate, ended = threading.Event(), threading.Event()

    def slow() -> None:
        gate.wait(30)
        ended.set()

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(run_in_daemon_thread(slow), 0.01)
        gate.set()
        while not ended.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)  # what came of it finds nobody, and is no error

    asyncio.run(work())


def test_neither_the_loop_nor_the_interpreter_waits_for_what_hangs():
    program = """
import asyncio, threading
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
async def work():
    try:
        await asyncio.wait_for(run_in_daemon_thread(threading.Event().wait), 0.01)
    except asyncio.TimeoutError:
        print("left")
asyncio.run(work())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_a_process_that_ends_beside_work_in_native_code_ends_with_its_exit_code():
    code = """
import asyncio, sys, zlib
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread, exit_if_threads_remain
def work():
    while True:
        zlib.compress(b"x" * 100_000)  # comes back for the interpreter again and again
async def main():
    task = asyncio.ensure_future(run_in_daemon_thread(work))
    await asyncio.sleep(0.05)
    task.cancel()
asyncio.run(main())
print("said")
exit_if_threads_remain(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "said\n", "")
