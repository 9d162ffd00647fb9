"""A time limit is told from somebody else's cancelling; many of them share one timer."""

import asyncio

import pytest

from regnet_deploy.serving.timeouts import Timeouts, Timer


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


def test_timeouts_come_in_their_order_but_for_those_taken_back():
    async def work() -> list[str]:
        told: list[str] = []
        timeouts = Timeouts()
        keys = {name: timeouts.add(seconds, lambda name=name: told.append(name)) for name, seconds in TIMES.items()}
        timeouts.discard(keys["taken back"])
        timeouts.discard(keys["taken back"])
        await asyncio.sleep(0.2)
        return told

    assert asyncio.run(work()) == ["first", "second", "third"]


TIMES = {"third": 0.09, "far": 1000.0, "first": 0.01, "taken back": 0.02, "second": 0.05}


def test_a_timeout_may_add_others_and_take_them_back():
    async def work() -> list[str]:
        told: list[str] = []
        timeouts = Timeouts()

        def first() -> None:
            told.append("first")
            timeouts.discard(second)
            timeouts.add(0.01, lambda: told.append("third"))

        timeouts.add(0.01, first)
        second = timeouts.add(0.01, lambda: told.append("second"))
        await asyncio.sleep(0.1)
        return told

    assert asyncio.run(work()) == ["first", "third"]


def test_however_many_there_are_the_loop_has_one_timer():
    async def work() -> int:
        loop, timeouts = asyncio.get_running_loop(), Timeouts()
        for i in range(100):
            timeouts.discard(timeouts.add(30 + i, lambda: None))
            timeouts.add(30 + i, lambda: None)
        return sum(not handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]

    assert asyncio.run(work()) == 1


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_it_does_not_look_again_and_again_for_what_is_about_to_come(loop: str):
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None

    async def work() -> int:
        told, looks = asyncio.Event(), 0

        class Counted(Timeouts):
            def _look(self) -> None:
                nonlocal looks
                looks += 1
                super()._look()

        counted = Counted()
        for i in range(20):
            counted.add(0.0502 + i * 0.00031, told.set if i == 19 else lambda: None)
        await told.wait()
        return looks

    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(work()) <= 20


def test_one_that_fails_does_not_keep_the_others():
    async def work() -> list[str]:
        told: list[str] = []
        errors: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        timeouts = Timeouts()
        timeouts.add(0.01, lambda: 1 / 0)
        timeouts.add(0.01, lambda: told.append("second"))
        timeouts.add(0.03, lambda: told.append("third"))
        await asyncio.sleep(0.1)
        assert len(errors) == 1
        return told

    assert asyncio.run(work()) == ["second", "third"]
