"""The alarm of the generator."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from regnet_deploy.load_testing import precise_timer
from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.precise_timer import PreciseTimer


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_it_rings_once_for_each_time_it_is_set_and_never_early(platform: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precise_timer.sys, "platform", platform)
    early, rung = [], []

    async def main() -> None:
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ring() -> None:
            rung.append(time.monotonic())
            early.append(due[-1] - rung[-1])
            if len(rung) == 20:
                finished.set_result(None)
            else:
                due.append(rung[-1] + (0.004 if len(rung) % 2 else -1.0))  # what is past rings at once
                clock.set(due[-1])

        clock = PreciseTimer(asyncio.get_running_loop(), ring)
        due = [time.monotonic() + 0.004]
        clock.set(due[-1])
        await finished
        clock.set(time.monotonic())
        clock.close()
        await asyncio.sleep(0.01)

    run_on_event_loop(main)
    assert len(rung) == 20
    assert max(early) < 0.002  # of the loop's own timers


def test_work_gives_its_result_and_its_error_and_leaves_nothing_running():
    left: list[Any] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            left.append("ended")

    async def work() -> int:
        left.append(asyncio.get_running_loop().create_task(forever()))
        await asyncio.sleep(0)
        return 7

    async def fail() -> None:
        raise OSError("no")

    assert run_on_event_loop(work) == 7
    assert left[1:] == ["ended"]
    with pytest.raises(OSError, match="no"):
        run_on_event_loop(fail)
