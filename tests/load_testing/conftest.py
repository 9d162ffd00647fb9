"""A server without a network: what it answers, and how late, is the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from regnet_deploy.load_testing.target import Target

#: Head and body of a request to the bytes that are sent back; None closes the connection instead.
Answer = Callable[[bytes, bytes], "bytes | None"]


def http(status: int, body: bytes = b"", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Any\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


class Fake:
    """A server on a thread of its own."""

    def __init__(self, answer: Answer, delay_s: Callable[[int], float]) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self._answer = answer
        self._delay_s = delay_s

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0")
                body = await reader.readexactly(int(size.partition(b":")[2]))
                self.requests.append((head, body))
                if delay := self._delay_s(len(self.requests)):
                    await asyncio.sleep(delay)
                answer = self._answer(head, body)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


@contextmanager
def _serve(answer: Answer, delay_s: Callable[[int], float], context: Any) -> Iterator[tuple[Target, Fake]]:
    fake, started, ports = Fake(answer, delay_s), threading.Event(), []
    loop = asyncio.new_event_loop()

    async def main() -> None:
        server = await asyncio.start_server(fake.talk, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])
        await server.wait_closed()
        await asyncio.sleep(0)  # transports let go of their sockets

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert started.wait(10)
    try:
        yield Target("127.0.0.1", ports[0], tls=context is not None), fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


@pytest.fixture
def fake() -> Any:
    """Return a function that starts such a server; the value of its context is where it is and what it saw."""

    def start(
        answer: Answer = lambda head, body: http(200, body), delay_s: Any = lambda count: 0.0, context: Any = None
    ) -> Any:
        return _serve(answer, delay_s, context)

    return start


@pytest.fixture
def answer() -> Any:
    """Return a function that makes an HTTP answer."""
    return http
