"""A server in a thread of the process that uses it."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.errors import MissingExtra, RegnetDeployError, ServerError, UsageError
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.load_testing.payloads import as_files
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.serving.in_process import RunningServer
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.server import ServerSettings


def settings(**changed: Any) -> ServerSettings:
    options = {"name": "tiny", "port": 0, "decoders": 1, "model": ServeOptions(variant="onnx-fp32"), **changed}
    return ServerSettings(**options)


def get(server: RunningServer, path: str, headers: dict[str, str] | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers or {}), timeout=20) as answer:
        return json.loads(answer.read() or "null")


def metrics(server: RunningServer) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as answer:
        return str(answer.read(), "utf-8")


def server_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "regnet-deploy"]


def test_it_answers_until_it_is_closed_and_can_be_closed_again(exported_bundle: Path):
    server = RunningServer(exported_bundle, settings())
    assert get(server, "/v2/models/tiny")["name"] == "tiny"
    assert server.grpc_port is None
    server.close()
    server.close()
    assert server_threads() == []
    with pytest.raises(urllib.error.URLError):
        get(server, "/v2/health/live")


def test_to_close_it_drains_at_once_whatever_signals_wait_for(exported_bundle: Path):
    with RunningServer(exported_bundle, settings(linger_s=600.0)):
        start = time.monotonic()
    assert time.monotonic() - start < 60


def test_a_start_that_fails_raises_and_leaves_no_thread(exported_bundle: Path):
    with pytest.raises(RegnetDeployError, match="onnx-fp99"):
        RunningServer(exported_bundle, settings(model=ServeOptions(variant="onnx-fp99")))
    assert server_threads() == []


def test_an_interrupt_while_it_starts_leaves_no_server(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread() and not self.is_set() and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt
            return super().wait(timeout)

    interrupted: list[bool] = []

    class Threading:
        Event = Interrupted
        Thread, Lock = threading.Thread, threading.Lock

    monkeypatch.setattr("regnet_deploy.serving.in_process.threading", Threading)
    with pytest.raises(KeyboardInterrupt):
        RunningServer(exported_bundle, settings())
    assert server_threads() == []


def test_a_failure_is_raised_once_however_many_threads_close(monkeypatch: pytest.MonkeyPatch):
    def fail(path: Any, settings: Any, announce: Any, stop: threading.Event) -> None:
        class Ready:
            url, grpc_port = "http://x", None

        announce(Ready())
        stop.wait(30)
        raise ServerError("1 requests were cut off")

    def close(server: RunningServer) -> str | None:
        try:
            server.close()
        except ServerError as error:
            return str(error)
        return None

    monkeypatch.setattr("regnet_deploy.serving.in_process.run_server", fail)
    server = RunningServer("nowhere", settings())
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(close, [server] * 8))
    assert [outcome for outcome in outcomes if outcome is not None] == ["1 requests were cut off"]


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="needs Linux")
def test_its_event_loop_alone_has_batch_scheduling(exported_bundle: Path):
    with RunningServer(exported_bundle, settings()):
        (loop,) = server_threads()
        assert loop.native_id is not None
        if os.sched_getscheduler(loop.native_id) != os.SCHED_BATCH:
            pytest.skip("needs the permission to change the scheduling policy")
        others = {int(task) for task in os.listdir("/proc/self/task")} - {loop.native_id}
        decoders = {int(pid) for pid in Path(f"/proc/self/task/{loop.native_id}/children").read_text().split()}
        assert decoders
        assert {os.sched_getscheduler(task) for task in others | decoders} == {os.SCHED_OTHER}


def test_loggers_are_left_as_they_were(exported_bundle: Path, capfd: pytest.CaptureFixture[str]):
    def state() -> list[Any]:
        return [
            (logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters))
            for logger in map(logging.getLogger, names)
        ]

    names = ("regnet_deploy.serving", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "grpc", "opentelemetry")
    before = state()
    first = RunningServer(exported_bundle, settings(metrics_port=0))
    with RunningServer(exported_bundle, settings()) as second:
        first.close()
        logging.getLogger("asyncio").warning("of the program around it")
        assert get(second, "/v2/models/tiny")["name"] == "tiny"
    assert state() == before
    assert "of the program around it" not in capfd.readouterr().err


def test_what_it_cuts_off_leaves_the_loggers_as_they_were(exported_bundle: Path):
    error = logging.getLogger("uvicorn.error")
    before = (error.disabled, list(error.filters))
    server = RunningServer(exported_bundle, settings(drain_s=0.1))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")
        while "in_flight_requests 1.0" not in metrics(server):
            time.sleep(0.01)
        with pytest.raises(ServerError, match="1 requests were cut off"):
            server.close()
    assert (error.disabled, list(error.filters)) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token": ""}, "the token must be 16 or more printable ASCII"),
        ({"token": "short"}, "the token must be 16 or more printable ASCII"),
        ({"name": "bad name/.."}, "the model name 'bad name/..' must be letters"),
        ({"port": 70_000}, "port must be a number from 0 to 65535"),
        ({"grpc_port": -1}, "grpc_port must be a number from 0 to 65535"),
        ({"decoders": 0}, "decoders must be 1 or more"),
        ({"drain_s": float("nan")}, "drain_s must be a number of seconds"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        settings(**changed)


def test_limits_that_cannot_be_used_are_refused():
    with pytest.raises(UsageError, match="for all requests together is less than one request of 2 MB"):
        Limits(max_body_bytes=2_000_000, max_bodies_bytes=1_000_000)
    with pytest.raises(UsageError, match="max_queue must be a positive number, not 0"):
        Limits(max_queue=0)


def test_an_engine_is_built_for_a_variant_that_is_named():
    with pytest.raises(UsageError, match="built for one variant"):
        ServeOptions(build=lambda *given: pytest.fail("was built"))


def test_the_token_is_not_shown():
    assert "secret" not in repr(settings(token="secret-secret-secret"))


def test_a_token_is_asked_for(exported_bundle: Path):
    with RunningServer(exported_bundle, settings(token="t" * 16)) as server:
        assert get(server, "/v2/models/tiny", {"authorization": f"Bearer {'t' * 16}"})["name"] == "tiny"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(server, "/v2/models/tiny", {"authorization": "Bearer "})


def test_tls_files_that_are_not_there_are_one_error(exported_bundle: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"nowhere\.pem .* cannot be used: No such file"):
        RunningServer(exported_bundle, settings(tls=(tmp_path / "nowhere.pem", tmp_path / "key.pem")))


@pytest.mark.parametrize("module", ["grpc", "google.protobuf"])
def test_grpc_needs_its_extra(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, module: str):
    def require(name: str, extra: str) -> None:
        if name == module:
            raise MissingExtra(f"this needs {name}")

    monkeypatch.setattr("regnet_deploy.serving.server.require", require)
    with pytest.raises(MissingExtra, match=module):
        RunningServer(exported_bundle, settings(grpc_port=0))


@pytest.mark.parametrize(
    ("variant", "datatype", "shape"),
    [("onnx-fp32", "FP32", [1, 24, 24]), ("onnx-fp32-uint8", "UINT8", [24, 24, 1])],
)
def test_a_gray_network_takes_images_and_tensors(gray_bundle: Path, variant: str, datatype: str, shape: list[int]):
    bundle = open_bundle(gray_bundle)
    golden, preprocessing = load_golden(bundle), bundle.preprocessing
    with RunningServer(gray_bundle, settings(model=ServeOptions(variant=variant))) as server:
        expected = {"name": "images", "datatype": datatype, "shape": [-1, *shape]}
        assert get(server, "/v2/models/tiny")["inputs"] == [expected]

        def post(path: str, body: bytes) -> Any:
            with urllib.request.urlopen(urllib.request.Request(server.url + path, body), timeout=20) as answer:
                return json.loads(answer.read())

        images = golden.images[:2] if datatype == "UINT8" else normalize(golden.images[:2], preprocessing)
        tensor = {**expected, "shape": [2, *shape], "data": images.ravel().tolist()}
        (output,) = post("/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], (2, -1)), golden.logits[:2], atol=1e-4)
        for file, logits in zip(as_files(golden.images[:2], preprocessing), golden.logits, strict=False):
            assert post("/classify?k=1", file)["predictions"][0]["index"] == logits.argmax()
