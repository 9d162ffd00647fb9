import asyncio
import json
import signal
import socket
from types import SimpleNamespace

import pytest

from regnet_deploy.errors import ServerError
from regnet_deploy.serving.admission import Admission
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.metrics_server import LIMITS, start_metrics


def bound() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(1)
    return made


def test_a_socket_that_cannot_be_served_is_an_error_at_the_start():
    async def start() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            pytest.raises(ServerError, match="cannot listen on"),
        ):
            await start_metrics(made_metrics(), datagrams)

    asyncio.run(start())


def made_metrics() -> Metrics:
    return Metrics(SimpleNamespace(all=list, index=list, ready=lambda: True), Admission(4))


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of its own; return status, headers and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def request(line: str) -> bytes:
    return f"{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()


def served(talk):
    """Run ``talk(port)`` against a server of metrics; it must end when it is told to."""

    async def run():
        before = signal.getsignal(signal.SIGTERM)
        listening = bound()
        port = listening.getsockname()[1]
        server = await start_metrics(made_metrics(), listening)
        assert signal.getsignal(signal.SIGTERM) is before, "signals are the other server's"
        try:
            return await talk(port)
        finally:
            await asyncio.wait_for(server.stop(), 20)
            assert listening.fileno() == -1

    return asyncio.run(run())


def test_metrics_and_nothing_else_is_answered():
    async def talk(port):
        status, headers, body = await ask(port, request("GET /metrics"))
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"regnet_deploy_ready 1.0\n" in body
        assert "access-control-allow-origin" not in headers
        status, headers, body = await ask(port, request("HEAD /metrics"))
        assert (status, body) == (200, b"")
        for line, wanted in (("POST /metrics", 405), ("GET /", 404), ("GET /metrics/", 404), ("GET /v2", 404)):
            status, headers, body = await ask(port, request(line))
            assert status == wanted
            assert "GET /metrics is all there is" in json.loads(body)["error"]
        assert (await ask(port, b"nonsense\r\n\r\n"))[0] == 400

    served(talk)


def test_checklist_12_connections_are_limited():
    async def talk(port):
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LIMITS.max_connections)]
        assert (await ask(port, request("GET /metrics")))[0] == 503
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()

    served(talk)


def test_a_server_that_is_stopped_closes_idle_connections():
    idle = socket.socket()
    idle.settimeout(20)

    async def talk(port):
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, idle.connect, ("127.0.0.1", port))
        idle.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await loop.run_in_executor(None, idle.recv, 12)) == b"HTTP/1.1 200"

    with idle:
        served(talk)
        while idle.recv(65536):
            pass
