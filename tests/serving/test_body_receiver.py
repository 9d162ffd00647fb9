"""Bodies in one piece: what an application is given, and what becomes of a connection where it did not want them."""

import asyncio
import contextlib
import gc
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from regnet_deploy.serving.body_receiver import (
    BODY_EXTENSION,
    MAX_DIRECT_BYTES,
    MIN_DIRECT_BYTES,
    READ_BYTES,
    BodyReceiver,
    PartialBody,
    create_read_buffer,
)
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer

LEAD = 37


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def post(path: str, body: bytes, fields: str = "", size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{fields}\r\n".encode() + body


class Books:
    """An application that notes how bodies came and answers how it went and a sum of the body."""

    def __init__(self) -> None:
        self.offers: list[bool] = []
        self.counts: list[int] = []
        self.whole: Any = None
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        whole = scope.get("extensions", {}).get(BODY_EXTENSION)
        self.offers.append(whole is not None)
        path, said = scope["path"], "read"
        body = b""
        if path == "/unread":
            whole, more = None, False
            if scope["query_string"]:  # looks whether the client is there, as frameworks do
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(receive(), 0.05)
        else:
            more = True
        if whole is None or path == "/ignored":
            while more:
                message = await receive()
                body, more = body + message["body"], message["more_body"]
        else:
            self.counts, self.whole = [], whole
            try:
                given = whole(LEAD, self.limited if path == "/limited" else self.counts.append)
                self.begun.set()
                if isinstance(given, bytes | bytearray):
                    body = bytes(given)
                else:
                    memory = await asyncio.wait_for(given, 0.1 if path == "/impatient" else None)
                    assert np.frombuffer(memory, np.uint8).ctypes.data % 64 == -LEAD % 64
                    body = bytes(memory)
            except TimeoutError:
                said = "late"
            except OverflowError:
                said = "too much"
            except ClientDisconnect:
                self.gone.set()
                return
            finally:
                given = whole = None  # of what was raised, which the future leads to
        content = json.dumps([path, said, len(body), int(np.frombuffer(body, np.uint8).sum())]).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def limited(self, count: int) -> None:
        self.counts.append(count)
        if sum(self.counts) > 200_000:
            raise OverflowError


class Site:
    """A server of :class:`Books`, and one connection to it."""

    def __init__(
        self, app: Books, server: uvicorn.Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.app, self.server, self.reader, self.writer = app, server, reader, writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def answer(self) -> Any:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("content-length"))
        return json.loads(await self.reader.readexactly(int(length)))


@contextlib.asynccontextmanager
async def site(timeout_s: float) -> AsyncIterator[Site]:
    app = Books()
    config = uvicorn.Config(app, http="httptools", lifespan="off", ws="none", log_config=None)
    config.load()
    server = LimitedServer(config, ConnectionLimits(20, timeout_s))
    server.lifespan = config.lifespan_class(config)
    bound = socket.create_server(("127.0.0.1", 0))
    await server.startup([bound])
    reader, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
    try:
        yield Site(app, server, reader, writer)
    finally:
        writer.close()
        server.force_exit = True
        await server.shutdown([bound])


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs work at a site."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def go(work: Callable[[Site], Awaitable[None]], timeout_s: float = 30.0) -> None:
        async def inner() -> None:
            async with asyncio.timeout(30), site(timeout_s) as made:
                await work(made)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(inner())

    return go


def read(path: str, body: bytes, said: str = "read") -> list[Any]:
    return [path, said, len(body), sum(body)]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 1000, MIN_DIRECT_BYTES, READ_BYTES - 1, READ_BYTES, 150_616, 602_200]),
        min_size=1,
        max_size=4,
    ),
    cuts=st.lists(st.integers(1, 400_000), max_size=6),
)
def test_bodies_come_as_they_were_sent_however_they_are_cut(run: Any, sizes: list[int], cuts: list[int]):
    bodies = [noise(size) for size in sizes]
    stream = b"".join(post(f"/{i}", body) for i, body in enumerate(bodies))
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]

    async def work(made: Site) -> None:
        sending = asyncio.ensure_future(made.send(*(stream[a:b] for a, b in itertools.pairwise(ends))))
        for i, body in enumerate(bodies):
            assert await made.answer() == read(f"/{i}", body)
        await sending

    run(work)


def test_a_long_body_is_offered_whole_and_counted_as_it_arrives(run: Any):
    body = noise(602_200)

    async def work(made: Site) -> None:
        await made.send(post("/a", body[:100_000], size=len(body)))
        await made.app.begun.wait()
        await asyncio.sleep(0.05)
        assert sum(made.app.counts) <= 100_000
        await made.send(body[100_000:])
        assert await made.answer() == read("/a", body)
        assert sum(made.app.counts) == len(body)
        await made.send(post("/b", b"behind"))
        assert await made.answer() == read("/b", b"behind")
        assert made.app.offers[0]

    run(work)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ("Expect: 100-continue\r\n", 200_000),
        ("Connection: close\r\n", 200_000),
        ("", MIN_DIRECT_BYTES - 1),
        ("", MAX_DIRECT_BYTES + 1),
    ],
    ids=["expect", "close", "short", "long"],
)
def test_what_is_not_offered_whole_comes_all_the_same(run: Any, fields: str, size: int):
    body = noise(size)

    async def work(made: Site) -> None:
        await made.send(post("/a", b"", fields, size))
        if fields.startswith("Expect"):
            assert b"100 Continue" in await made.reader.readuntil(b"\r\n\r\n")
        else:
            await asyncio.sleep(0.02)
        await made.send(body)
        assert await made.answer() == read("/a", body)
        assert made.app.offers == [False]

    run(work)


@pytest.mark.parametrize("query", ["", "?look"])
@pytest.mark.parametrize("begun", [0, 1000, 300_000, 602_200])
def test_what_is_answered_unread_is_thrown_away_and_the_connection_is_idle(run: Any, begun: int, query: str):
    body = noise(602_200)

    async def work(made: Site) -> None:
        for _ in range(2):
            await made.send(post(f"/unread{query}", body[:begun], size=len(body)))
            assert await made.answer() == read("/unread", b"")
            await made.send(body[begun:])
        await asyncio.sleep(0.05)
        (connection,) = made.server.server_state.connections
        assert connection in connection._places
        assert connection._head_timer is None
        await made.send(post("/next", body))
        assert await made.answer() == read("/next", body)

    run(work)


def test_the_rest_of_what_is_answered_unread_is_not_waited_for_without_end(run: Any):
    async def work(made: Site) -> None:
        await made.send(post("/unread", bytes(1000), size=300_000))
        assert await made.answer() == read("/unread", b"")
        assert await made.reader.read() == b""

    run(work, timeout_s=0.3)


def test_an_application_may_pass_over_the_offer(run: Any):
    body = noise(602_200)

    async def work(made: Site) -> None:
        await made.send(post("/ignored", body), post("/ignored", b"small"))
        assert await made.answer() == read("/ignored", body)
        assert await made.answer() == read("/ignored", b"small")

    run(work)


@pytest.mark.parametrize(("path", "said"), [("/impatient", "late"), ("/limited", "too much")])
def test_the_rest_of_a_body_that_nobody_wants_any_more_is_thrown_away(run: Any, path: str, said: str):
    body = noise(602_200)

    async def work(made: Site) -> None:
        await made.send(post(path, body[:300_000], size=len(body)))
        assert await made.answer() == read(path, b"", said)
        await made.send(body[300_000:], post("/next", b"next"))
        assert await made.answer() == read("/next", b"next")

    run(work)


def test_a_body_that_came_with_its_head_is_counted_too(run: Any):
    async def work(made: Site) -> None:
        await made.send(post("/a", bytes(1000)))
        assert await made.answer() == read("/a", bytes(1000))
        assert made.app.counts == [1000]

    run(work)


def test_a_client_that_goes_in_the_midst_is_noticed_at_once(run: Any):
    async def work(made: Site) -> None:
        await made.send(post("/a", bytes(100_000), size=600_000))
        await made.app.begun.wait()
        made.writer.close()
        await made.app.gone.wait()

    run(work)


def test_many_zeros_before_a_length_are_none_of_its_digits(run: Any):
    body = noise(200_000)

    async def work(made: Site) -> None:
        length = f"{'0' * 5000}{len(body)}"
        await made.send(f"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode(), body)
        assert await made.answer() == read("/a", body)

    run(work)


def test_a_body_is_asked_for_once(run: Any):
    async def work(made: Site) -> None:
        await made.send(post("/a", bytes(100_000), size=300_000))
        await made.app.begun.wait()
        with pytest.raises(RuntimeError, match="taken already"):
            made.app.whole(0, lambda count: None)
        await made.send(bytes(200_000))
        assert await made.answer() == read("/a", bytes(300_000))

    run(work)


def test_connections_leave_nothing_for_the_garbage_collector(run: Any):
    async def work(made: Site) -> None:
        host, port = made.writer.get_extra_info("peername")
        await asyncio.sleep(0.01)
        gc.collect()
        gc.disable()
        try:
            for body, size in ((bytes(200_000), 200_000), (bytes(100), 100), (bytes(100_000), 1_000_000)):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(post("/a", body, size=size))
                if len(body) == size:
                    await Site(made.app, made.server, reader, writer).answer()
                else:
                    await made.app.begun.wait()
                writer.close()
                await asyncio.sleep(0.05)
            await made.app.gone.wait()
            await asyncio.sleep(0.05)
            made.app.whole = None
            alive = [
                one for one in gc.get_objects() if type(one) in (BodyReceiver, PartialBody)
            ]  # others may not like to be asked
            assert len(alive) <= 1  # of the connection of the site itself
        finally:
            gc.enable()

    run(work)


def test_memory_of_a_body_that_nobody_waits_for_is_given_back():
    async def work() -> None:
        body = PartialBody(b"ab", 100, 0, lambda count: None)
        buffer = create_read_buffer()
        assert len(body.get_buffer(buffer)) == 98
        body.complete.cancel()
        assert body.get_buffer(buffer).obj is buffer.obj
        assert not body.received(90)
        assert body.received(8)

    asyncio.run(work())


def test_a_receiver_hands_on_what_is_no_body():
    told: list[Any] = []

    class Connection:
        def __getattr__(self, name: str) -> Any:
            return lambda *values: told.append((name, *(bytes(v) if isinstance(v, memoryview) else v for v in values)))

    receiver = BodyReceiver(Connection(), create_read_buffer())
    receiver.get_buffer(-1)[:3] = b"abc"
    receiver.buffer_updated(3)
    receiver.pause_writing()
    receiver.resume_writing()
    receiver.eof_received()
    receiver.connection_lost(None)
    assert told == [
        ("data_received", b"abc"),
        ("pause_writing",),
        ("resume_writing",),
        ("eof_received",),
        ("connection_lost", None),
    ]
