"""A server's inside without sockets: an assembly that runs on a loop of its own, and clients that speak ASGI to it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from regnet_deploy.serving.admission import ServerState
from regnet_deploy.serving.app import create_app
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.server_core import ServerCore

LIMITS = Limits(
    max_batch=4, max_body_bytes=200_000, max_pixels=250_000, max_in_flight=64, max_queue=32, read_timeout_s=5
)


class Inside:
    """An assembly that is started, its loop and its application; requests are httpx's."""

    def __init__(self, core: ServerCore, **app: Any) -> None:
        self.core = core
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.run(core.start())
        core.service.admission.state = ServerState.READY
        self.app = create_app(core.service, **app)

    def run(self, work: Awaitable[Any]) -> Any:
        """Wait for work that is done on the assembly's loop."""

        async def done() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(60)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the assembly's loop."""

        async def done() -> Any:
            return function(*arguments)

        return self.run(done())

    def request(self, method: str, path: str, raises: bool = True, **options: Any) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=raises)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        response: httpx.Response = self.run(request())
        return response

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def close(self) -> None:
        self.run(self.core.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


Open = Callable[..., Inside]


@pytest.fixture
def inside(exported_bundle: Path) -> Iterator[Open]:
    """Opens assemblies of a bundle, by default the tiny one with FP32 input; closes them after the test."""
    opened: list[Inside] = []

    def open_one(
        path: Path | None = None,
        app: dict[str, Any] | None = None,
        log_event: Callable[..., None] = lambda event, **facts: None,
        **settings: Any,
    ) -> Inside:
        settings = {
            "options": ServeOptions(variant="onnx-fp32"),
            "limits": LIMITS,
            "decoders": 1,
            "poll_s": 0,
            **settings,
        }
        one = Inside(ServerCore(path or exported_bundle, CoreSettings(**settings), log_event=log_event), **(app or {}))
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def client(_exported: Path) -> Iterator[Inside]:
    """One assembly of the tiny bundle for all tests of a module that change nothing of it."""
    one = Inside(
        ServerCore(
            _exported, CoreSettings(options=ServeOptions(variant="onnx-fp32"), limits=LIMITS, decoders=1, poll_s=0)
        )
    )
    yield one
    one.close()
