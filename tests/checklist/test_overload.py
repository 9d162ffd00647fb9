"""Checklist 11-14: how slowly a client may send, and how much all of them together."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def hasty(launch_shared: Any) -> Any:
    """A server that waits for no one, and not for many."""
    return launch_shared("--read-timeout", "0.6", "--max-connections", "8", "--grpc-port", "0")


@pytest.fixture(scope="module")
def narrow(launch_shared: Any) -> Any:
    """A server that does not wait for many, but long."""
    return launch_shared("--max-connections", "8")


def head(*fields: str, path: str = "/classify") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def test_11_who_sends_slowly_is_not_waited_for(hasty: Any, tools: Any):
    """One byte at a time, for ever: the head, a body with a length, one in chunks; and who does not read."""
    beginnings = [
        b"GET / HTTP/1.1\r\nX: ",
        head("Content-Length: 100000"),
        head("Content-Length: 100000", path="/v2/models/regnet/infer"),
        head("Transfer-Encoding: chunked"),
        head("Content-Type: multipart/form-data; boundary=x", "Content-Length: 100000"),
    ]

    def trickle(beginning: bytes) -> bytes:
        byte = b"1\r\nx\r\n" if b"chunked" in beginning else b"x"
        with hasty.connect() as connection:
            connection.sendall(beginning)
            connection.settimeout(0.02)
            give_up = time.monotonic() + 60
            while time.monotonic() < give_up:
                with contextlib.suppress(OSError):
                    connection.sendall(byte)
                try:
                    return connection.recv(1000)
                except TimeoutError:
                    continue
                except ConnectionError:
                    return b""
        pytest.fail("it was waited for")

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(trickle, beginnings))
    assert answers[0] == b""
    for answer in answers[1:]:
        assert answer.startswith(b"HTTP/1.1 408 ")
    hasty.answers()


def test_11b_nor_who_says_nothing_over_grpc(hasty: Any):
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(hasty.grpc) as channel:
        call = channel.stream_unary(INFER).future(nothing(), timeout=60)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert call.details() == "the call's message did not arrive within 0.6 s"
        over.set()


def test_11c_nor_who_does_not_read_its_answers(hasty: Any):
    with hasty.connect() as connection:
        ask = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"
        give_up = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            connection.sendall(ask * 90)  # megabytes of pages
            while time.monotonic() < give_up:
                time.sleep(0.01)
                connection.sendall(ask)
        assert time.monotonic() < give_up
    assert "Traceback" not in hasty.log
    hasty.answers()


def test_12a_there_are_so_many_connections_and_no_more(narrow: Any, tools: Any):
    """All of them busy: a few more are let in for questions about health, and then none."""
    tools.wait_until(lambda: open_connections(narrow) == 0)
    refusal = "8 connections are open already, try again"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            busy = stack.enter_context(narrow.connect())
            busy.sendall(head("Content-Length: 1000"))
        health = stack.enter_context(narrow.connect())
        health.sendall(LIVE)
        assert tools.read_reply(health).status == 200
        for reply in (narrow.get("/v2"), narrow.post("/classify", bytes(1_000_000))):
            assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
            assert reply.error == refusal
        replies = []
        for _ in range(10):
            silent = stack.enter_context(narrow.connect())
            silent.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                replies.append(tools.read_reply(silent))
        assert [reply.error for reply in replies if reply.status == 503] == [refusal] * len(replies)
        assert replies
    tools.wait_until(lambda: narrow.get("/v2/health/live").status == 200)
    narrow.answers()


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def test_12b_connections_that_are_only_kept_are_in_nobodys_way(hasty: Any, tools: Any):
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(hasty.connect())
            connection.sendall(LIVE)
            assert tools.read_reply(connection).status == 200
        assert open_connections(hasty) <= 8
        hasty.answers()


def open_connections(server: Any) -> int:
    rows = Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[1].endswith(f":{server.port:04X}") and row.split()[3] == "01" for row in rows)


def test_13_a_full_queue_says_so_at_once_and_health_is_well(gated: Any, tools: Any):
    """Ten times as many as there is room for: one runs, four wait, the others are told before any of these is done."""
    gated.gate("")
    body = tools.infer_body()
    with ThreadPoolExecutor(50) as pool:
        held = [pool.submit(gated.infer, body)]
        tools.wait_until(lambda: metric(gated, "running") == 1)
        held += [pool.submit(gated.infer, body) for _ in range(4)]
        tools.wait_until(lambda: metric(gated, "queue") == 4)
        begin = time.monotonic()
        refused = [future.result() for future in [pool.submit(gated.infer, body) for _ in range(45)]]
        print(f"45 refusals in {time.monotonic() - begin:.3f} s")
        assert not any(future.done() for future in held)
        for reply in refused:
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "waiting already" in reply.error
        assert gated.post("/classify", tools.image()).status == 503
        with grpc.insecure_channel(gated.grpc) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(INFER)(grpc_infer(tools.tensor()), timeout=30)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/regnet/ready"):
            assert gated.get(path).status == 200
        gated.gate(None)
        assert [future.result().status for future in held] == [200] * 5


def metric(server: Any, what: str) -> float:
    names = {"running": "regnet_deploy_running_images", "queue": "regnet_deploy_queue_images"}
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names[what]))


def grpc_infer(images: np.ndarray) -> bytes:
    from tritonclient.grpc import service_pb2

    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=images.shape)
    request = service_pb2.ModelInferRequest(model_name="regnet", inputs=[tensor])
    request.raw_input_contents.append(images.tobytes())
    return bytes(request.SerializeToString())


def test_14_what_waits_past_its_deadline_is_told_and_not_run(gated: Any, tools: Any):
    before = gated.stats()["inference_count"]
    gated.gate("")
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(gated.infer)
        tools.wait_until(lambda: metric(gated, "running") == 1)
        body = json.dumps({**tools.infer_document(), "parameters": {"timeout": 100_000}}).encode()
        reply = gated.infer(body)
        assert reply.status == 504
        assert reply.error == "the request's deadline passed before its inference was done"
        with grpc.insecure_channel(gated.grpc) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(INFER)(grpc_infer(tools.tensor()), timeout=0.1)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        tools.wait_until(lambda: metric(gated, "queue") == 0)
        gated.gate(None)
        assert running.result().status == 200
    assert gated.infer().status == 200
    assert gated.stats()["inference_count"] == before + 2
