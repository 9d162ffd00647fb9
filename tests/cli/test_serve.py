"""What ends a server before it answers: one line, and the exit code."""

import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.serving.golden import Golden, golden_to_bytes, load_golden


def fails(*arguments: str, code: int) -> str:
    """Run a server that must not start and return its one line."""
    command = [sys.executable, "-m", "regnet_deploy", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("regnet-deploy: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_in_use_is_one_line(exported_bundle: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}" in fails(str(exported_bundle), "--port", port, code=2)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid"])
def test_an_address_of_another_machine_is_one_line(exported_bundle: Path, host: str):
    assert host in fails(str(exported_bundle), "--host", host, "--port", "0", code=2)


def test_a_golden_set_that_disagrees_ends_the_server_before_it_is_ready(exported_bundle: Path):
    golden = load_golden(open_bundle(exported_bundle))
    logits = golden.logits.copy()
    logits[7, 2] += 0.5
    update_bundle(exported_bundle, {}, {"golden.safetensors": golden_to_bytes(Golden(golden.images, logits))})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: set[Any] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
                    seen.add(answer.status)
            except urllib.error.HTTPError as error:
                seen.add(error.code)
                error.close()
            except OSError:
                seen.add("closed")

    watcher = threading.Thread(target=watch)
    watcher.start()
    line = fails(str(exported_bundle), "--port", str(port), code=3)
    ended.set()
    watcher.join()
    assert "does not agree with its golden set: |error| 0.5 of a logit of " in line
    assert seen <= {503, "closed"}


@pytest.mark.parametrize("logical", ["onnx-fp32.onnx", "golden.safetensors"])
def test_a_changed_byte_is_found_at_the_start(exported_bundle: Path, logical: str):
    path = open_bundle(exported_bundle).stored_path(logical)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    assert f"{path} is damaged" in fails(str(exported_bundle), "--port", "0", code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variant", "onnx-fp16"], "did you mean onnx-fp32?"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--name", ".."], "--name '..'"),
        (["--max-batch", "0"], "--max-batch"),
        (["--threads", "0"], "--threads"),
        (["--port", "70000"], "--port"),
        (["--device", "cuda"], "onnxruntime-gpu"),
        (["--max-body-mb", "0"], "--max-body-mb"),
        (["--max-megapixels", "nan"], "--max-megapixels"),
        (["--read-timeout", "inf"], "--read-timeout"),
        (["--host", ""], "empty host"),
        (["--max-connections", "0"], "--max-connections"),
        (["--max-bodies-mb", "10"], "leaves no room for one of --max-body-mb 32"),
    ],
)
def test_what_cannot_be_is_one_line(exported_bundle: Path, arguments: list[str], says: str):
    assert says in fails(str(exported_bundle), "--port", "0", *arguments, code=2)


def test_bundles_that_cannot_be_served_name_the_command(exported_bundle: Path, tmp_path: Path):
    assert "select --gflops" in fails(str(tmp_path / "nowhere"), "--port", "0", code=2)
    update_bundle(exported_bundle, {}, drop=("golden", "golden.safetensors"))
    assert "export --onnx" in fails(str(exported_bundle), "--port", "0", code=2)
    update_bundle(exported_bundle, {}, drop=("variants", "onnx-fp32.onnx", "onnx-fp32-uint8.onnx"))
    assert "export --onnx" in fails(str(exported_bundle), "--port", "0", code=2)
    (exported_bundle / MANIFEST).write_text("{}")
    assert "damaged" in fails(str(exported_bundle), "--port", "0", code=2)


def test_the_port_can_come_from_the_environment(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("REGNET_DEPLOY_PORT", port)
        assert f"127.0.0.1:{port}" in fails(str(exported_bundle), code=2)
    monkeypatch.setenv("REGNET_DEPLOY_PORT", "http")
    assert "REGNET_DEPLOY_PORT" in fails(str(exported_bundle), code=2)
