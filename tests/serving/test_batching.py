"""The queue and its executors: what runs together, in which order, and what happens where something goes wrong."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from regnet_deploy.serving.batching import Batcher, Batching, BatchResult
from regnet_deploy.serving.errors import RequestError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def answer(rows: np.ndarray) -> np.ndarray:
    """The logits of images: what they are, and twice that."""
    return np.stack([rows[:, 0], rows[:, 0] * 2], axis=1).astype(np.float32)


class Executor:
    """Runs batches when it is let; remembers them."""

    def __init__(self, open_: bool = True) -> None:
        self.batches: list[list[list[float]]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.error: Callable[[list[list[float]]], BaseException | None] = lambda parts: None
        if open_:
            self.gate.set()

    def __call__(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        rows = [part[:, 0].tolist() for part in parts]
        self.batches.append(rows)
        self.entered.release()
        assert self.gate.wait(30)
        error = self.error(rows)
        if error is not None:
            raise error
        return answer(np.concatenate(parts))

    async def begins(self) -> None:
        """Wait until one more batch has begun."""
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.acquire, True, 30)


def images(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@contextlib.asynccontextmanager
async def batching(*executors: Executor, **settings: Any) -> AsyncIterator[Batcher]:
    """A batcher that must be empty in the end, and whose threads then end."""
    settings = {"executors": len(executors), "batch": 4, **settings}
    batcher = Batcher(executors, Batching(**settings))
    threads = list(batcher._threads)
    try:
        yield batcher
    finally:
        for executor in executors:
            executor.gate.set()
        batcher.close()
        loop = asyncio.get_running_loop()
        for thread in threads:
            await loop.run_in_executor(None, thread.join, 30)
        await until(lambda: batcher.running == 0)
        assert (batcher.depth, batcher.running) == (0, 0)
        assert not any(thread.is_alive() for thread in threads)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def refusal(future: "asyncio.Future[BatchResult]") -> RequestError:
    with pytest.raises(RequestError) as error:
        await future
    return error.value


def values_of(ran: BatchResult) -> list[float]:
    np.testing.assert_array_equal(ran.logits[:, 1], ran.logits[:, 0] * 2)
    return ran.logits[:, 0].tolist()


async def test_a_lone_request_leaves_at_once():
    executor = Executor()
    async with batching(executor) as batcher:
        ran = await batcher.run(images(1, 2))
        assert values_of(ran) == [1, 2]
        assert ran.batch == 2
        assert min(ran.queue_s, ran.inference_s) >= 0


async def test_what_came_while_a_batch_ran_leaves_together_in_its_order():
    executor = Executor(open_=False)
    async with batching(executor) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        assert (batcher.depth, batcher.running) == (0, 1)
        others = [batcher.run(images(i)) for i in range(1, 7)]
        assert (batcher.depth, batcher.running) == (6, 1)
        executor.gate.set()
        rans = await asyncio.gather(first, *others)
        assert [values_of(ran) for ran in rans] == [[i] for i in range(7)]
        assert executor.batches == [[[0]], [[1], [2], [3], [4]], [[5], [6]]]
        assert [ran.batch for ran in rans] == [1, 4, 4, 4, 4, 2, 2]


async def test_no_more_images_run_together_than_a_batch_has_and_nobody_is_overtaken():
    executor = Executor(open_=False)
    async with batching(executor) as batcher:
        futures = [batcher.run(images(0))]
        await executor.begins()
        futures += [batcher.run(images(*values)) for values in ((1, 2, 3), (4, 5), (6,), (7,), (8,))]
        executor.gate.set()
        await asyncio.gather(*futures)
        # Request 6 would fit beside the first three: it does not go before 4 and 5, which came before it.
        assert executor.batches[1:] == [[[1, 2, 3]], [[4, 5], [6], [7]], [[8]]]


async def test_a_request_larger_than_a_batch_runs_alone():
    executor = Executor(open_=False)
    async with batching(executor) as batcher:
        futures = [batcher.run(images(0))]
        await executor.begins()
        futures += [batcher.run(images(*values)) for values in ((1,), (2, 3, 4, 5, 6, 7), (8,))]
        executor.gate.set()
        rans = await asyncio.gather(*futures)
        assert executor.batches[1:] == [[[1]], [[2, 3, 4, 5, 6, 7]], [[8]]]
        assert values_of(rans[2]) == [2, 3, 4, 5, 6, 7]


async def test_priority_goes_first_and_within_one_who_came_first():
    executor = Executor(open_=False)
    async with batching(executor, batch=1) as batcher:
        futures = [batcher.run(images(0))]
        await executor.begins()
        for value, priority in ((1, 3), (2, 0), (3, 1), (4, 2), (5, 1), (6, 3), (7, 0)):
            futures.append(batcher.run(images(value), priority))
        executor.gate.set()
        await asyncio.gather(*futures)
        assert [batch[0][0] for batch in executor.batches[1:]] == [3, 5, 2, 4, 7, 1, 6]


async def test_the_queue_counts_images_and_is_bounded():
    executor = Executor(open_=False)
    async with batching(executor, max_queue=5) as batcher:
        futures = [batcher.run(images(0))]
        await executor.begins()
        futures += [batcher.run(images(1, 2, 3)), batcher.run(images(4))]
        assert batcher.depth == 4
        with pytest.raises(RequestError, match="4 images are waiting already") as error:
            batcher.run(images(5, 6))
        assert (error.value.status, error.value.retry_after_s) == (503, 1)
        futures.append(batcher.run(images(7)))
        with pytest.raises(RequestError):
            batcher.run(images(8))
        executor.gate.set()
        assert [values_of(ran) for ran in await asyncio.gather(*futures)] == [[0], [1, 2, 3], [4], [7]]


async def test_a_request_of_more_images_than_the_queue_has_is_taken_where_nobody_waits():
    executor = Executor(open_=False)
    async with batching(executor, max_queue=2) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        large = batcher.run(images(1, 2, 3))
        with pytest.raises(RequestError):
            batcher.run(images(4))
        executor.gate.set()
        assert values_of((await asyncio.gather(first, large))[1]) == [1, 2, 3]


async def test_a_request_that_is_cancelled_frees_its_room_and_its_memory_and_is_not_run():
    executor = Executor(open_=False)
    async with batching(executor, max_queue=3) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        gone, stays = batcher.run(images(1, 2)), batcher.run(images(3))
        (waiting,) = (entry[2] for entry in batcher._queue if len(entry[2].images) == 2)
        gone.cancel()
        await until(lambda: batcher.depth == 1)
        assert len(waiting.images) == 0
        more = batcher.run(images(4, 5))
        executor.gate.set()
        await asyncio.gather(first, stays, more)
        assert executor.batches[1:] == [[[3], [4, 5]]]


async def test_one_that_is_cancelled_in_the_moment_before_it_is_taken_is_not_run_either():
    executor = Executor()
    async with batching(executor) as batcher:
        with batcher._lock:  # the executor cannot take it yet
            gone = batcher.run(images(1))
            gone.cancel()
        assert values_of(await batcher.run(images(2))) == [2]
        assert executor.batches == [[[2]]]


async def test_requests_that_come_and_go_while_an_executor_hangs_do_not_pile_up():
    executor = Executor(open_=False)
    async with batching(executor, max_queue=8) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        stays = batcher.run(images(1), 3)
        for i in range(200):
            batcher.run(images(i)).cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(batcher._queue) <= 17
        assert batcher.depth == 1
        executor.gate.set()
        await asyncio.gather(first, stays)
        assert executor.batches == [[[0]], [[1]]]


async def test_a_cancelled_request_of_a_running_batch_takes_nothing_from_the_others():
    executor = Executor(open_=False)
    async with batching(executor) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        gone, stays = batcher.run(images(1)), batcher.run(images(2))
        executor.gate.set()
        await first
        gone.cancel()
        assert values_of(await stays) == [2]


async def test_a_deadline_that_passes_in_the_queue_is_told_while_the_executor_is_busy():
    executor = Executor(open_=False)
    async with batching(executor, max_queue=2) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        late, stays = batcher.run(images(1), deadline=time.perf_counter() + 0.01), batcher.run(images(2))
        error = await refusal(late)
        assert (error.status, str(error)) == (504, "the request's deadline passed before its inference was done")
        assert not executor.gate.is_set()
        await until(lambda: batcher.depth == 1)
        more = batcher.run(images(3))
        executor.gate.set()
        await asyncio.gather(first, stays, more)
        assert executor.batches[1:] == [[[2], [3]]]


async def test_a_deadline_that_has_passed_before_is_told_at_once_and_nothing_is_run():
    executor = Executor()
    async with batching(executor) as batcher:
        with pytest.raises(RequestError) as error:
            batcher.run(images(1), deadline=time.perf_counter())
        assert error.value.status == 504
        assert values_of(await batcher.run(images(2), deadline=time.perf_counter() + 60)) == [2]
        assert executor.batches == [[[2]]]


async def test_where_a_batch_fails_only_the_request_that_makes_it_fails():
    executor = Executor(open_=False)
    executor.error = lambda rows: ValueError("a 3") if [3.0] in rows else None
    async with batching(executor) as batcher:
        first = batcher.run(images(0))
        await executor.begins()
        futures = [batcher.run(images(i)) for i in (1, 2, 3, 4)]
        executor.gate.set()
        results = await asyncio.gather(first, *futures, return_exceptions=True)
        assert executor.batches[1:] == [[[1], [2], [3], [4]], [[1]], [[2]], [[3]], [[4]]]
        assert isinstance(results[3], ValueError)
        assert [values_of(ran) for i, ran in enumerate(results) if i != 3] == [[0], [1], [2], [4]]
        assert results[1].batch == 1  # it ran alone in the end
        assert values_of(await batcher.run(images(5))) == [5]


@pytest.mark.parametrize("error", [MemoryError("8 GB"), KeyError("x"), AssertionError()])
async def test_whatever_the_inference_raises_is_what_the_client_is_told_of_and_the_executor_goes_on(error):
    executor = Executor()
    executor.error = lambda rows: error
    async with batching(executor) as batcher:
        with pytest.raises(type(error)):
            await batcher.run(images(1))
        executor.error = lambda rows: None
        assert values_of(await batcher.run(images(2))) == [2]


async def test_another_number_of_answers_than_images_is_an_error_and_nobody_gets_anothers():
    def wrong(parts: Sequence[np.ndarray]) -> np.ndarray:
        return answer(np.concatenate(parts)[:-1])

    batcher = Batcher([wrong], Batching())
    with pytest.raises(RuntimeError, match="1 rows of logits for 2 images"):
        await batcher.run(images(1, 2))
    batcher.close()


async def test_executors_run_at_the_same_time():
    one, other = Executor(open_=False), Executor(open_=False)
    async with batching(one, other) as batcher:
        first = batcher.run(images(1))
        await until(lambda: bool(one.batches or other.batches))
        second = batcher.run(images(2))
        await until(lambda: bool(one.batches and other.batches))  # neither has come back
        assert batcher.running == 2
        (free, busy) = (one, other) if one.batches == [[[1]]] else (other, one)
        busy.gate.set()
        assert values_of(await second) == [2]
        assert not first.done()
        third = batcher.run(images(3))
        assert values_of(await third) == [3]  # by the one that is free
        free.gate.set()
        assert values_of(await first) == [1]


async def test_with_a_delay_a_batch_waits_for_company_and_leaves_when_it_is_full():
    executor = Executor()
    async with batching(executor, max_delay_s=60) as batcher:
        futures = [batcher.run(images(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0.01)
        assert executor.batches == []
        futures.append(batcher.run(images(4)))
        await asyncio.gather(*futures)
        assert executor.batches == [[[1], [2], [3], [4]]]


async def test_with_a_delay_a_batch_that_does_not_fill_leaves_when_the_delay_of_its_oldest_is_over():
    executor = Executor()
    async with batching(executor, max_delay_s=0.02) as batcher:
        ran = await batcher.run(images(1))
        assert ran.queue_s >= 0.02
        assert executor.batches == [[[1]]]


async def test_what_a_delayed_batch_leaves_is_run_by_an_executor_that_is_free():
    one, other = Executor(open_=False), Executor(open_=False)
    async with batching(one, other, max_delay_s=60) as batcher:
        batcher.run(images(1))
        await asyncio.sleep(0.01)  # one executor waits for company, the other one for anything
        batcher.run(images(2, 3, 4, 5))  # too large for the batch that waits: two batches
        await until(lambda: len(one.batches) + len(other.batches) == 2)
        assert sorted([*one.batches, *other.batches]) == [[[1]], [[2, 3, 4, 5]]]


async def test_requests_that_do_not_fit_together_wake_an_executor_each():
    executors = [Executor(open_=False) for _ in range(3)]
    async with batching(*executors, batch=8) as batcher:
        await until(lambda: batcher._idle == 3)
        for first in (0, 5, 10):
            batcher.run(images(*range(first, first + 5)))
        await until(lambda: all(executor.batches for executor in executors))  # and none has come back
        assert batcher.depth == 0


async def test_closing_runs_what_is_queued_and_takes_nothing_more():
    executor = Executor(open_=False)
    async with batching(executor, max_delay_s=60) as batcher:
        futures = [batcher.run(images(i)) for i in range(4)]
        await executor.begins()
        futures += [batcher.run(images(4)), batcher.run(images(5))]
        batcher.close()
        with pytest.raises(RequestError, match="being replaced") as error:
            batcher.run(images(6), deadline=time.perf_counter() + 0.01)
        assert error.value.status == 503
        assert batcher.depth == 2
        executor.gate.set()
        assert [values_of(ran) for ran in await asyncio.gather(*futures)] == [[i] for i in range(6)]
        await asyncio.sleep(0.02)  # the deadline of what was not taken passes, and means nothing
        assert batcher.depth == 0


async def test_an_executor_that_does_not_come_back_is_said_to_hang_for_as_long_as_it_does_not():
    executor = Executor(open_=False)
    async with batching(executor) as batcher:
        assert not batcher.hung(0)
        future = batcher.run(images(1))
        await executor.begins()
        await until(lambda: batcher.hung(0))
        assert not batcher.hung(3600)
        executor.gate.set()
        await future
        await until(lambda: not batcher.hung(0))


def test_a_loop_that_ends_before_its_executor_leaves_no_thread_behind():
    executor = Executor(open_=False)

    async def leave() -> list[threading.Thread]:
        batcher = Batcher([executor], Batching())
        batcher.run(images(1))
        await executor.begins()
        return batcher._threads

    (thread,) = asyncio.run(leave())
    executor.gate.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(("executors", "max_delay_s"), [(1, 0.0), (3, 0.0), (2, 0.001)])
async def test_among_thousands_of_requests_nobody_gets_anothers_answer(executors: int, max_delay_s: float):
    """Of all sizes and priorities, some cancelled, some late, some that fail."""
    draw = random.Random(executors)

    def run(parts: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.concatenate(parts)
        assert len(parts) == 1 or len(rows) <= 8
        if (rows % 97 == 13).any():
            raise ValueError("a bad one")
        return answer(rows)

    batcher = Batcher([run] * executors, Batching(executors, 8, max_delay_s, max_queue=200))
    outcomes: dict[str, int] = {}
    serial = iter(range(1_000_000))

    async def client() -> None:
        for _ in range(2000 // 40):
            mine = np.array([next(serial) for _ in range(draw.choice((1, 1, 2, 3, 8, 11)))], np.float32)[:, None]
            fate = draw.random()
            deadline = time.perf_counter() + (0.0005 if fate < 0.1 else 60)
            try:
                future = batcher.run(mine, draw.randint(0, 3), deadline)
                if fate > 0.9:
                    await asyncio.sleep(0)
                    future.cancel()
                ran = await future
            except RequestError as error:
                assert error.status in (503, 504)  # noqa: PT017 - one of several outcomes that are right
                what = str(error.status)
            except ValueError:
                assert (mine % 97 == 13).any()
                what = "failed"
            except asyncio.CancelledError:
                what = "cancelled"
            else:
                np.testing.assert_array_equal(ran.logits, answer(mine))
                assert not (mine % 97 == 13).any()
                what = "answered"
            outcomes[what] = outcomes.get(what, 0) + 1

    await asyncio.gather(*(client() for _ in range(40)))
    assert sum(outcomes.values()) == 2000
    assert outcomes["answered"] > 1000
    assert {"cancelled", "failed"} <= set(outcomes)
    await until(lambda: batcher.running == 0)
    assert (batcher.depth, batcher.running) == (0, 0)
    batcher.close()
