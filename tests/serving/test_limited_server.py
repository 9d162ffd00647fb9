"""Sockets in the clear and with TLS, whose handshakes are not waited for."""

import asyncio
import contextlib
import inspect
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from uvicorn.lifespan.off import LifespanOff
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from regnet_deploy.errors import ServerError
from regnet_deploy.serving import limited_server
from regnet_deploy.serving.connection_limits import ConnectionLimits
from regnet_deploy.serving.limited_server import LimitedServer, check_uvicorn

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, file = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extension = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-addext", extension, "-keyout", str(key), "-out", str(file)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return file, key


async def app(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    more = True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    said = f"{scope['scheme']} {size}".encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


class Site(NamedTuple):
    """A server, and how clients come to it."""

    server: uvicorn.Server
    port: int
    tls: ssl.SSLContext | None
    stack: contextlib.ExitStack

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        self.stack.callback(writer.close)
        return reader, writer

    async def silent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.stack.callback(writer.close)
        return reader, writer

    async def ask(self, request: bytes = ASK) -> bytes:
        reader, writer = await self.connect()
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        return await reader.read(100)


@contextlib.asynccontextmanager
async def site(files: tuple[Path, Path] | None, most: int, timeout_s: float) -> AsyncIterator[Site]:
    file, key = files or (None, None)
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        ws="none",
        log_config=None,
        ssl_certfile=file,
        ssl_keyfile=key,
    )
    config.load()
    server = LimitedServer(config, ConnectionLimits(most, timeout_s))
    server.lifespan = config.lifespan_class(config)
    bound = socket.create_server(("127.0.0.1", 0))
    await server.startup([bound])
    tls = ssl.create_default_context(cafile=str(file)) if files else None
    with contextlib.ExitStack() as stack:
        yield Site(server, bound.getsockname()[1], tls, stack)
    server.force_exit = True
    await server.shutdown([bound])


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs work at a site."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def go(
        work: Callable[[Site], Awaitable[None]],
        files: tuple[Path, Path] | None,
        most: int = 20,
        timeout_s: float = 30.0,
    ) -> None:
        async def inner() -> None:
            async with asyncio.timeout(30), site(files, most, timeout_s) as made:
                await work(made)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(inner())

    return go


def test_it_answers_in_the_clear(run: Any):
    async def work(made: Site) -> None:
        assert await made.ask() == b"http 0"

    run(work, None)


def test_it_answers_over_tls(run: Any, certificate: Any):
    async def work(made: Site) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        answers = await asyncio.gather(*(made.ask(head + bytes(1_000_000)) for _ in range(10)))
        assert answers == [b"https 1000000"] * 10
        reader, writer = await made.connect()
        for _ in range(20):
            writer.write(ASK)
            await reader.readuntil(b"https 0")

    run(work, certificate)


def test_a_handshake_that_does_not_come_is_not_waited_for(run: Any, certificate: Any):
    async def work(made: Site) -> None:
        reader, _ = await made.silent()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""

    run(work, certificate, timeout_s=0.1)


def test_an_uvicorn_that_lacks_a_hook_is_one_line(monkeypatch: pytest.MonkeyPatch):
    check_uvicorn()

    class Cycle:
        def __init__(self) -> None:
            self.scope = self.body = None

    monkeypatch.delattr(limited_server.HttpToolsProtocol, "on_response_complete")
    attributes = {Cycle: ("scope", "keep_alive", "body")}
    monkeypatch.setattr(limited_server, "_ATTRIBUTES", attributes)
    with pytest.raises(ServerError) as error:
        check_uvicorn()
    versions = limited_server.UVICORN_VERSIONS
    assert str(error.value) == (
        f"uvicorn {uvicorn.__version__} lacks HttpToolsProtocol.on_response_complete, Cycle.keep_alive; this server "
        f"works with uvicorn {versions}: pip install 'uvicorn[standard]{versions}'"
    )
    assert error.value.exit_code == 2


def test_an_attribute_may_be_assigned_in_any_method_and_reading_it_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    class Server:
        async def startup(self) -> None:
            self.servers: list[int] = []
            print(self.lifespan)  # type: ignore[attr-defined]

    monkeypatch.setattr(limited_server, "_ATTRIBUTES", {Server: ("servers", "lifespan")})
    with pytest.raises(ServerError, match=r"lacks Server\.lifespan; this"):
        check_uvicorn()


@pytest.mark.parametrize("owner", [HttpToolsProtocol, LifespanOff, uvicorn.Config, uvicorn.Server])
def test_an_uvicorn_whose_objects_lack_what_is_used_is_refused(owner: type, monkeypatch: pytest.MonkeyPatch):
    used = {
        HttpToolsProtocol: "HttpToolsProtocol.url",
        LifespanOff: "LifespanOff.state",
        uvicorn.Config: "Config.loaded_app, Config.ssl",
        uvicorn.Server: "Server.lifespan, Server.server_state, Server.servers",
    }
    for name, method in list(vars(owner).items()):
        if inspect.isfunction(method):
            monkeypatch.setattr(owner, name, len)
    with pytest.raises(ServerError) as error:
        check_uvicorn()
    for name in used[owner].split(", "):
        assert name in str(error.value)


def test_a_socket_that_cannot_be_served_is_an_error_and_the_server_has_not_started(run: Any):
    async def work(place: Site) -> None:
        server = LimitedServer(place.server.config, ConnectionLimits(8, 5.0))
        server.lifespan = place.server.lifespan
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            pytest.raises(ServerError, match="cannot listen on"),
        ):
            await server.startup([datagrams])
        assert not server.started

    run(work, None)


def test_the_versions_that_are_named_are_those_that_are_installed():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"uvicorn[standard]{limited_server.UVICORN_VERSIONS}"' in text
