"""A pool of decode processes: own pixels for every call, whatever becomes of the processes. Real ones throughout."""

import asyncio
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, ServerError
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.serving import decode_pool, decode_process
from regnet_deploy.serving.decode_pool import DecodeFailed, DecodePool
from regnet_deploy.serving.errors import RequestError

VIEW = default_preprocessing(24)
TINY = Preprocessing(4, 4)
MAX_PIXELS = 10**6
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

#: A worker in whose decoder some images find a fault.
FAULTY = """
import os, sys, time
sys.path[:] = sys.argv[4:]
import regnet_deploy.serving.decode_worker as module
answer = module._answer
def faulty(image, *arguments):
    if image == b"crash":
        os.kill(os.getpid(), 11)
    if image == b"hang":
        time.sleep(1000)
    if image == b"short":
        return module.ANSWER.pack(module.PIXELS, 3) + b"abc"
    if image == b"long":
        return answer(GOOD, *arguments) + b"and more"
    if image == b"hello":
        return module.ANSWER.pack(module.HELLO, 0)
    if image == b"lines":
        return module._refusal("image: one\\nand another\\x1b[31m")
    return answer(image, *arguments)
import io
from PIL import Image
stream = io.BytesIO()
Image.new("RGB", (9, 9)).save(stream, "PNG")
GOOD = stream.getvalue()
module._answer = faulty
module.main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
"""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_process, "_PROGRAM", FAULTY)


def picture(width: int = 90, height: int = 60, kind: str = "JPEG", colour: int | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    if colour is not None:
        image = Image.new("RGB", (width, height), (colour, 255 - colour, 7))
    image.save(stream, kind)
    return stream.getvalue()


@asynccontextmanager
async def started(workers: int = 1, timeout_s: float = 60.0) -> AsyncIterator[DecodePool]:
    pool = DecodePool(workers, MAX_PIXELS, timeout_s)
    await pool.start()
    try:
        yield pool
    finally:
        pids = pool.pids
        await pool.close()
        assert not any(alive(pid) for pid in pids)


async def until(what: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not what():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 60)


def alive(pid: int) -> bool:
    """Whether there is such a process that is more than an entry in a table."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def answered(pool: DecodePool) -> bool:
    """Whether an image gets its pixels."""
    return bool((await pool.pixels(picture(), VIEW) == load_pixels(picture(), VIEW)).all())


def on_uvloop(work: Coroutine[Any, Any, None]) -> None:
    pytest.importorskip("uvloop").run(work)


@pytest.mark.parametrize("run", [asyncio.run, on_uvloop], ids=["asyncio", "uvloop"])
def test_the_pixels_are_those_of_the_evaluation(run: Callable[[Awaitable[None]], None]) -> None:
    async def work() -> None:
        async with started() as pool:
            for image in (picture(), picture(640, 480), picture(kind="PNG"), picture(kind="WEBP"), picture(3, 900)):
                for sent in (image, memoryview(image)):
                    pixels = await pool.pixels(sent, VIEW)
                    assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
                    assert (pixels == load_pixels(image, VIEW)).all()
            with pytest.raises(DataError, match="empty file"):
                await pool.pixels(b"", VIEW)
            os.kill(pool.pids[0], signal.SIGKILL)
            assert await answered(pool)

    run(work())


def test_what_is_no_usable_image_is_refused_in_the_words_of_the_decoder() -> None:
    async def work() -> None:
        async with started() as pool:
            for image in (b"", b"no image", picture()[:200], picture(kind="GIF"), picture(1001, 1000, "PNG")):
                with pytest.raises(DataError) as wanted:
                    load_pixels(image, VIEW, max_pixels=MAX_PIXELS, formats=WEB_FORMATS)
                with pytest.raises(DataError) as got:
                    await pool.pixels(image, VIEW)
                assert str(got.value) == str(wanted.value)
                assert str(got.value).startswith("image: ")
            assert await answered(pool)
            assert pool.restarts == 0

    asyncio.run(work())


@pytest.mark.usefixtures("faulty")
def test_a_refusal_is_one_line_whatever_a_worker_says() -> None:
    async def work() -> None:
        async with started() as pool:
            with pytest.raises(DataError) as got:
                await pool.pixels(b"lines", VIEW)
            assert str(got.value) == "image: one and another [31m"

    asyncio.run(work())


def test_a_worker_that_was_killed_is_replaced_and_nobody_notices(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with started(2) as pool:
            before = pool.pids
            os.kill(before[0], signal.SIGKILL)
            for _ in range(3):  # one of them may get the process before its end is seen
                assert await answered(pool)
            await until(lambda: pool.restarts == 1)
            assert len(set(pool.pids)) == 2
            assert before[1] in pool.pids
            assert before[0] not in pool.pids

    with caplog.at_level(logging.WARNING, "regnet_deploy.serving"):
        asyncio.run(work())
    assert [record.getMessage() for record in caplog.records] == ["a decode process ended (SIGKILL): it is replaced"]


def test_an_image_whose_worker_is_killed_while_it_has_it_is_decoded_by_another() -> None:
    async def work() -> None:
        async with started() as pool:
            (pid,) = pool.pids
            os.kill(pid, signal.SIGSTOP)
            call = asyncio.create_task(answered(pool))
            await until(lambda: pool.busy == 1)
            os.kill(pid, signal.SIGKILL)
            assert await call
            assert pool.restarts == 1

    asyncio.run(work())


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    "image", [b"crash", b"long", *(pytest.param(image, marks=pytest.mark.slow) for image in (b"short", b"hello"))]
)
def test_an_image_that_two_workers_fail_at_is_given_up_and_others_are_not(image: bytes) -> None:
    async def work() -> None:
        async with started(2) as pool:
            before = pool.pids
            bad = asyncio.create_task(pool.pixels(image, VIEW))
            others = [asyncio.create_task(answered(pool)) for _ in range(10)]
            if image == b"long":  # its pixels had come in full: what came behind them is the end of the worker alone
                await asyncio.wait([bad])
            else:
                with pytest.raises(DecodeFailed, match=r"^image: its decode process ended, twice$"):
                    await bad
            assert all(await asyncio.gather(*others))
            await until(lambda: len(pool.pids) == 2)
            assert pool.restarts in ((1, 2) if image == b"long" else (2,))
            assert set(pool.pids) != set(before)
            assert await answered(pool)

    asyncio.run(work())


@pytest.mark.usefixtures("faulty")
def test_an_image_that_takes_two_workers_too_long_is_late_and_they_are_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        async with started(timeout_s=0.5) as pool:
            with pytest.raises(RequestError, match=r"^image: not decoded within 0.5 s, twice$") as refused:
                await pool.pixels(b"hang", VIEW)
            assert refused.value.status == 504
            assert await answered(pool)
            assert pool.restarts == 2

    asyncio.run(work())
    assert "a decode process ended (an image took more than 0.5 s)" in caplog.text


def test_an_image_whose_worker_hangs_is_decoded_by_another() -> None:
    async def work() -> None:
        async with started(timeout_s=1.0) as pool:
            os.kill(pool.pids[0], signal.SIGSTOP)
            assert await answered(pool)
            assert pool.restarts == 1

    asyncio.run(work())


def test_the_answer_to_a_call_that_was_cancelled_is_not_the_next_ones() -> None:
    async def work() -> None:
        async with started() as pool:
            (pid,) = pool.pids
            for _ in range(3):
                os.kill(pid, signal.SIGSTOP)
                gone = asyncio.create_task(pool.pixels(picture(colour=1, kind="PNG"), TINY))
                await until(lambda: pool.busy == 1)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                assert pool.busy == 1  # it finishes what it has
                os.kill(pid, signal.SIGCONT)
                pixels = await pool.pixels(picture(colour=200, kind="PNG"), TINY)
                assert (pixels == (200, 55, 7)).all()
            assert (pool.pids, pool.restarts) == ((pid,), 0)

    asyncio.run(work())


def test_whoever_waits_gets_a_worker_in_order_and_may_leave() -> None:
    async def work() -> None:
        order: list[int] = []

        async def call(pool: DecodePool, number: int) -> None:
            await pool.pixels(picture(kind="PNG", colour=number), TINY)
            order.append(number)

        async with started() as pool:
            os.kill(pool.pids[0], signal.SIGSTOP)
            calls = [asyncio.create_task(call(pool, number)) for number in range(10)]
            await until(lambda: pool.waiting == 9)
            for number in (3, 4, 9):
                calls[number].cancel()
            await until(lambda: pool.waiting == 6)
            os.kill(pool.pids[0], signal.SIGCONT)
            await asyncio.gather(*calls, return_exceptions=True)
            assert order == [0, 1, 2, 5, 6, 7, 8]
            assert (pool.waiting, pool.busy) == (0, 0)

    asyncio.run(work())


def test_a_worker_that_comes_just_as_its_caller_leaves_goes_to_the_next() -> None:
    async def work() -> None:
        async with started() as pool:
            (worker,) = pool._free
            pool._free.clear()
            first = asyncio.create_task(pool.pixels(picture(), VIEW))
            second = asyncio.create_task(answered(pool))
            await until(lambda: pool.waiting == 2)
            pool._give(worker)
            first.cancel()
            assert await second
            assert first.cancelled()
            assert pool.busy == 0

    asyncio.run(work())


def test_hundreds_of_calls_at_once_get_their_own_pixels() -> None:
    async def work() -> None:
        async with started(2) as pool:
            colours = [number % 250 for number in range(200)]
            calls = [pool.pixels(picture(12, 8, "PNG", colour), TINY) for colour in colours]
            found = await asyncio.gather(*calls)
            for colour, pixels in zip(colours, found, strict=True):
                assert (pixels == (colour, 255 - colour, 7)).all()
            assert (pool.waiting, pool.busy, pool.restarts) == (0, 0, 0)

    asyncio.run(work())


def test_closing_ends_what_is_decoded_and_what_waits() -> None:
    async def work() -> None:
        async with started() as pool:
            pids = pool.pids
            os.kill(pids[0], signal.SIGSTOP)
            calls = [asyncio.create_task(pool.pixels(picture(), VIEW)) for _ in range(3)]
            await until(lambda: pool.waiting == 2)
            await pool.close()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(outcome, RequestError) and outcome.status for outcome in outcomes] == [503] * 3
            assert not alive(pids[0])
            with pytest.raises(RequestError, match="stopping"):
                await pool.pixels(picture(), VIEW)

    asyncio.run(work())


def test_a_pool_can_be_closed_while_it_replaces_a_worker() -> None:
    async def work() -> None:
        async with started() as pool:
            os.kill(pool.pids[0], signal.SIGKILL)
            await until(lambda: not pool.pids)
            await pool.close()
            assert pool.pids == ()

    asyncio.run(work())


def test_where_no_worker_can_be_started_it_is_tried_until_one_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = (
        decode_pool.start_decoder,
        [OSError(11, "Resource temporarily unavailable"), decode_process.DecoderDied()],
    )

    async def start(*arguments: Any) -> decode_process.Decoder:
        if failures:
            raise failures.pop(0)
        return await real(*arguments)

    async def work() -> None:
        async with started() as pool:
            monkeypatch.setattr(decode_pool, "start_decoder", start)
            os.kill(pool.pids[0], signal.SIGKILL)
            assert await answered(pool)
            assert pool.restarts == 1

    monkeypatch.setattr(decode_pool, "_FIRST_WAIT_S", 0.01)
    asyncio.run(work())
    assert "does not start (Resource temporarily unavailable): next attempt in 0.01 s" in caplog.text
    assert "does not start (it ended before it was ready): next attempt in 0.02 s" in caplog.text


@pytest.mark.parametrize(
    ("program", "executable", "reason"),
    [
        ("raise SystemExit(1)", sys.executable, "it ended before it was ready"),
        ("", "/nowhere/python", "No such file"),
    ],
)
def test_a_pool_that_cannot_start_says_so(
    monkeypatch: pytest.MonkeyPatch, program: str, executable: str, reason: str
) -> None:
    monkeypatch.setattr(decode_process, "_PROGRAM", program)
    monkeypatch.setattr(decode_process.sys, "executable", executable)
    with pytest.raises(ServerError, match=f"^the decode processes do not start: {reason}"):
        asyncio.run(DecodePool(2, MAX_PIXELS).start())


@ON_LINUX
def test_a_worker_inherits_no_secrets_no_files_and_no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGNET_TOKEN", "secret")
    for module in ("numpy", "PIL", "struct"):  # that a folder has, in which somebody starts a server
        (tmp_path / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)

    async def work() -> None:
        with (tmp_path / "open").open("wb") as file:
            os.set_inheritable(file.fileno(), True)
            async with started() as pool:
                (pid,) = pool.pids
                assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
                descriptors = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
                assert descriptors[:3] == [0, 1, 2]
                assert len(descriptors) == 4
                assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/1") == os.devnull
                assert os.getsid(pid) == pid
                assert len(os.listdir(f"/proc/{pid}/task")) == 1
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(pid, number)
                assert await answered(pool)
                assert pool.restarts == 0

    asyncio.run(work())


#: A server that prints its workers, and then holds two images: one that is decoded forever, one that waits.
SERVER = """
import asyncio, sys
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.serving import decode_pool, decode_process
decode_process._PROGRAM = sys.argv[1]
async def main():
    pool = decode_pool.DecodePool(2, 10**6, 0.5)
    await pool.start()
    call = asyncio.create_task(pool.pixels(b"hang", default_preprocessing(24)))
    await asyncio.sleep(0.1)
    print(*pool.pids, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_workers_do_not_outlive_a_server_that_is_killed() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER, FAULTY], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pids = [int(pid) for pid in server.stdout.readline().split()]
    server.kill()
    server.communicate()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


@ON_LINUX
def test_hundreds_of_images_leave_nothing_behind() -> None:
    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def work() -> None:
        async with started() as pool:
            images = [picture(600, 400), picture(600, 400)[:5000], b"no image", picture(200, 150, "WEBP")]

            async def some(count: int) -> None:
                for number in range(count):
                    call = asyncio.create_task(pool.pixels(images[number % len(images)], VIEW))
                    if number % 5 == 0:
                        await asyncio.sleep(0)
                        call.cancel()
                    await asyncio.gather(call, return_exceptions=True)

            await some(80)
            pids = (os.getpid(), *pool.pids)
            before = [(resident(pid), len(os.listdir(f"/proc/{pid}/fd"))) for pid in pids]
            await some(300)
            assert (os.getpid(), *pool.pids) == pids
            for pid, (memory, files) in zip(pids, before, strict=True):
                assert len(os.listdir(f"/proc/{pid}/fd")) == files
                assert resident(pid) < memory + 16 * 2**20

    asyncio.run(work())
