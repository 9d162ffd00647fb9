"""Records are the JSON that they were read from, and say where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bundle_parts import onnx_variant, proof
from click.testing import CliRunner

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.reading import MANIFEST, serialize
from regnet_deploy.bundle.record import json_schema, to_json
from regnet_deploy.bundle.training import TrainingData
from regnet_deploy.cli.main import main
from regnet_deploy.errors import BundleError

BUNDLES = sorted((Path(__file__).parents[1] / "fixtures" / "bundles").iterdir())


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_the_records_of_a_bundle_are_its_json(path: Path):
    bundle = open_bundle(path)
    assert json.dumps(to_json(bundle.manifest), sort_keys=True) == json.dumps(bundle.parts, sort_keys=True)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_the_parts_of_a_bundle_keep_to_the_schema(path: Path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(dict(open_bundle(path).parts), json_schema(Manifest))


def test_show_prints_the_schema_without_a_bundle():
    result = CliRunner().invoke(main, ["show", "--schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json_schema(Manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cosine": "high"}, "variants.onnx.fp16.proof.cosine: expected float | null, got str"),
        ({"gate": {"atol": [1]}}, "variants.onnx.fp16.proof.gate.atol: expected float | null, got array"),
        ({"images": None}, "variants.onnx.fp16.proof.images: expected int, got null"),
    ],
)
def test_an_error_has_the_path_of_what_is_wrong(change: dict[str, object], says: str):
    good = onnx_variant().to_json()
    wrong = {**good, "proof": {**proof().to_json(), **change}}
    with pytest.raises(BundleError) as error:
        Manifest.from_json({"variants": {"onnx-fp32": good, "onnx.fp16": wrong}})
    assert str(error.value) == says


def test_a_place_in_a_list_is_part_of_the_path():
    with pytest.raises(BundleError, match=r"^labels\[1\]: expected str, got int$"):
        Manifest.from_json({"labels": ["a", 1]})


def test_a_bundle_with_a_wrong_part_does_not_open(tmp_path: Path):
    create_bundle(tmp_path, {})
    (tmp_path / MANIFEST).write_bytes(serialize({"preprocessing": {"resize": 0, "crop": 32}}, {}))
    with pytest.raises(BundleError, match=r"bundle\.json cannot be used: preprocessing\.resize: expected int >= 1"):
        open_bundle(tmp_path)


def test_what_is_wrong_is_not_written(tmp_path: Path):
    before = create_bundle(tmp_path / "b", {})
    with pytest.raises(BundleError, match="labels"):
        update_bundle(tmp_path / "b", {"labels": 3})
    assert open_bundle(tmp_path / "b") == before


def test_an_unknown_key_stays_while_nothing_beside_it_changes(tmp_path: Path):
    variant = {**onnx_variant().to_json(), "from_a_later_version": 1}
    create_bundle(tmp_path / "b", {"variants": {"a": variant, "b": variant}, "later": {"x": 1}})
    changed = open_bundle(tmp_path / "b").variants
    changed["b"] = changed["b"].replace(note="measured again")
    parts = update_bundle(tmp_path / "b", Manifest(variants=changed)).parts
    assert parts["variants"]["a"] == variant
    assert "from_a_later_version" not in parts["variants"]["b"]
    assert parts["later"] == {"x": 1}


def test_a_key_that_was_absent_stays_absent(tmp_path: Path):
    old = {name: value for name, value in onnx_variant().to_json().items() if name not in ("exact", "note")}
    create_bundle(tmp_path / "b", {"variants": {"a": old}})
    variants = {**open_bundle(tmp_path / "b").variants, "b": onnx_variant()}
    parts = update_bundle(tmp_path / "b", Manifest(variants=variants)).parts
    assert parts["variants"]["a"] == old
    assert parts["variants"]["b"]["note"] is None


def test_numbers_of_numpy_are_numbers():
    assert to_json({"p50_ms": np.float64(1.5), "b": Preprocessing(1, 2).crop}) == {"p50_ms": 1.5, "b": 2}


def test_records_do_not_share_a_default_container():
    data = {"folder": "d", "classes": 2, "train_images": 8, "val_images": 2, "split": "", "digest": "", "rejected": {}}
    one, other = TrainingData.from_json(data), TrainingData.from_json(data)
    assert one.unreadable == other.unreadable == {}
    assert one.unreadable is not other.unreadable
