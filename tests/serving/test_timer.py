"""A time limit is told from somebody else's cancelling."""

import asyncio

import pytest

from regnet_deploy.serving.timer import Timer


def test_what_is_done_in_time_is_not_disturbed():
    async def work() -> str:
        with Timer(30):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    assert asyncio.run(work()) == "done"


def test_what_takes_too_long_is_a_timeout_and_the_task_goes_on():
    async def work() -> str:
        with pytest.raises(TimeoutError), Timer(0.01):
            await asyncio.sleep(30)
        await asyncio.sleep(0)
        return "done"

    assert asyncio.run(work()) == "done"


def test_a_task_that_is_cancelled_by_others_is_cancelled():
    async def work() -> None:
        with Timer(30):
            await asyncio.sleep(30)

    async def cancel() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


def test_what_is_raised_inside_comes_out():
    async def work() -> None:
        with Timer(30):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(work())


def test_it_is_for_a_task():
    with pytest.raises(RuntimeError), Timer(1):
        pass
