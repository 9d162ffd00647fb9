"""Checklist 31-35: the beginning, the end, and what breaks between them."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

LIVE, READY = "/v2/health/live", "/v2/health/ready"


def metric(server: Any, name: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"regnet_deploy_{name}"))


def test_31a_sigterm_lets_requests_inside_finish_and_nobody_in(launch_gated: Any, tools: Any):
    server = launch_gated("--drain", "60")
    server.gate("")
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(server.infer), pool.submit(server.post, "/classify", tools.image())]
        tools.wait_until(lambda: metric(server, "running_images") + metric(server, "queue_images") == 2)
        server.process.terminate()
        tools.wait_until(lambda: server.get(READY).status == 503)
        assert server.get(READY).json["error"] == "the server is stopping"
        assert server.get(LIVE).status == 200
        reply = server.infer()
        assert (reply.status, reply.error) == (503, "the server is stopping")
        assert "retry-after" in reply.headers
        assert not any(one.done() for one in inside)
        server.gate(None)
        assert [one.result().status for one in inside] == [200, 200]
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log


def test_31b_a_second_sigterm_does_not_wait(launch_gated: Any, tools: Any):
    server = launch_gated("--drain", "600")
    server.gate("")
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(server.infer)
        tools.wait_until(lambda: metric(server, "running_images") == 1)
        workers = server.workers()
        server.process.terminate()
        tools.wait_until(lambda: server.get(READY).status == 503)
        server.process.terminate()
        assert server.process.wait(60) == 2
        with contextlib.suppress(Exception):  # cut off, in whichever way
            inside.result()
    assert "1 requests were cut off by a second SIGTERM" in server.log
    assert "Traceback" not in server.log
    tools.wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_32_a_decode_process_that_is_killed_is_replaced_and_loses_one_image_at_most(gated: Any, tools: Any):
    image = tools.image()
    assert gated.post("/classify", image).status == 200
    (first,) = gated.workers()
    os.kill(first, signal.SIGSTOP)  # so that it has the image when it dies
    with ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(gated.post, "/classify", image) for _ in range(3)]
        tools.wait_until(lambda: metric(gated, "in_flight_requests") == 3)
        os.kill(first, signal.SIGKILL)
        statuses = sorted(reply.result().status for reply in replies)
    assert statuses[:2] == [200] * 2
    assert statuses[2] in (200, 500)
    assert gated.workers() != [first]
    assert len(gated.workers()) == 1
    gated.answers()


@pytest.mark.parametrize("how", ["raise", "memory"])
def test_33a_an_inference_that_fails_is_a_500_and_no_more(gated: Any, tools: Any, how: str):
    gated.gate(how)
    for reply in (gated.infer(), gated.post("/classify", tools.image())):
        assert reply.status == 500
        assert reply.error == "internal error; the server's log has the details"
    assert gated.get(LIVE).status == 200
    assert gated.get(READY).status == 200
    gated.gate(None)
    gated.answers()


def test_33b_an_inference_that_does_not_come_back_fails_liveness(launch_gated: Any, tools: Any):
    server = launch_gated("--hung-after", "0.4", "--grpc-port", "0")
    assert server.get(LIVE).status == 200
    server.gate("")
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(server.infer)
        tools.wait_until(lambda: server.get(LIVE).status == 503)
        assert "model regnet version 1 does not come back" in server.get(LIVE).json["error"]
        server.gate(None)
        assert inside.result().status == 200
    tools.wait_until(lambda: server.get(LIVE).status == 200)


def test_34_what_nobody_waits_for_is_not_run(gated: Any, tools: Any):
    before = gated.stats()["inference_count"]
    body = tools.infer_body()
    head = f"POST /v2/models/regnet/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    gated.gate("")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gated.infer)
        tools.wait_until(lambda: metric(gated, "running_images") == 1)
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(gated.connect()).sendall(head + body)
            tools.wait_until(lambda: metric(gated, "queue_images") == 4)
        tools.wait_until(lambda: metric(gated, "queue_images") == 0)  # they have hung up
        gated.gate(None)
        assert running.result().status == 200
    assert gated.infer().status == 200
    assert gated.stats()["inference_count"] == before + 2


def serve(path: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "regnet_deploy", "serve", str(path), "--port", "0", "--json", "--decoders", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def spoil(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["network", "golden set", "manifest"])
def test_35a_a_corrupt_bundle_is_one_line_and_a_code(exported_bundle: Path, what: str):
    pattern = {"network": "onnx-fp32-[0-9a-f]*", "golden set": "golden-*", "manifest": "bundle.json"}[what]
    (found,) = exported_bundle.glob(pattern)
    spoil(found)
    done = serve(exported_bundle)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_35b_a_network_that_is_not_the_trained_one_is_not_served(exported_bundle: Path):
    """Every checksum is right; the answers are not."""
    import onnx
    from onnx import numpy_helper

    from regnet_deploy.bundle import open_bundle, update_bundle

    model = onnx.load_from_string(open_bundle(exported_bundle).read("onnx-fp32.onnx"))
    weights = next(one for one in model.graph.initializer if one.name == "fc")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "fc"))
    update_bundle(exported_bundle, {}, {"onnx-fp32.onnx": model.SerializeToString()})
    done = serve(exported_bundle)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "does not agree with its golden set" in done.stderr
    assert "Traceback" not in done.stderr
