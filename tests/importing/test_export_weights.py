"""Weights for other libraries: what is written is read back as the same network, whatever the container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_weights import X, Y, as_library, weights_of
from safetensors.torch import load, save

from regnet_deploy.bundle import create_bundle, open_bundle, update_bundle
from regnet_deploy.errors import DataError, MissingPart, UsageError
from regnet_deploy.importing.export_weights import export_weights, foreign_state
from regnet_deploy.importing.foreign_weights import read_foreign_weights
from regnet_deploy.importing.hub_config import STATED
from regnet_deploy.importing.import_weights import ImportOptions, import_weights
from regnet_deploy.importing.layouts import TARGETS
from regnet_deploy.space.network import Network


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("network", [X, Y], ids=["x", "y"])
def test_the_way_out_is_the_way_back(
    saved: Callable[..., Path], tmp_path: Path, target: str, suffix: str, network: Network
) -> None:
    state = weights_of(network)
    bundle = import_weights(saved(as_library("timm", state, network)), tmp_path / "b")
    file = export_weights(bundle, target, tmp_path / f"out{suffix}")
    read = read_foreign_weights(file)
    assert (read.source, read.network) == (target, network)
    assert all(torch.equal(read.state[name], tensor) for name, tensor in state.items())


def test_a_link_stays_and_another_suffix_is_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    bundle = import_weights(saved(as_library("timm", weights_of(X), X)), tmp_path / "b")
    (tmp_path / "link.pth").symlink_to(tmp_path / "real.pth")
    export_weights(bundle, "timm", tmp_path / "link.pth")
    assert (tmp_path / "link.pth").is_symlink()
    assert read_foreign_weights(tmp_path / "real.pth").network == X
    with pytest.raises(UsageError, match=r"got a\.onnx: give a name that ends so"):
        export_weights(bundle, "timm", tmp_path / "a.onnx")


def test_what_a_library_does_not_have_is_refused(tmp_path: Path) -> None:
    v = Network((1, 1), (8, 16), (8, 16), (1.0, 1.0), block="v")
    with pytest.raises(UsageError, match="timm has no networks with blocks of a single convolution"):
        foreign_state(weights_of(v), "timm", se=False)
    with pytest.raises(UsageError, match=r"got 'tim' \(did you mean timm\?\)"):
        foreign_state(weights_of(X), "tim", se=False)


def test_a_bundle_without_weights_names_the_commands(saved: Callable[..., Path], tmp_path: Path) -> None:
    parts = import_weights(saved(as_library("timm", weights_of(X), X)), tmp_path / "a").manifest
    create_bundle(tmp_path / "b", parts)
    with pytest.raises(MissingPart, match=r"has no weights yet: run `regnet-deploy train"):
        export_weights(open_bundle(tmp_path / "b"), "timm", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize("target", ["timm", "pycls"])
def test_a_safetensors_file_says_how_its_network_is_used_and_nothing_is_assumed(
    saved: Callable[..., Path], tmp_path: Path, target: str
) -> None:
    normal = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    given = ImportOptions(stem_stride=1, resolution=32, resize=40, interpolation="bilinear", antialias=False, **normal)
    first = import_weights(saved(as_library("timm", weights_of(X), X)), tmp_path / "a", given)
    labels = tuple(f"class {number}" for number in range(first.architecture.classes))
    first = update_bundle(first.path, {"labels": labels})
    again = import_weights(export_weights(first, target, tmp_path / "out.safetensors"), tmp_path / "b")
    assert again.preprocessing == first.preprocessing
    assert again.architecture.network == first.architecture.network
    assert again.manifest.labels == labels
    assert [each for each in again.manifest.imported.assumptions if "stem" in each or "preprocessing" in each] == []
    other = import_weights(tmp_path / "out.safetensors", tmp_path / "c", ImportOptions(stem_stride=2, resolution=64))
    assert (other.architecture.network.stem_stride, other.preprocessing.crop) == (2, 64)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stem_stride": 3}', "[" * 100_000])
def test_metadata_that_say_what_cannot_be_are_one_line(saved: Callable[..., Path], tmp_path: Path, text: str) -> None:
    bundle = import_weights(saved(as_library("timm", weights_of(X), X)), tmp_path / "a")
    file = export_weights(bundle, "timm", tmp_path / "out.safetensors")
    file.write_bytes(save(load(file.read_bytes()), {STATED: text}))
    with pytest.raises(DataError, match=r"the metadata regnet-deploy of .*out\.safetensors cannot be used: "):
        import_weights(file, tmp_path / "b")
    assert not (tmp_path / "b").exists()
