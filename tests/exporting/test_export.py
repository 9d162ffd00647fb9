import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image

from regnet_deploy.bundle import damage, open_bundle, update_bundle
from regnet_deploy.errors import BundleError, MissingExtra, ProofError, UsageError
from regnet_deploy.exporting import export as export_module
from regnet_deploy.exporting import graph
from regnet_deploy.exporting.export import Wish, export
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.serving.golden import TOLERANCES, Tolerance, load_golden, replay
from regnet_deploy.serving.runtime import open_variant
from regnet_deploy.serving.variants import choose_variant
from regnet_deploy.space.network import Network

PLAIN = Network((1, 2), (16, 24), (16, 24), (1.0, 1.0), stem_stride=1, stem_width=8, block="v")
KINDS = ["V", "VR", "R"]


def wish(**changes):
    return Wish(
        **{"uint8": False, "trt": False, "images": (), "tolerance": TOLERANCES["fp32"], "max_batch": 8, **changes}
    )


def run(path, **changes):
    return export(path, wish(**changes), lambda what: None, lambda steps, phase: None)


@pytest.fixture
def spoiled(monkeypatch):
    """Export as if folding forgot the batch norms' means."""
    fold = graph.fold

    def forgetful(weights, convolution, norm):
        weight, bias = fold(weights, convolution, norm)
        return weight, bias + 0.05

    monkeypatch.setattr(graph, "fold", forgetful)


def test_the_bundle_gets_the_golden_set_and_variants_that_replay(trained):
    exported = run(trained, uint8=True)
    bundle = open_bundle(trained)
    assert list(exported.made) == ["onnx-fp32", "onnx-fp32-uint8"]
    assert bundle.part("variants") == exported.made
    assert bundle.part("golden")["source"] == "training images"
    assert "export" in bundle.part("environment")
    preprocessing = Preprocessing.from_json(bundle.part("preprocessing"))
    for name, variant in bundle.part("variants").items():
        assert variant["bytes"] == len(bundle.read(variant["file"]))
        assert variant["proof"]["passed"]
        assert variant["proof"]["top1_agreement"] == 1
        assert variant["proof"]["images"] == 16
        session = open_variant(bundle, name)
        assert session.input == variant["input"]
        assert replay(session, load_golden(bundle), preprocessing, TOLERANCES["fp32"]).passed
    assert damage(bundle) == []


@pytest.mark.parametrize("network", [PLAIN, replace(PLAIN, block="vr"), replace(PLAIN, block="bottleneck")], ids=KINDS)
def test_networks_of_every_kind_of_block_are_exported_and_proved(trained, network):
    exported = run(trained, uint8=True)
    assert open_bundle(trained).part("architecture")["block"] == network.block
    assert all(variant["proof"]["passed"] for variant in exported.made.values())


def test_the_file_tells_of_itself_what_the_bundle_knows(trained):
    run(trained)
    bundle = open_bundle(trained)
    model = onnx.load_from_string(bundle.read("onnx-fp32.onnx"))
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told == {name: bundle.part(name) for name in ("architecture", "preprocessing", "labels")}


def test_exporting_again_writes_the_same_files(trained):
    run(trained, uint8=True)
    first = open_bundle(trained).files
    run(trained, uint8=True)
    assert open_bundle(trained).files == first


def test_before_training_seeded_weights_are_exported_and_proved_on_noise(untrained):
    exported = run(untrained)
    assert exported.golden == {"images": 16, "source": "seeded noise", "seed": 0, "weights_sha256": None}
    assert exported.made["onnx-fp32"]["proof"]["passed"]


def test_a_wrong_graph_is_a_proof_error_with_figures_and_changes_nothing(trained, spoiled):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(ProofError, match=r"onnx-fp32 does not agree .* max \|error\| \d.*atol 0\.0001, rtol 0\.001"):
        run(trained)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_the_tolerance_is_the_callers(trained, spoiled):
    exported = run(trained, tolerance=Tolerance(1e-4, 1e3))
    proof = exported.made["onnx-fp32"]["proof"]
    assert (proof["atol"], proof["rtol"]) == (1e-4, 1e3)


def test_a_looser_tolerance_does_not_count_as_proved(trained, spoiled):
    loose = run(trained, tolerance=Tolerance(1e-4, 1e3)).made["onnx-fp32"]["proof"]
    assert (loose["passed"], loose["standard"]) == (True, False)
    with pytest.raises(UsageError, match="looser tolerance"):
        choose_variant(open_bundle(trained))


@pytest.mark.parametrize("tolerance", [TOLERANCES["fp32"], Tolerance(5e-5, 1e-4)])
def test_the_tolerance_of_the_precision_or_a_tighter_one_counts(trained, tolerance):
    assert run(trained, tolerance=tolerance).made["onnx-fp32"]["proof"]["standard"] is True


def test_a_missing_onnxruntime_is_said_before_anything_is_computed(trained, monkeypatch):
    def missing():
        raise MissingExtra("no ONNX Runtime")

    monkeypatch.setattr(export_module, "installed_onnxruntime", missing)
    monkeypatch.setattr(export_module, "golden_set", lambda *arguments: pytest.fail("logits were computed"))
    with pytest.raises(MissingExtra, match="no ONNX Runtime"):
        run(trained)


def test_weights_that_change_meanwhile_leave_the_bundle_as_it_is(trained, monkeypatch):
    build = export_module.build_onnx

    def build_while_somebody_trains(*arguments, **options):
        update_bundle(trained, {}, {"weights.safetensors": b"new"})
        return build(*arguments, **options)

    monkeypatch.setattr(export_module, "build_onnx", build_while_somebody_trains)
    with pytest.raises(BundleError, match="changed by another command"):
        run(trained)
    assert "variants" not in open_bundle(trained)
    assert set(open_bundle(trained).files) == {"weights.safetensors", "samples.safetensors"}


def test_a_new_golden_set_proves_the_other_variants_again(trained, tmp_path):
    run(trained, uint8=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    run(trained, images=(tmp_path / "mine.png",))
    variants = open_bundle(trained).part("variants")
    golden = load_golden(open_bundle(trained))
    np.testing.assert_array_equal(golden.images[0], pixels)
    preprocessing = Preprocessing.from_json(open_bundle(trained).part("preprocessing"))
    for name, variant in variants.items():
        again = replay(open_variant(open_bundle(trained), name), golden, preprocessing, TOLERANCES["fp32"])
        assert variant["proof"]["max_abs_error"] == pytest.approx(again.max_abs_error, rel=0.5)
        assert variant["proof"]["images"] == 16


def test_a_new_golden_set_takes_the_proof_of_an_engine_that_cannot_run_here(trained, tmp_path):
    run(trained)
    variants = open_bundle(trained).part("variants")
    variants["trt-fp32"] = {**variants["onnx-fp32"], "file": "trt-fp32.plan", "runtime": "tensorrt"}
    update_bundle(trained, {"variants": variants}, {"trt-fp32.plan": b"plan"})
    run(trained)
    assert open_bundle(trained).part("variants")["trt-fp32"]["proof"] is not None
    Image.new("RGB", (32, 32)).save(tmp_path / "mine.png")
    run(trained, images=(tmp_path / "mine.png",))
    engine = open_bundle(trained).part("variants")["trt-fp32"]
    assert engine["proof"] is None
    assert "golden set" in engine["note"]


def test_where_no_builder_is_the_onnx_is_kept_and_the_result_says_what_is_missing(untrained, monkeypatch):
    def none():
        raise MissingExtra("no TensorRT engine was made")

    monkeypatch.setattr(export_module, "find_builder", none)
    exported = run(untrained, trt=True)
    assert isinstance(exported.missing_engine, MissingExtra)
    assert set(open_bundle(untrained).part("variants")) == {"onnx-fp32"}


def test_the_engines_entry_names_the_onnx_that_it_was_built_from(untrained):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    exported = run(untrained, trt=True)
    assert exported.missing_engine is None
    bundle = open_bundle(untrained)
    (name,) = set(bundle.part("variants")) - {"onnx-fp32"}
    engine = bundle.part("variants")[name]
    assert engine["engine"]["onnx_sha256"] == hashlib.sha256(bundle.read("onnx-fp32.onnx")).hexdigest()
    assert engine["bytes"] == len(bundle.read(engine["file"]))
    assert (engine["proof"] is None) == (engine["note"] is not None)
