"""Messages that arrive, that are slow and that never come."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.message_limits import MessageLimits


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


async def at_once() -> bytes:
    return b"message"


def silent(arriving: MessageLimits, peer: str, count: int = 1) -> list["asyncio.Task[bytes]"]:
    return [asyncio.create_task(arriving.read(peer, never, 60)) for _ in range(count)]


def after(work: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await asyncio.wait_for(asyncio.ensure_future(work()), 30)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(all_of_it())


def test_silent_streams_of_one_connection_leave_places_to_others():
    async def work() -> None:
        arriving = MessageLimits(4, 3600.0, per_peer=3, waiting_per_peer=10)
        streams = silent(arriving, "a", 8)
        await asyncio.sleep(0)
        for _ in range(10):
            assert await arriving.read("b", at_once, 60) == b"message"
        assert not any(stream.done() for stream in streams)

    after(work)


def test_who_keeps_others_waiting_goes_after_a_moment_the_one_with_most_first():
    async def work() -> None:
        arriving = MessageLimits(4, 0.05, per_peer=3, waiting_per_peer=10)
        (other,) = silent(arriving, "a")
        most = silent(arriving, "b", 3)
        await asyncio.sleep(0.1)
        assert not any(stream.done() for stream in (other, *most))  # nobody waits
        assert await arriving.read("c", at_once, 60) == b"message"
        with pytest.raises(RequestError, match=r"more than 0.05 s while others waited") as refused:
            await most[0]
        assert refused.value.status == 503
        assert not any(stream.done() for stream in (other, *most[1:]))
        assert await arriving.read("b", at_once, 60) == b"message"

    after(work)


def test_a_queue_of_silent_streams_is_not_stood_in_by_others():
    async def work() -> None:
        arriving = MessageLimits(2, 0.02, per_peer=2, waiting_per_peer=200)
        streams = silent(arriving, "a", 200)
        await asyncio.sleep(0)
        assert await arriving.read("b", at_once, 60) == b"message"
        assert sum(stream.done() for stream in streams) < 100

    after(work)


def test_without_a_moment_of_grace_nobody_waits():
    async def work() -> None:
        arriving = MessageLimits(2, 0.0, per_peer=2, waiting_per_peer=1)
        streams = silent(arriving, "a", 40)
        await asyncio.sleep(0)
        turns = []

        async def now() -> bytes:
            turns.append("read")
            return b"message"

        reading = asyncio.create_task(arriving.read("a", now, 60))
        await asyncio.sleep(0)
        assert turns == ["read"]
        assert await reading == b"message"
        await asyncio.sleep(0.01)
        assert sum(not stream.done() for stream in streams) == 1

    after(work)


def test_what_does_not_arrive_in_time_is_said_and_leaves_its_place():
    async def work() -> None:
        arriving = MessageLimits(1, 3600.0, per_peer=1, waiting_per_peer=10)
        for peer in ("a", "b"):
            with pytest.raises(RequestError, match=r"did not arrive within 0.02 s") as refused:
                await arriving.read(peer, never, 0.02)
            assert refused.value.status == 408
        gone = silent(arriving, "a", 2)
        await asyncio.sleep(0)
        gone[1].cancel()  # while it waits
        gone[0].cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert await arriving.read("a", at_once, 60) == b"message"

    after(work)


def test_a_connection_has_so_many_that_wait():
    async def work() -> None:
        arriving = MessageLimits(1, 3600.0, per_peer=1, waiting_per_peer=2)
        silent(arriving, "a", 3)
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="of this connection") as refused:
            await arriving.read("a", at_once, 60)
        assert refused.value.status == 503

    after(work)
