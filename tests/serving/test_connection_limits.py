"""uvicorn's protocol with its limits: what bytes on connections come to, in front of an application that tells."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer

HEALTH_CONNECTIONS = ConnectionLimits(1, 1.0).health_connections
HEAD = "{} HTTP/1.1\r\nHost: x\r\n{}\r\n"
UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
CHUNKED = HEAD.format("POST /a", "Transfer-Encoding: chunked\r\n").encode()
INNER = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"


class Echo:
    """Answers what it was asked, with the body; ``/held`` only when it is let, ``/early`` without reading."""

    def __init__(self) -> None:
        self.let, self.left = asyncio.Event(), asyncio.Event()
        self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/held":
            self.held += 1
            gone = asyncio.ensure_future(receive())
            let = asyncio.ensure_future(self.let.wait())
            await asyncio.wait((gone, let), return_when=asyncio.FIRST_COMPLETED)
            let.cancel()
            if gone.done():
                self.left.set()
                return
            gone.cancel()
        content = json.dumps([scope["method"], scope["path"], body.decode()]).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)

    async def answer(self) -> tuple[int, Any]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.head = head
        length = [line.split(": ")[1] for line in head.split("\r\n") if line.startswith("content-length")]
        body = await self.reader.readexactly(int(length[0])) if length else b""
        return int(head.split(" ")[1]), json.loads(body) if body else None

    async def rest(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


class Site:
    """A server and connections to it."""

    def __init__(self, app: Echo, server: uvicorn.Server, port: int) -> None:
        self.app, self.server, self.port = app, server, port
        self.clients: list[Client] = []

    async def connect(self, *parts: bytes) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        client.send(*parts)
        return client

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def site(max_connections: int = 20, min_idle_s: float = 0.5) -> AsyncIterator[Site]:
    app = Echo()
    config = uvicorn.Config(
        app, http="httptools", lifespan="off", ws="none", log_config=None, access_log=False, timeout_keep_alive=75
    )
    config.load()
    server = LimitedServer(config, ConnectionLimits(max_connections, 30.0, min_idle_s=min_idle_s))
    server.lifespan = config.lifespan_class(config)
    bound = socket.create_server(("127.0.0.1", 0))
    await server.startup([bound])
    made = Site(app, server, bound.getsockname()[1])
    try:
        yield made
    finally:
        app.let.set()
        for client in made.clients:
            client.writer.close()
        server.force_exit = True
        await server.shutdown([bound])


def run(work: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    async def inner() -> None:
        async with asyncio.timeout(30), site(**options) as made:
            await work(made)

    asyncio.run(inner())


def get(path: str, fields: str = "") -> bytes:
    return HEAD.format(f"GET {path}", fields).encode()


def post(path: str, body: bytes, fields: str = "") -> bytes:
    return HEAD.format(f"POST {path}", f"Content-Length: {len(body)}\r\n{fields}").encode() + body


@pytest.mark.parametrize("pieces", [1, 2, 1000], ids=["at-once", "head-and-body", "bytes"])
@pytest.mark.parametrize("form", ["length", "chunked", "none"])
def test_a_request_that_offers_another_protocol_is_served_with_its_body(
    pieces: int, form: str, caplog: pytest.LogCaptureFixture
):
    if form == "length":
        request, body = post("/a", INNER, UPGRADE), INNER.decode()
    elif form == "chunked":
        head = HEAD.format("POST /a", f"{UPGRADE}Transfer-Encoding: chunked\r\n").encode()
        request, body = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER), INNER.decode()
    else:
        request, body = HEAD.format("POST /a", UPGRADE).encode(), ""
    split = request.index(b"\r\n\r\n") + 4
    behind = get("/b")

    async def work(made: Site) -> None:
        client = await made.connect()
        if pieces == 1:
            client.send(request + behind)
        elif pieces == 2:
            client.send(request[:split])
            await asyncio.sleep(0.05)
            client.send(request[split:] + behind)
        else:
            for i in range(len(request + behind)):
                client.send((request + behind)[i : i + 1])
                await asyncio.sleep(0)
        assert await client.answer() == (200, ["POST", "/a", body])
        assert await client.answer() == (200, ["GET", "/b", ""])
        client.send(get("/c", "Connection: close\r\n"))
        assert await client.answer() == (200, ["GET", "/c", ""])
        assert await client.rest() == b""

    run(work)
    assert not caplog.records


def test_an_offer_on_a_connection_that_ends_is_none_either():
    async def work(made: Site) -> None:
        fields = "Connection: upgrade, close\r\nUpgrade: websocket\r\n"
        client = await made.connect(post("/a", INNER, fields) + INNER)
        assert await client.answer() == (200, ["POST", "/a", INNER.decode()])
        assert await client.rest() == b""

    run(work)


def test_there_are_no_tunnels():
    async def work(made: Site) -> None:
        client = await made.connect(HEAD.format("CONNECT h:443", "").encode() + INNER)
        assert (await client.answer())[0] == 400
        assert await client.rest() == b""

    run(work)


def test_who_waits_to_be_asked_for_a_body_is_asked():
    async def work(made: Site) -> None:
        client = await made.connect(post("/a", b"", "").replace(b"Length: 0", b"Length: 4\r\nExpect: 100-continue"))
        assert await client.answer() == (100, None)
        client.send(b"body")
        assert await client.answer() == (200, ["POST", "/a", "body"])

    run(work)


def test_who_waits_to_be_asked_for_a_body_that_nobody_wants_is_not():
    async def work(made: Site) -> None:
        fields = "Content-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n"
        client = await made.connect(HEAD.format("POST /early", fields).encode())
        assert await client.answer() == (200, ["POST", "/early", ""])
        assert await client.rest() == b""

    run(work)


def test_for_one_more_connection_the_one_that_has_been_idle_for_the_longest_is_closed():
    async def work(made: Site) -> None:
        clients = [await made.connect(get(f"/{i}")) for i in range(3)]
        for client in clients:
            assert (await client.answer())[0] == 200
        clients[0].send(get("/again"))
        assert (await clients[0].answer())[0] == 200
        new = await made.connect(get("/new"))
        assert await new.answer() == (200, ["GET", "/new", ""])
        assert await clients[1].rest() == b""
        for client in (clients[0], clients[2]):
            client.send(get("/kept"))
            assert await client.answer() == (200, ["GET", "/kept", ""])
        assert len(made.server.server_state.connections) == 3

    run(work, max_connections=3)


def test_a_connection_that_has_begun_its_next_request_is_not_idle():
    async def work(made: Site) -> None:
        one = await made.connect(get("/held") + b"GET /ne")
        await made.until(lambda: made.app.held)
        made.app.let.set()
        assert (await one.answer())[0] == 200
        two = await made.connect(get("/v2/health/live"))
        assert (await two.answer())[0] == 200
        one.send(b"xt HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await one.answer() == (200, ["GET", "/next", ""])

    run(work, max_connections=1)


def test_a_connection_for_health_that_is_idle_makes_room_for_others():
    async def work(made: Site) -> None:
        await made.connect(get("/held"))
        await made.until(lambda: made.app.held)
        health = await made.connect(get("/v2/health/live"))
        assert (await health.answer())[0] == 200
        more = [await made.connect(get("/v2/health/live")) for _ in range(20)]
        for client in more:
            assert (await client.answer())[0] == 200
        assert await health.rest() == b""
        other = await made.connect(get("/v2"))
        assert (await other.answer())[0] == 503

    run(work, max_connections=1)


def test_where_all_are_busy_health_is_answered_and_nothing_else():
    async def work(made: Site) -> None:
        for _ in range(2):
            await made.connect(get("/held"))
        await made.until(lambda: made.app.held == 2)
        for path in ("/v2/health/live", "/v2/health/ready"):
            client = await made.connect(get(path))
            assert await client.answer() == (200, ["GET", path, ""])
            client.send(get("/v2"))
            status, said = await client.answer()
            assert (status, said["error"]) == (503, "2 connections are open already, try again")
            assert "retry-after: 1" in client.head
            assert await client.rest() == b""
        large = await made.connect(post("/v2/health/live", bytes(4_000_000)))
        assert (await large.answer())[0] == 503
        assert await large.rest() == b""

    run(work, max_connections=2)


def test_nor_are_there_many_of_these():
    async def work(made: Site) -> None:
        for _ in range(1 + HEALTH_CONNECTIONS):
            await made.connect(b"GET /v2/health/li")  # and no more of it
        await made.until(lambda: len(made.server.server_state.connections) == 1 + HEALTH_CONNECTIONS)
        client = await made.connect()
        assert (await client.answer())[0] == 503
        assert "retry-after: 1" in client.head

    run(work, max_connections=1)


def test_junk_behind_a_request_leaves_its_answer():
    async def work(made: Site) -> None:
        for junk in (b"JUNK\x00\r\n\r\n", b"\x16\x03\x01" * 5, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000):
            client = await made.connect(post("/held", b"one") + junk)
            await made.until(lambda: made.app.held)
            client.send(b"and more" * 1000)
            made.app.let.set()
            assert await client.answer() == (200, ["POST", "/held", "one"])
            assert "connection: close" in client.head
            assert await client.rest() == b""
            made.app.let.clear()
            made.app.held = 0

    run(work)


def test_junk_leaves_the_answers_to_all_requests_before_it():
    async def work(made: Site) -> None:
        for junk in (b"JUNK\x00", CHUNKED + b"no number"):
            client = await made.connect(get("/a") + get("/b") + junk)
            assert await client.answer() == (200, ["GET", "/a", ""])
            assert await client.answer() == (200, ["GET", "/b", ""])
            assert "connection: close" in client.head
            assert await client.rest() == b""

    run(work)


@pytest.mark.parametrize(
    "junk", [b"JUNK\x00", get("/a") + b"JUNK\x00", CHUNKED + b"x\r\n"], ids=["alone", "behind", "body"]
)
def test_junk_is_answered_where_no_other_answer_is_under_way(junk: bytes):
    async def work(made: Site) -> None:
        client = await made.connect()
        if junk.startswith(b"GET"):
            client.send(get("/a"))
            assert (await client.answer())[0] == 200
            client.send(b"JUNK\x00")
        else:
            client.send(junk)
        status, said = await client.answer()
        assert (status, said["error"]) == (400, "this is not a request of HTTP/1.1")
        assert "retry-after" not in client.head
        assert "connection: close" in client.head
        assert await client.rest() == b""

    run(work)


def test_a_client_that_leaves_is_missed_though_it_had_sent_another_request():
    async def work(made: Site) -> None:
        client = await made.connect(get("/held") + get("/b"))
        await made.until(lambda: made.app.held)
        client.writer.close()
        await made.app.left.wait()

    run(work)


@pytest.mark.parametrize("path", ["/a", "/held"])
def test_a_client_that_only_sends_no_more_gets_its_answers(path: str):
    async def work(made: Site) -> None:
        client = await made.connect(get("/a") + get(path) + post("/b", b"body"))
        client.writer.write_eof()
        assert await client.answer() == (200, ["GET", "/a", ""])
        if path == "/held":
            await made.until(lambda: made.app.held)
            assert await client.answer() == (100, None)  # after a while it is asked whether it is still there
            made.app.let.set()
        assert await client.answer() == (200, ["GET", path, ""])
        assert await client.answer() == (200, ["POST", "/b", "body"])
        assert "connection: close" in client.head
        assert await client.rest() == b""

    run(work)


def test_a_client_of_http_1_0_that_sends_no_more_gets_its_answer_alone():
    async def work(made: Site) -> None:
        client = await made.connect(b"GET /held HTTP/1.0\r\n\r\n")
        client.writer.write_eof()
        await made.until(lambda: made.app.held)
        await asyncio.sleep(0.6)  # longer than others have until they are asked
        made.app.let.set()
        assert await client.answer() == (200, ["GET", "/held", ""])

    run(work)


@pytest.mark.parametrize("cut", [b"GET /a HT", post("/a", b"body")[:-1], CHUNKED + b"5\r\nab"])
def test_a_request_whose_end_does_not_come_is_refused(cut: bytes):
    async def work(made: Site) -> None:
        client = await made.connect(get("/a") + cut)
        client.writer.write_eof()
        assert await client.answer() == (200, ["GET", "/a", ""])
        status, said = await client.answer()
        assert (status, said["error"]) == (400, "the request ended before its head and its body were complete")
        assert await client.rest() == b""

    run(work)


def test_clients_that_ask_again_and_again_keep_their_connections():
    """Nobody is cut off for a newcomer, who gets in where one of them stops."""

    async def work(made: Site) -> None:
        clients = [await made.connect() for _ in range(3)]
        ended = asyncio.Event()

        async def ask(client: Client) -> None:
            while not ended.is_set():
                client.send(get("/a"))
                assert (await client.answer())[0] == 200
                await asyncio.sleep(0.01)

        asking = [asyncio.ensure_future(ask(client)) for client in clients]
        await asyncio.sleep(0.05)
        for path, status in (("/v2/health/live", 200), ("/a", 503)):
            one_more = await made.connect(get(path))
            assert (await one_more.answer())[0] == status
        assert "retry-after: 1" in one_more.head
        ended.set()
        await asyncio.gather(*asking)
        one_more = await made.connect(get("/a"))
        assert (await one_more.answer())[0] == 200
        await made.until(lambda: any(client.reader.at_eof() for client in clients))
        assert made.server._counts.refused == 1
        assert made.server._counts.aborted == {"idle": 1}

    run(work, max_connections=3, min_idle_s=0.3)


def test_a_newcomer_does_not_wait_for_a_client_that_does_not_read_its_answer():
    """Its connection is idle and cannot be closed yet."""

    async def work(made: Site) -> None:
        await made.connect(post("/a", b"x" * 2**25))
        await made.until(lambda: any(one.cycle and one.cycle.response_complete for one in made.server._places._taken))
        newcomer = await made.connect(get("/a"))
        assert (await newcomer.answer())[0] == 503

    run(work, max_connections=1, min_idle_s=0.1)


def test_from_a_signal_on_each_answer_says_that_its_connection_closes():
    async def work(made: Site) -> None:
        busy = await made.connect(get("/held") + get("/held"))
        idle = await made.connect(get("/a"))
        assert (await idle.answer())[0] == 200
        await made.until(lambda: made.app.held)
        made.server.leave()
        made.app.let.set()
        assert await busy.answer() == (200, ["GET", "/held", ""])
        assert "connection: close" not in busy.head  # another request was there before
        assert await busy.answer() == (200, ["GET", "/held", ""])
        assert "connection: close" in busy.head
        late = await made.connect()
        for client in (idle, late):
            client.send(get("/a") + get("/b"))
            assert await client.answer() == (200, ["GET", "/a", ""])
            assert await client.answer() == (200, ["GET", "/b", ""])
            assert client.head.count("connection: close") == 1
        for client in (busy, idle, late):
            assert await client.rest() == b""

    run(work)


def test_a_head_that_has_arrived_is_read_though_its_time_is_up():
    """The event loop was busy meanwhile: its timers come before what it reads."""

    async def work(made: Site) -> None:
        made.server._limits = ConnectionLimits(20, 0.1)
        with socket.create_connection(("127.0.0.1", made.port)) as client:
            await made.until(lambda: made.server.server_state.connections)
            client.sendall(get("/a"))
            time.sleep(0.3)
            client.setblocking(False)
            answer = await asyncio.get_running_loop().sock_recv(client, 1000)
            assert answer.startswith(b"HTTP/1.1 200 ")

    run(work)
