"""What ends a server before it answers: one line, and the exit code."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.serving import limited_server
from regnet_deploy.serving.draining_server import ServerReady


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


def test_a_uvicorn_that_lacks_a_hook_is_one_line(
    cli_error: Any, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limited_server, "_METHODS", {uvicorn.Server: ("startup", "no_such_hook")})
    line = cli_error("serve", exported_bundle, "--port", "0")
    assert f"uvicorn {uvicorn.__version__} lacks Server.no_such_hook" in line
    assert f"pip install 'uvicorn[standard]{limited_server.UVICORN_VERSIONS}'" in line


def test_weights_that_must_not_be_used_commercially_are_named(non_commercial_bundle: Path):
    command = [sys.executable, "-m", "regnet_deploy", "serve", non_commercial_bundle, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
        finally:
            server.terminate()
        _, said = server.communicate(timeout=60)
    line = "regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1 must not be used commercially: their license is CC-BY-NC-4.0"
    assert ready["restriction"] == f"the weights {line}"
    assert f"regnet: the weights {line}\n" in said


@pytest.mark.parametrize(
    ("streams", "options"),
    [(">/dev/full 2>/dev/full", ("--json", "--log-requests")), (">&- 2>&-", ("--log-format", "json"))],
)
def test_a_log_that_cannot_be_written_is_no_reason_not_to_serve(
    exported_bundle: Path, streams: str, options: tuple[str, ...]
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "regnet_deploy", "serve", str(exported_bundle), "--port", str(port), *options]
    with subprocess.Popen(["bash", "-c", f'exec "$@" {streams}', "bash", *words]) as server:
        try:
            end = time.monotonic() + 60
            while True:
                assert server.poll() is None
                assert time.monotonic() < end
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
                        assert answer.status == 200
                        break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.05)
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/regnet", timeout=5) as answer:
                    assert answer.status == 200
        finally:
            server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host.invalid"])
def test_an_address_of_another_machine_is_one_line(cli_error: Any, exported_bundle: Path, host: str):
    assert host in cli_error("serve", exported_bundle, "--host", host, "--port", "0")


def test_a_golden_set_that_disagrees_ends_the_server_before_it_is_ready(disagreeing_bundle: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: set[Any] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):  # the server is to have the processor
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
    try:
        line = fails(str(disagreeing_bundle), "--port", str(port), code=3)
    finally:
        ended.set()
        watcher.join()
    assert "does not agree with its golden set: |error| 0.5 of a logit of " in line
    assert "choose --variant onnx-fp32-uint8" in line
    assert seen <= {503, "closed"}


@pytest.mark.parametrize("logical", ["onnx-fp32.onnx", "golden.safetensors"])
def test_a_changed_byte_is_found_at_the_start(cli_error: Any, exported_bundle: Path, logical: str):
    path = open_bundle(exported_bundle).stored_path(logical)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    assert f"{path} is damaged" in cli_error("serve", exported_bundle, "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variant", "onnx-fp16"], "did you mean onnx-fp32?"),
        (["--name", "a/b"], "model name 'a/b'"),
        (["--name", ".."], "model name '..'"),
        (["--max-batch", "0"], "--max-batch"),
        (["--threads", "0"], "--threads"),
        (["--port", "70000"], "--port"),
        (["--device", "cuda"], "onnxruntime-gpu"),
        (["--max-body-mb", "0"], "--max-body-mb"),
        (["--max-megapixels", "nan"], "--max-megapixels"),
        (["--read-timeout", "inf"], "--read-timeout"),
        (["--host", ""], "empty host"),
        (["--max-connections", "0"], "--max-connections"),
        (["--max-bodies-mb", "10"], "the limit of 10 MB for all requests together is less than one request of 32 MB"),
    ],
)
def test_what_cannot_be_is_one_line(cli_error: Any, exported_bundle: Path, arguments: list[str], says: str):
    assert says in cli_error("serve", exported_bundle, "--port", "0", *arguments)


def test_bundles_that_cannot_be_served_name_the_command(cli_error: Any, exported_bundle: Path, tmp_path: Path):
    assert "select --gflops" in cli_error("serve", tmp_path / "nowhere", "--port", "0")
    update_bundle(exported_bundle, {}, drop=("golden", "golden.safetensors"))
    assert "export --onnx" in cli_error("serve", exported_bundle, "--port", "0")
    update_bundle(exported_bundle, {}, drop=("variants", "onnx-fp32.onnx", "onnx-fp32-uint8.onnx"))
    assert "export --onnx" in cli_error("serve", exported_bundle, "--port", "0")
    (exported_bundle / MANIFEST).write_text("{}")
    assert "damaged" in cli_error("serve", exported_bundle, "--port", "0")


def test_the_port_can_come_from_the_environment(cli_error: Any, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("REGNET_DEPLOY_PORT", port)
        assert f"127.0.0.1:{port}" in cli_error("serve", exported_bundle)
    monkeypatch.setenv("REGNET_DEPLOY_PORT", "http")
    assert "REGNET_DEPLOY_PORT" in cli_error("serve", exported_bundle)


def test_an_engine_can_only_be_built_of_a_variant_that_is_named(cli_error: Any, exported_bundle: Path):
    line = cli_error("serve", exported_bundle, "--port", "0", "--build-engine")
    assert "an engine is built for one variant: name it with --variant, such as --variant trt-fp16" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--versions", "latest"), "--versions is for a folder of models"),
        (("--versions", "newest"), "all, latest:N or versions such as 3,5"),
        (("--ready", "cats"), "its model is regnet"),
        (("--ready", "a b"), "the model name 'a b' must be"),
    ],
)
def test_policies_that_cannot_be_are_one_line(
    cli_error: Any, exported_bundle: Path, options: tuple[str, ...], says: str
):
    assert says in cli_error("serve", exported_bundle, "--port", "0", *options)


class TestEngines:
    """Beside a GPU and TensorRT that are not there, as far as the server being ready."""

    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What would be served: proved and announced, and then the server ends."""
        seen: list[Any] = []

        def serve(core: Any, listeners: Any, drain_s: float, announce: Any, *rest: Any) -> None:
            announce(ServerReady("http://x", None, None, tuple((model, model.prove()) for model in core.opened)))
            seen.append(core)

        monkeypatch.setattr("regnet_deploy.serving.server.serve", serve)
        return seen

    def test_one_that_fits_is_opened(self, cli: Any, with_h100_engine: Path, served: list[Any]):
        done = cli("serve", with_h100_engine, "--port", "0", "--variant", "trt-fp32")
        assert done.returncode == 0, done.stderr
        assert "variant trt-fp32 by tensorrt 11.4.0.106 on cuda:0 (NVIDIA H100 80GB HBM3)" in done.stderr
        assert len(served) == 1

    def test_one_that_does_not_fit_is_one_line_with_the_reason(
        self, cli_error: Any, with_h100_engine: Path, computer: Any, fake_machine: Any, served: list[Any]
    ):
        computer.driver.gpu = fake_machine.A100
        line = cli_error("serve", with_h100_engine, "--port", "0", "--variant", "trt-fp32")
        assert "it was built for NVIDIA H100" in line
        assert "this machine has NVIDIA A100" in line
        assert served == []

    def test_where_the_bundle_has_none_for_this_gpu_it_is_built_in_memory(
        self,
        cli: Any,
        with_h100_engine: Path,
        computer: Any,
        fake_machine: Any,
        served: list[Any],
        snapshot: Any,
    ):
        computer.driver.gpu = fake_machine.A100
        before = snapshot(with_h100_engine)
        done = cli("serve", with_h100_engine, "--port", "0", "--variant", "trt-fp32", "--build-engine")
        assert done.returncode == 0, done.stderr
        assert "trt-fp32: building an engine for this machine" in done.stderr
        assert "on cuda:0 (NVIDIA A100-SXM4-80GB)" in done.stderr
        assert len(served) == 1
        assert snapshot(with_h100_engine) == before

    def test_one_that_disagrees_when_it_is_built_exits_3(
        self,
        cli: Any,
        without_engine: Path,
        computer: Any,
        fake_machine: Any,
        served: list[Any],
        monkeypatch: pytest.MonkeyPatch,
    ):
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits + 0.5)
        done = cli("serve", without_engine, "--port", "0", "--variant", "trt-fp32", "--build-engine")
        assert (done.returncode, served) == (3, [])
        last = done.stderr.splitlines()[-1]
        assert "variant trt-fp32 of " in last
        assert "does not agree with its golden set" in last


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key need each other"),
        (["--tls-key", "cert.pem"], "--tls-cert and --tls-key need each other"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "cert.pem"], "cannot be used: No such file"),
        (["--tls-cert", "empty.pem", "--tls-key", "empty.pem"], "cannot be used: "),
        (["--token-file", "nowhere"], "the token's file nowhere cannot be read"),
        (["--token-file", "empty.pem"], "must be 16 or more printable ASCII characters"),
    ],
)
def test_files_that_are_no_certificate_or_token_are_one_line(
    cli_error: Any, exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], says: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "cert.pem").write_text("not PEM")
    assert says in cli_error("serve", exported_bundle, "--port", "0", *files)


def test_every_option_stands_under_a_heading_of_the_help():
    from regnet_deploy.cli.serve import _SECTIONS, command

    named = [name for names in _SECTIONS.values() for name in names]
    options = {parameter.name for parameter in command.params} - {"bundle_path", "as_json"}
    assert len(named) == len(set(named))
    assert set(named) == options
