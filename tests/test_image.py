"""The container image, built and run for real.

Where there is no Docker engine, REGNET_DEPLOY_BUILD_IMAGE may name a program that does the same: ``PROGRAM DIR TAG``
builds, with the arguments in BUILD_ARGS, ``PROGRAM run TAG -- COMMAND...`` runs a command in the image with this
machine's network and standard input, and ``PROGRAM size TAG`` prints the megabytes that the image adds to its base.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TAG = "regnet-deploy-test"
BASE = "python:3.11-slim-bookworm"
LIMIT_MB = 350
BUILDER = os.environ.get("REGNET_DEPLOY_BUILD_IMAGE")

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]


def call(*command: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode()


def in_image(*command: str) -> list[str]:
    """Return the command line that runs ``command`` in the image."""
    if BUILDER:
        return [BUILDER, "run", TAG, "--", *command]
    return ["docker", "run", "--rm", "-i", "--network=host", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp",
            f"--entrypoint={command[0]}", TAG, *command[1:]]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    if BUILDER:
        call(BUILDER, str(ROOT), TAG)
        return
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("neither a Docker engine nor a program named by REGNET_DEPLOY_BUILD_IMAGE is there")
    call("docker", "build", "-t", TAG, str(ROOT))


@pytest.fixture
def served(exported_bundle: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a server in the image, with the bundle that the test hands in."""
    packed = tmp_path / "bundle.tar"
    with tarfile.open(packed, mode="w") as archive:
        archive.add(exported_bundle, "bundle")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f"tar -x -C /tmp && exec regnet-deploy serve /tmp/bundle --host 127.0.0.1 --port {port}"
    with packed.open("rb") as stdin:
        process = subprocess.Popen(
            in_image("sh", "-c", script), stdin=stdin, stderr=subprocess.PIPE, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url + "/v2/health/ready"):
                return
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_it_answers_about_an_image(served: str):
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(stream, "JPEG")
    with urllib.request.urlopen(served + "/classify?k=1", stream.getvalue(), timeout=30) as answer:
        assert json.load(answer)["predictions"][0]["label"] in {"ant", "bee", "cat", "dog", "eel", "fox"}


def test_it_holds_no_torch_no_pip_and_no_root():
    code = (
        "import importlib.util as u, json, os, sys;"
        "names = ('torch', 'pip', 'setuptools', 'onnx', 'matplotlib', 'onnxruntime', 'regnet_deploy');"
        "print(json.dumps([os.getuid(), [n for n in names if u.find_spec(n)]]))"
    )
    uid, found = json.loads(call(*in_image("python", "-c", code)))
    assert uid != 0
    assert found == ["onnxruntime", "regnet_deploy"]


def test_its_layers_are_small():
    if BUILDER:
        size_mb = int(call(BUILDER, "size", TAG))
    else:
        sizes = [int(call("docker", "image", "inspect", "-f", "{{.Size}}", name)) for name in (TAG, BASE)]
        size_mb = (sizes[0] - sizes[1]) // 10**6
    assert size_mb <= LIMIT_MB


def test_an_unknown_runtime_is_refused_by_the_build():
    argument = "--build-arg RUNTIME=tpu"
    if BUILDER:
        command, environment = [BUILDER, str(ROOT), TAG + "-tpu"], {**os.environ, "BUILD_ARGS": argument}
    else:
        command, environment = ["docker", "build", *argument.split(), str(ROOT)], dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    assert "it must be cpu or gpu" in done.stderr + done.stdout
