"""Our server and a real Triton with a twin of its network, both on loopback, for all tests of the folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from regnet_deploy.targets.settings import DeploymentSettings

HERE = Path(__file__).parent


class Both(NamedTuple):
    """Addresses, ``127.0.0.1:8000``, of HTTP and gRPC."""

    ours: str
    ours_grpc: str
    triton: str
    triton_grpc: str


def load(path: Path, name: str) -> ModuleType:
    """Load a module beside the tests, which are no package; others import it by its name from then on."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def drafts() -> ModuleType:
    return load(HERE / "drafts.py", "differential_drafts")


@pytest.fixture(scope="session")
def cases(drafts: ModuleType) -> ModuleType:
    return load(HERE / "cases.py", "differential_cases")


@pytest.fixture(scope="session")
def grpc_cases() -> ModuleType:
    return load(HERE / "grpc_cases.py", "differential_grpc_cases")


@pytest.fixture(scope="session")
def answers() -> ModuleType:
    return load(HERE / "answers.py", "differential_answers")


@pytest.fixture(scope="session")
def differences(drafts: ModuleType) -> ModuleType:
    load(HERE / "examples.py", "differential_examples")
    return load(HERE / "differences.py", "differential_differences")


@pytest.fixture(scope="session")
def both(_exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Both servers, started once."""
    twin: Any = load(HERE.parent / "targets" / "triton_twin" / "twin.py", "differential_twin")
    reason = twin.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("differential")
    repository = twin.write_twin(_exported, folder / "twin", DeploymentSettings(variant="onnx-fp32"), images=False)
    options = ["--port", "0", "--grpc-port", "0", "--variant", "onnx-fp32", "--poll", "0", "--json"]
    command = [sys.executable, "-m", "regnet_deploy", "serve", str(_exported), *options]
    with (folder / "ours.log").open("wb") as log, twin.running(repository, folder / "triton.log") as triton:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "ours.log").read_text()
            facts = json.loads(line)
            yield Both(
                facts["url"].removeprefix("http://"), f"127.0.0.1:{facts['grpc_port']}", triton.http, triton.grpc
            )
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture
def clients(both: Both, answers: Any) -> Iterator[tuple[Any, Any]]:
    """A connection to each server; closed after the test, or Triton would wait for it at its end."""
    pair = answers.Client(both.ours), answers.Client(both.triton)
    yield pair
    for client in pair:
        client.close()
