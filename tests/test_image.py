"""The container image, built and run for real.

Where there is no Docker engine, REGNET_DEPLOY_BUILD_IMAGE may name a program that does the same: ``PROGRAM DIR TAG``
builds, with the arguments in BUILD_ARGS, ``PROGRAM run TAG -- COMMAND...`` runs a command in the image with this
machine's network and processes, and ``PROGRAM size TAG`` prints the megabytes that the image adds to its base.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TAG = "regnet-deploy-test"
BASE = "python:3.11-slim-bookworm"
LIMIT_MB = 400  # of these, OpenVINO has about 125
BUILDER = os.environ.get("REGNET_DEPLOY_BUILD_IMAGE")

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout.decode()


def words_of(instruction: str) -> list[str]:
    """Return the words in brackets of an instruction of the Dockerfile: what an engine runs of the image."""
    recipe = (ROOT / "Dockerfile").read_text()
    (found,) = re.findall(rf"^ *{instruction} [^\[]*(\[.*\])$", recipe, re.MULTILINE)
    return list(json.loads(found))


def in_image(*command: str, tag: str = TAG) -> list[str]:
    """Return the command line that runs ``command`` in the image."""
    if BUILDER:
        return [BUILDER, "run", tag, "--", *command]
    return ["docker", "run", "--rm", "--read-only", "--cap-drop=ALL", f"--entrypoint={command[0]}", tag, *command[1:]]


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    if BUILDER:
        call(BUILDER, str(ROOT), TAG)
        return
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("needs Docker, or REGNET_DEPLOY_BUILD_IMAGE, a program that builds images")
    call("docker", "build", "-t", TAG, str(ROOT))


@dataclass(frozen=True)
class Container:
    """A server that runs as the image has it: where it answers, and commands beside it."""

    url: str
    metrics: str
    process: "subprocess.Popen[bytes]"
    stop: Callable[[], None]
    inside: Callable[..., list[str]]

    def runs(self, *command: str) -> bool:
        """Tell whether a command in the container exits with 0."""
        return subprocess.run(self.inside(*command), capture_output=True, check=False).returncode == 0


@pytest.fixture
def container(exported_bundle: Path, tmp_path: Path) -> Iterator[Container]:
    """The image, started by its own entrypoint."""
    copy = tmp_path / "context" / "bundle"
    shutil.copytree(exported_bundle, copy)
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the user of the image reads it
    started = by_builder(copy.parent) if BUILDER else by_docker(copy)
    try:
        wait_until_ready(started)
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()
        started.process.communicate(timeout=60)


def by_docker(bundle: Path) -> Container:
    """Start it under an engine with the bundle mounted, and with no right that it does not need."""
    name = f"{TAG}-{os.getpid()}"
    process = subprocess.Popen(
        ["docker", "run", "--rm", f"--name={name}", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp",
         "-p", "127.0.0.1::8000", "-p", "127.0.0.1::8002", "-v", f"{bundle}:/bundle:ro", TAG],
        stderr=subprocess.PIPE,
    )  # fmt: skip

    def published(port: int) -> str:
        deadline = time.monotonic() + 60
        while (done := subprocess.run(["docker", "port", name, str(port)], capture_output=True)).returncode != 0:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return f"http://{done.stdout.decode().split()[0]}"

    return Container(
        published(8000),
        published(8002),
        process,
        stop=lambda: subprocess.run(["docker", "kill", "--signal=TERM", name], check=True, capture_output=True),
        inside=lambda *command: ["docker", "exec", name, *command],
    )


def by_builder(context: Path) -> Container:
    """Start it without an engine: the words of ENTRYPOINT, in an image with the bundle as the instructions have it.

    There is no network of its own, so the ports are free ones; commands run in a second copy of the image.
    """
    (context / "Dockerfile").write_text(f"FROM localhost/{TAG}\nCOPY bundle /bundle\n")
    tag = f"{TAG}-bundle"
    call(str(BUILDER), str(context), tag)
    port, metrics = free_ports()
    ports = ["env", f"REGNET_DEPLOY_PORT={port}", f"REGNET_DEPLOY_METRICS_PORT={metrics}"]
    process = subprocess.Popen(in_image(*ports, *words_of("ENTRYPOINT"), tag=tag), stderr=subprocess.PIPE)
    return Container(
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{metrics}",
        process,
        stop=lambda: os.kill(server_below(process.pid, words_of("ENTRYPOINT")[1:]), signal.SIGTERM),
        inside=lambda *command: in_image(*ports, *command, tag=tag),
    )


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def server_below(ancestor: int, words: list[str]) -> int:
    """Return the process that runs these words, the nearest below ``ancestor``: the builder stands between."""
    waiting = [ancestor]
    while waiting:
        pid = waiting.pop(0)
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        if line[-len(words) :] == words and Path(line[0]).name.startswith("python"):
            return pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    raise AssertionError(f"no process {words} below {ancestor}")


def wait_until_ready(container: Container) -> None:
    """Ask the health check of the image."""
    deadline = time.monotonic() + 120
    while not container.runs(*words_of("CMD")):
        assert container.process.poll() is None, container.process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def get(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data, timeout=30) as answer:
        body: bytes = answer.read()
    return body


def test_it_answers_writes_nothing_and_ends_when_told(container: Container):
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(stream, "JPEG")
    told = json.loads(get(container.url + "/classify?k=1", stream.getvalue()))
    assert told["predictions"][0]["label"] in {"ant", "bee", "cat", "dog", "eel", "fox"}
    assert b"regnet_deploy_requests_total{" in get(container.metrics + "/metrics")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(container.url + "/metrics")  # for a network that clients do not reach
    for folder in ("/", "/bundle", "/opt/serve"):
        assert container.runs("test", "-d", folder)
        assert not container.runs("touch", f"{folder}/written")
    container.stop()
    container.process.communicate(timeout=60)
    assert container.process.returncode == 0


def test_it_holds_no_torch_no_pip_and_no_root():
    code = (
        "import importlib.util as u, json, os, sys;"
        "names = ('torch', 'pip', 'setuptools', 'onnx', 'matplotlib', 'onnxruntime', 'regnet_deploy');"
        "ports = [os.environ[n] for n in ('REGNET_DEPLOY_PORT', 'REGNET_DEPLOY_METRICS_PORT')];"
        "print(json.dumps([os.getuid(), [n for n in names if u.find_spec(n)], ports]))"
    )
    uid, found, ports = json.loads(call(*in_image("python", "-c", code)))
    assert uid == 10001
    assert found == ["onnxruntime", "regnet_deploy"]
    assert ports == ["8000", "8002"]


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
    assert "it must be cpu, gpu or openvino" in done.stderr + done.stdout
