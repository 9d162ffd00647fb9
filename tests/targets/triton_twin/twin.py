"""A real Triton that answers like our server: its repository, with a twin of the network, and the program started.

Tests load this module by its path, for tests are no package; see ``load`` in tests/targets/conftest.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regnet_deploy.bundle import open_bundle
from regnet_deploy.protobuf.messages import parse_text, to_text
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.packaged_variant import choose_packaged_variant
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.triton import REPOSITORY, triton_files

#: Path of the program that starts Triton: ``PROGRAM REPOSITORY HTTP_PORT GRPC_PORT METRICS_PORT FLAGS...``
VARIABLE = "REAL_TRITON"


@dataclass(frozen=True)
class RealTriton:
    """Addresses of a Triton that runs, such as ``127.0.0.1:18000``, and where it logs."""

    http: str
    grpc: str
    metrics: str
    log: Path


def why_not() -> str | None:
    """Return why no Triton can be started here, or None."""
    program = os.environ.get(VARIABLE)
    if not program:
        return f"{VARIABLE} does not name a program that starts Triton on a repository"
    return None if os.access(program, os.X_OK) else f"{VARIABLE}={program} cannot be run"


def write_twin(
    bundle: Path,
    folder: Path,
    settings: DeploymentSettings | None = None,
    *,
    delay_ms: float = 0.0,
    images: bool = True,
) -> Path:
    """Write the repository that ``package --triton`` makes of a tiny bundle, the network replaced by its twin.

    Everything else of the configuration stays: batcher, queue, labels, warm-up.

    Args:
        bundle: the folder of ``exported_bundle``.
        folder: to write into.
        settings: as given to ``package``.
        delay_ms: that each batch takes longer.
        images: write the ensemble of encoded images as well. It is given this environment's Pillow, so Triton's Python
            has to be of the same version (the program may take REAL_TRITON_PYTHON for it).

    Returns:
        The folder for ``tritonserver --model-repository``.
    """
    settings = settings or DeploymentSettings()
    subject = choose_packaged_variant(open_bundle(bundle), settings.variant, gpu=False)
    files, name = triton_files(subject, settings), settings.name
    model = f"{REPOSITORY}/{name}"
    if not images:
        files = {path: data for path, data in files.items() if path.startswith(f"{model}/")}
    config = parse_text("inference.ModelConfig", files[f"{model}/config.pbtxt"].decode())
    config.backend = "python"
    config.ClearField("default_model_filename")
    config.ClearField("parameters")
    config.parameters["delay_ms"].string_value = str(delay_ms)
    files[f"{model}/config.pbtxt"] = to_text(config).encode()
    stream = io.BytesIO()
    np.savez(stream, **_weights(files.pop(f"{model}/1/model.onnx")))
    files[f"{model}/1/weights.npz"] = stream.getvalue()
    files[f"{model}/1/model.py"] = (Path(__file__).parent / "model.py").read_bytes()
    write_folders({folder: files})
    if images:
        _lend_pillow(folder / REPOSITORY / f"{name}_preprocess" / "1")
    return folder / REPOSITORY


@contextlib.contextmanager
def running(repository: Path, log: Path, *flags: str, timeout_s: float = 120) -> Iterator[RealTriton]:
    """Start Triton on a repository, wait until it is ready, and stop it at the end.

    Raises:
        AssertionError: it ended or was not ready in time; the message has the end of its log.
    """
    ports = _free_ports(3)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [os.environ[VARIABLE], str(repository), *map(str, ports), "--exit-timeout-secs=5", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    addresses = [f"127.0.0.1:{port}" for port in ports]
    try:
        deadline = time.monotonic() + timeout_s
        while not _ready(addresses[0]):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)
        yield RealTriton(*addresses, log)
    finally:
        process.terminate()  # not its group: it waits for its Python processes, which would be gone
        try:
            process.wait(40)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def log_of(repository: Path, log: Path, timeout_s: float = 60) -> str:
    """Return what Triton says of a repository that it cannot load: it ends by itself."""
    done = subprocess.run(
        [os.environ[VARIABLE], str(repository), *map(str, _free_ports(3)), "--disable-auto-complete-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    log.write_text(done.stdout)
    assert done.returncode != 0, done.stdout[-3000:]
    return done.stdout


def _weights(data: bytes) -> dict[str, np.ndarray]:
    import onnx

    model = onnx.load_from_string(data)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _lend_pillow(version: Path) -> None:
    import PIL

    package = Path(PIL.__file__).parent
    for lent in (package, package.parent / "pillow.libs"):
        (version / lent.name).symlink_to(lent)


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
