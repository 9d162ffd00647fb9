"""The application under an ASGI server of somebody else's."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes, load_golden
from regnet_deploy.serving.embedding import create_application
from regnet_deploy.serving.model_version import ServeOptions

SETTINGS: dict[str, Any] = {"options": ServeOptions(variant="onnx-fp32"), "decoders": 1, "poll_s": 0}
TOKEN = "0123456789abcdef"


@contextlib.contextmanager
def hosted(app: Any) -> Iterator[tuple[uvicorn.Server, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, lifespan="on", log_config=None, ws="none")
        server = uvicorn.Server(config)

        def run() -> None:
            with contextlib.suppress(SystemExit):  # of a startup that failed
                asyncio.run(server.serve([listening]))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def threads_end(count: int) -> None:
    """Wait until there are only so many threads: one that has given its result takes a moment to end."""
    end = time.monotonic() + 30
    while threading.active_count() > count:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.005)


@pytest.mark.parametrize("token", ["", " ", "a", "geh\u00e9im-0123456789abcdef", "two words 0123456789"])
def test_what_is_no_token_is_refused_before_anything_is_opened(tmp_path: Path, token: str):
    with pytest.raises(UsageError, match="16 or more printable ASCII"):
        create_application(tmp_path / "nowhere", token=token, **SETTINGS)


def test_the_line_end_of_a_token_is_no_part_of_it(exported_bundle: Path):
    app = create_application(exported_bundle, name="cats", token=f"{TOKEN}\n", **SETTINGS)
    with hosted(app) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        for given, status in ((TOKEN, 200), ("x", 401), (f"{TOKEN}x", 401)):
            answer = client.get("/v2/models/cats", headers={"authorization": f"Bearer {given}"})
            assert answer.status_code == status


def test_it_lives_and_ends_with_its_host(exported_bundle: Path):
    before = threading.active_count()
    app = create_application(exported_bundle, name="cats", token=TOKEN, **SETTINGS)
    with hosted(app) as (server, url), httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/cats").status_code == 401
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert client.get("/v2/models/cats").json()["versions"] == ["1"]
        refused = client.post("/classify", content=b"x")
        assert (refused.status_code, set(refused.json())) == (400, {"error"})
        assert b"regnet_deploy_requests" in client.get("/metrics").content
    assert not server.lifespan.startup_failed
    assert not server.lifespan.shutdown_failed
    threads_end(before)


def test_without_a_token_it_shows_no_metrics(exported_bundle: Path):
    with hosted(create_application(exported_bundle, **SETTINGS)) as (_, url):
        assert httpx.get(url + "/metrics").status_code == 404
        assert httpx.get(url + "/v2/health/ready").status_code == 200


def test_it_is_mounted_in_another_application_as_the_documentation_says(exported_bundle: Path):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    vision = create_application(exported_bundle, **SETTINGS)
    host = Starlette(lifespan=vision.lifespan, routes=[Mount("/vision", vision)])
    with hosted(host) as (server, url):
        assert httpx.get(url + "/vision/v2/health/ready").status_code == 200
        assert httpx.get(url + "/vision/v2/models/regnet").json()["versions"] == ["1"]
    assert not server.lifespan.shutdown_failed


def messages(app: Any, *events: str) -> list[Any]:
    """What an application says to the events of a lifespan."""
    sent: list[Any] = []
    left = iter(events)

    async def receive() -> Any:
        return {"type": next(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "lifespan"}, receive, send))
    return sent


def test_a_lifespan_is_told_as_the_specification_has_it(exported_bundle: Path):
    said = messages(create_application(exported_bundle, **SETTINGS), "lifespan.startup", "lifespan.shutdown")
    assert [message["type"] for message in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_golden_set_that_disagrees_ends_the_host_before_it_answers_and_leaves_nothing(
    exported_bundle: Path, caplog: pytest.LogCaptureFixture
):
    golden = load_golden(open_bundle(exported_bundle))
    bad = golden_to_bytes(GoldenSet(golden.images, golden.logits + 1))
    update_bundle(exported_bundle, {}, {"golden.safetensors": bad})
    before = threading.active_count()
    app = create_application(exported_bundle, **SETTINGS)
    with caplog.at_level(logging.CRITICAL, "uvicorn.error"), hosted(app) as (server, _):
        pass
    assert server.lifespan.startup_failed
    assert not server.started
    threads_end(before)
    with pytest.raises(ProofError):
        messages(create_application(exported_bundle, **SETTINGS), "lifespan.startup")


def test_a_shutdown_that_fails_is_told_as_one(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    from regnet_deploy.serving.server_core import ServerCore

    stop = ServerCore.stop

    async def fails(self: ServerCore) -> None:
        await stop(self)
        raise OSError("a disk is full")

    monkeypatch.setattr(ServerCore, "stop", fails)
    sent: list[Any] = []
    app = create_application(exported_bundle, **SETTINGS)

    async def host() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        events = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Any:
            return {"type": next(events)}

        with pytest.raises(OSError, match="a disk is full"):
            await app({"type": "lifespan"}, receive, send)

    asyncio.run(host())
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
