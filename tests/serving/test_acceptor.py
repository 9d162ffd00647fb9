"""Connections that are accepted, or wait until there is room for them."""

import asyncio
import errno
import gc
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.serving import acceptor
from regnet_deploy.serving.acceptor import Acceptor
from regnet_deploy.serving.connection_places import ConnectionCounts


class Greeting(asyncio.Protocol):
    """Says ``hi`` and waits for the end."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hi")  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()


class Bound(socket.socket):
    """A socket whose next accepts fail."""

    failures = 0

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def bound() -> Any:
    with Bound() as one:
        one.bind(("127.0.0.1", 0))
        yield one


def run(work: Any) -> None:
    async def inner() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(inner())


async def greeted(bound: socket.socket, tls: ssl.SSLContext | None = None) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection(*bound.getsockname(), ssl=tls)
    assert await reader.readexactly(2) == b"hi"
    return writer


def test_no_more_are_open_than_allowed_and_the_others_wait(bound: Bound):
    async def work() -> None:
        counts, asked = ConnectionCounts(), []
        accepting = Acceptor(bound, Greeting, counts, 2, lambda: asked.append(counts.open))
        first, second = await greeted(bound), await greeted(bound)
        third = asyncio.ensure_future(greeted(bound))
        await asyncio.sleep(0.1)
        assert (counts.open, asked, third.done()) == (2, [2], False)
        first.close()
        (await third).close()
        second.close()
        accepting.close()
        await accepting.wait_closed()
        while counts.open:
            await asyncio.sleep(0.01)

    run(work)


def test_where_there_are_no_more_files_it_is_logged_once_and_tried_again(
    bound: Bound, caplog: pytest.LogCaptureFixture
):
    async def work() -> None:
        counts = ConnectionCounts()
        accepting = Acceptor(bound, Greeting, counts, 2, lambda: None)
        for times in (1, 2):
            bound.failures = 3
            (await greeted(bound)).close()
            assert counts.aborted == {"files": times}
        accepting.close()

    with caplog.at_level(logging.WARNING):
        run(work)
    said = ["connections cannot be accepted, and wait: Too many open files", "connections are accepted again"]
    assert [record.getMessage() for record in caplog.records] == 2 * said


def test_a_defect_takes_no_place(bound: Bound):
    made: list[Callable[[], None]] = []

    def broken_at_first(lost: Callable[[], None]) -> Greeting:
        made.append(lost)
        if len(made) == 1:
            raise RuntimeError("a defect")
        return Greeting(lost)

    async def work() -> None:
        errors: list[BaseException | None] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context.get("exception")))
        counts = ConnectionCounts()
        accepting = Acceptor(bound, broken_at_first, counts, 1, lambda: None)
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        assert await reader.read() == b""
        writer.close()
        (await greeted(bound)).close()
        accepting.close()
        gc.collect()
        assert list(map(str, errors)) == ["a defect"]

    run(work)


def test_a_handshake_that_takes_long_is_ended_for_another_connection(
    bound: Bound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, file = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run([*command.split(), *extension], check=True, capture_output=True)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(file, key)
    monkeypatch.setattr(acceptor, "_HANDSHAKE_GRACE_S", 0.2)

    async def work() -> None:
        counts = ConnectionCounts()
        accepting = Acceptor(bound, Greeting, counts, 1, lambda: None, server_tls, 30.0)
        with socket.create_connection(bound.getsockname()):
            while not counts.open:
                await asyncio.sleep(0.01)
            (await greeted(bound, ssl.create_default_context(cafile=str(file)))).close()
        assert counts.aborted == {"handshake": 1}
        accepting.close()

    run(work)
