import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from bundle_parts import latency, training
from PIL import Image
from safetensors.numpy import load as load_weights
from safetensors.numpy import save as save_weights

from regnet_deploy.bundle import Manifest, create_bundle, find_damage, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import BundleError, DataError, MissingExtra, ProofError, UsageError
from regnet_deploy.exporting import (
    accuracy_gate,
    calibration,
    model_source,
    onnx_graph,
    openvino_variants,
    validation,
    variant_choice,
)
from regnet_deploy.exporting import export as export_module
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.golden_images import make_golden_set
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.typed_graph import TypedGraph
from regnet_deploy.exporting.variant_choice import VariantCandidate
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import load_model, weights_to_bytes
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.gates import GATES, gates_with_overrides
from regnet_deploy.runtimes.golden_set import load_golden, replay
from regnet_deploy.runtimes.runtime import open_variant
from regnet_deploy.space.network import Network

PLAIN = Network((1, 2), (16, 24), (16, 24), (1.0, 1.0), stem_stride=1, stem_width=8, block="v")
KINDS = ["V", "VR", "R"]


pytestmark = pytest.mark.usefixtures("short_warmup")


@pytest.fixture(autouse=True)
def _without_openvino(monkeypatch):
    """Its variants have tests of their own: ``test_openvino_variants.py``."""

    def missing():
        raise MissingExtra("OpenVINO is not installed")

    monkeypatch.setattr(openvino_variants, "installed_openvino", missing)


def run(path, **changes):
    return export(path, ExportOptions(**changes))


def architecture_of(network):
    return Architecture.of(network, name="other", classes=5, resolution=32)


def gates(**limits):
    """The gates with other limits for fp32."""
    return gates_with_overrides([("fp32", figure, limit) for figure, limit in limits.items()])


@pytest.fixture
def spoiled(monkeypatch):
    """Export as if folding forgot the batch norms' means."""
    fold = onnx_graph.fold

    def forgetful(weights, convolution, norm):
        weight, bias = fold(weights, convolution, norm)
        return weight, bias + 0.05

    monkeypatch.setattr(onnx_graph, "fold", forgetful)


def test_the_bundle_gets_the_golden_set_and_variants_that_replay(trained):
    exported = run(trained, uint8=True)
    bundle = open_bundle(trained)
    assert list(exported.variants) == ["onnx-fp32", "onnx-fp32-uint8"]
    assert bundle.variants == exported.variants
    assert bundle.parts["golden"]["source"] == "training images"
    assert "export" in bundle.parts["environment"]
    preprocessing = Preprocessing.from_json(bundle.parts["preprocessing"])
    for name, variant in bundle.parts["variants"].items():
        assert variant["bytes"] == len(bundle.read(variant["file"]))
        assert variant["proof"]["passed"]
        assert variant["proof"]["top1_agreement"] == 1
        assert variant["proof"]["images"] == 16
        session = open_variant(bundle, name)
        assert session.input == variant["input"]
        assert replay(session, load_golden(bundle), preprocessing, GATES["fp32"]).passed
    assert find_damage(bundle) == []


@pytest.mark.parametrize("network", [PLAIN, replace(PLAIN, block="vr"), replace(PLAIN, block="bottleneck")], ids=KINDS)
def test_networks_of_every_kind_of_block_are_exported_and_proved(trained, network):
    exported = run(trained, uint8=True)
    assert open_bundle(trained).parts["architecture"]["block"] == network.block
    assert all(variant.proof.passed for variant in exported.variants.values())


def test_the_file_tells_of_itself_what_the_bundle_knows(trained):
    run(trained)
    bundle = open_bundle(trained)
    model = onnx.load_from_string(bundle.read("onnx-fp32.onnx"))
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told == {name: bundle.parts[name] for name in ("architecture", "preprocessing", "labels")}


def test_exporting_again_writes_the_same_files(trained):
    run(trained, uint8=True)
    first = open_bundle(trained).files
    run(trained, uint8=True)
    assert open_bundle(trained).files == first


def test_before_training_seeded_weights_are_exported_and_proved_on_noise(untrained):
    exported = run(untrained)
    assert exported.golden.to_json() == {
        "images": 16,
        "source": "seeded noise",
        "seed": 0,
        "weights_sha256": None,
    }
    assert exported.variants["onnx-fp32"].proof.passed


def test_a_wrong_graph_is_a_proof_error_with_figures_and_changes_nothing(trained, spoiled):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.raises(ProofError, match=r"onnx-fp32 does not agree .* max \|error\| \d.*atol 0\.0001, rtol 0\.001"):
        run(trained)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_the_tolerance_is_the_callers(trained, spoiled):
    exported = run(trained, gates=gates(rtol=1e3))
    proof = exported.variants["onnx-fp32"].proof
    assert (proof.gate.atol, proof.gate.rtol) == (1e-4, 1e3)


def test_a_looser_tolerance_does_not_count_as_proved(trained, spoiled):
    loose = run(trained, gates=gates(rtol=1e3)).variants["onnx-fp32"].proof
    assert (loose.passed, loose.standard) == (True, False)
    with pytest.raises(UsageError, match="looser gate"):
        default_variant(open_bundle(trained))


@pytest.mark.parametrize("limits", [{}, {"atol": 5e-5, "rtol": 1e-4}])
def test_the_tolerance_of_the_precision_or_a_tighter_one_counts(trained, limits):
    assert run(trained, gates=gates(**limits)).variants["onnx-fp32"].proof.standard is True


def test_a_missing_onnxruntime_is_said_before_anything_is_computed(trained, monkeypatch):
    def missing():
        raise MissingExtra("no ONNX Runtime")

    monkeypatch.setattr(export_module, "installed_onnxruntime", missing)
    monkeypatch.setattr(export_module, "make_golden_set", lambda *arguments: pytest.fail("logits were computed"))
    with pytest.raises(MissingExtra, match="no ONNX Runtime"):
        run(trained)


def test_weights_that_change_meanwhile_leave_the_bundle_as_it_is(trained, monkeypatch):
    build = model_source.build_onnx

    def build_while_somebody_trains(*arguments, **options):
        update_bundle(trained, {}, {"weights.safetensors": b"new"})
        return build(*arguments, **options)

    monkeypatch.setattr(model_source, "build_onnx", build_while_somebody_trains)
    with pytest.raises(BundleError, match="changed by another command"):
        run(trained)
    assert "variants" not in open_bundle(trained).parts
    assert set(open_bundle(trained).files) == {"weights.safetensors", "samples.safetensors"}


def test_a_new_golden_set_proves_the_other_variants_again(trained, tmp_path):
    run(trained, uint8=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    run(trained, images=(tmp_path / "mine.png",))
    variants = open_bundle(trained).parts["variants"]
    golden = load_golden(open_bundle(trained))
    np.testing.assert_array_equal(golden.images[0], pixels)
    preprocessing = Preprocessing.from_json(open_bundle(trained).parts["preprocessing"])
    for name, variant in variants.items():
        again = replay(open_variant(open_bundle(trained), name), golden, preprocessing, GATES["fp32"])
        assert variant["proof"]["max_abs_error"] == pytest.approx(again.max_abs_error, rel=0.5)
        assert variant["proof"]["images"] == 16


def precisions(*names):
    return tuple(PRECISIONS[name] for name in names)


def test_every_precision_is_written_and_proved_on_the_cpu(trained, data):
    names = [name for name in PRECISIONS if name != "fp32"]
    exported = run(trained, precisions=precisions(*names), calibration=data)
    bundle = open_bundle(trained)
    assert exported.rejected == {}
    assert set(bundle.parts["variants"]) == {f"onnx-{name}" for name in PRECISIONS}
    for name, variant in bundle.parts["variants"].items():
        assert variant["proof"]["passed"], name
        assert variant["proof"]["standard"]
        assert (variant.get("calibration") is not None) == PRECISIONS[variant["precision"]].needs_ranges
    assert find_damage(bundle) == []


def test_the_calibration_is_recorded(trained, data):
    run(trained, precisions=precisions("int8"), calibration=data, seed=3)
    part = open_bundle(trained).parts["variants"]["onnx-int8"]["calibration"]
    assert (part["images"], part["seed"]) == (350, 3)
    assert part["method"] in part["tried"]
    assert set(part["tried"]) == {"minmax", "entropy", "percentile"}
    assert len(part["digest"]) == 64


def test_exporting_quantised_twice_writes_the_same_bytes(trained, data):
    run(trained, precisions=precisions("int8-cpu"), calibration=data)
    first = open_bundle(trained).files
    run(trained, precisions=precisions("int8-cpu"), calibration=data)
    assert open_bundle(trained).files == first


def test_with_data_each_variant_has_its_accuracy_on_the_validation_images(trained, data):
    exported = run(trained, precisions=precisions("fp16"), data=data, max_drop=100.0)
    for variant in exported.variants.values():
        assert variant.accuracy.images == 40
        assert variant.accuracy.low <= variant.accuracy.drop <= variant.accuracy.high
    assert exported.variants["onnx-fp32"].accuracy.drop == 0


@pytest.fixture
def messages_of(recorded_progress):
    """Return a function: export and return the messages."""

    def messages(path, **changes):
        recorded_progress.messages.clear()
        export(path, ExportOptions(**changes), recorded_progress)
        return list(recorded_progress.messages)

    return messages


def test_unreadable_validation_images_are_told_and_counted(trained, data, messages_of):
    (data / "val" / "bee" / "003.png").write_bytes(b"gone bad")
    told = messages_of(trained, data=data, max_drop=100.0)
    assert len(told) == 1
    assert f"1 of 40 validation images in {data} cannot be read, for example val/bee/003.png: not an image" in told[0]
    accuracy = open_bundle(trained).parts["variants"]["onnx-fp32"]["accuracy"]
    assert (accuracy["images"], accuracy["left_out"]) == (39, 1)


def test_too_few_images_for_the_limit_are_told_once(trained, data, messages_of):
    (told,) = messages_of(trained, data=data, precisions=precisions("fp16"))
    assert told.startswith("40 validation images are too few to measure a drop of 0.5 points: onnx-fp")
    assert messages_of(trained, data=data, precisions=precisions("fp16"), max_drop=30.0) == []


def test_no_validation_image_calibrates(trained, data, tmp_path):
    """Given as a plain folder: 350 images that are trained on, and the 40 that validate."""
    (tmp_path / "plain").mkdir()
    for file in data.rglob("*.png"):
        name = "-".join(file.relative_to(data).parts)
        (tmp_path / "plain" / name).write_bytes(file.read_bytes())
    options = {"precisions": precisions("int8-cpu"), "calibration": tmp_path / "plain"}
    counts = []
    for changes in ({}, {"data": data, "max_drop": 100.0}):
        run(trained, gates=dict.fromkeys(PRECISIONS, Gate()), **options, **changes)
        counts.append(open_bundle(trained).parts["variants"]["onnx-int8-cpu"]["calibration"]["images"])
    assert counts == [390, 350]


def test_a_folder_with_a_held_out_share_is_read_once(trained, data, trained_on, monkeypatch):
    root = data / "train"
    trained_on(trained, root, share=0.12)
    read = []
    real = export_module.load_training_dataset
    monkeypatch.setattr(export_module, "load_training_dataset", lambda *given: read.append(1) or real(*given))
    monkeypatch.setattr(calibration, "load_training_dataset", lambda *given: pytest.fail("was read again"))
    monkeypatch.setattr(validation, "load_training_dataset", lambda *given: pytest.fail("was read again"))
    loose = {"gates": dict.fromkeys(PRECISIONS, Gate()), "max_drop": 100.0}
    run(trained, data=root, precisions=precisions("int8-cpu"), **loose)
    assert read == [1]
    assert open_bundle(trained).parts["variants"]["onnx-int8-cpu"]["calibration"]["source"] == "training images"


def test_a_variant_below_its_gate_is_left_out_with_the_figures_and_the_others_are_written(trained, data):
    tight = gates_with_overrides([("fp16", "mean", 0.0)])
    exported = run(trained, precisions=precisions("fp16", "int8-cpu"), calibration=data, gates=tight)
    assert set(open_bundle(trained).parts["variants"]) == {"onnx-fp32", "onnx-int8-cpu"}
    assert isinstance(exported.rejected["onnx-fp16"], ProofError)
    assert "mean |error|" in str(exported.rejected["onnx-fp16"])


def test_a_stricter_gate_that_fails_leaves_the_earlier_variant_and_says_so(trained, recorded_progress):
    run(trained, precisions=precisions("fp16", "bf16"))
    before = open_bundle(trained)
    strict = {"precisions": precisions("fp16"), "gates": gates_with_overrides([("fp16", "mean", 0.0)])}
    exported = export(trained, ExportOptions(**strict), recorded_progress)
    assert "onnx-fp16" in exported.rejected
    after = open_bundle(trained)
    assert after.variants == before.variants
    assert after.read("onnx-fp16.onnx") == before.read("onnx-fp16.onnx")
    assert recorded_progress.messages == [
        "onnx-fp16 of an earlier export stays, with the gate that it passed then: --remove-refused removes it"
    ]
    assert default_variant(after, "onnx-fp16") == "onnx-fp16"


def test_asked_for_a_stricter_gate_that_fails_removes_the_earlier_variant(trained):
    run(trained, precisions=precisions("fp16", "bf16"), uint8=True)
    strict = gates_with_overrides([("fp16", "mean", 0.0)])
    exported = run(trained, precisions=precisions("fp16"), gates=strict, remove_refused=True)
    assert "onnx-fp16" in exported.rejected
    left = {"onnx-fp32", "onnx-fp32-uint8", "onnx-bf16", "onnx-bf16-uint8"}
    assert set(open_bundle(trained).parts["variants"]) == left
    assert find_damage(open_bundle(trained)) == []


@pytest.mark.parametrize("contended", [1e3, 0.0, None])
def test_a_busy_machine_removes_no_variant_of_an_earlier_export(
    trained, data, monkeypatch, recorded_progress, contended
):
    run(trained, precisions=precisions("fp16"))
    monkeypatch.setattr("regnet_deploy.cpu_load.OtherLoad.contended_cores", lambda load: contended)
    slower = lambda one: 1.0 if one.precision == "fp32" else 9.0  # noqa: E731
    monkeypatch.setattr(VariantCandidate, "ms_per_image", property(slower))
    options = ExportOptions(auto=True, data=data, max_drop=100.0, seconds=0.01)
    exported = export(trained, options, recorded_progress)
    assert exported.choice.contended_cores == contended
    assert ("onnx-fp16" in open_bundle(trained).variants) is (contended == 1e3)
    told = [line for line in recorded_progress.messages if "other programs used 1000.0 of" in line]
    assert len(told) == (contended == 1e3)


def test_what_auto_refuses_stays_but_is_not_the_default(trained, data, monkeypatch):
    run(trained, precisions=precisions("int8-cpu"), data=data, max_drop=100.0)
    measure = accuracy_gate.measure_accuracy
    monkeypatch.setattr(accuracy_gate, "measure_accuracy", lambda *given: measure(*given).replace(drop=1.0))
    strict = gates_with_overrides([("int8-cpu", "mean", 0.0), ("fp16", "mean", 0.0)])
    run(trained, auto=True, data=data, max_drop=0.0, seconds=0.01, gates=strict)
    bundle = open_bundle(trained)
    assert "onnx-int8-cpu" in bundle.variants
    assert default_variant(bundle) == "onnx-fp32"
    run(trained, precisions=precisions("int8-cpu"), data=data, max_drop=100.0)  # passes when it is named
    assert open_bundle(trained).manifest.choice is None


def test_weights_beyond_fp16_are_named_without_a_warning(trained):
    weights = load_weights(open_bundle(trained).read("weights.safetensors"))
    weights["head.fc.weight"] = weights["head.fc.weight"] * np.float32(1e7)
    update_bundle(trained, {}, {"weights.safetensors": save_weights(weights)})
    exported = run(trained, precisions=precisions("fp16"))  # warnings are errors in tests
    assert set(exported.variants) == {"onnx-fp32"}
    line = str(exported.rejected["onnx-fp16"])
    assert re.match(
        r"fp16 is not exported: logits \(the output of head\.fc\) reach \d\S* on the .* beyond .* 65,504\): ", line
    )
    assert isinstance(exported.rejected["onnx-fp16"], ProofError)


@pytest.mark.parametrize("name", ["int8-1x1", "fp8-1x1"])
def test_a_precision_that_changes_nothing_is_refused_before_anything_is_written(trained, data, name):
    update_bundle(trained, {"architecture": architecture_of(PLAIN)})
    update_bundle(trained, {}, {"weights.safetensors": weights_to_bytes(AnyNet(PLAIN, 5, seed=0).state_dict())})
    before = (trained / "bundle.json").read_bytes()
    with pytest.raises(
        UsageError, match=rf"^precision {name} would quantize nothing .* no 1x1 .* give --precision fp16"
    ):
        run(trained, precisions=precisions(name), calibration=data)
    assert (trained / "bundle.json").read_bytes() == before


def test_a_choice_goes_when_what_it_tells_of_is_replaced(trained, data, write_images, tmp_path):
    run(trained, auto=True, precisions=precisions("int8-cpu"), data=data, max_drop=100.0, seconds=0.01)
    run(trained)
    assert "choice" in open_bundle(trained).parts
    write_images(tmp_path / "others", 320, seed=7)
    run(trained, precisions=precisions("int8-cpu"), calibration=tmp_path / "others")
    assert "choice" not in open_bundle(trained).parts


def test_auto_keeps_the_fastest_and_says_why_of_each(trained, data):
    exported = run(trained, auto=True, data=data, max_drop=100.0, seconds=0.01, batches=(1, 2))
    bundle = open_bundle(trained)
    choice = bundle.parts["choice"]
    assert exported.choice.to_json() == choice
    assert [one["variant"] for one in choice["candidates"]] == ["onnx-fp32", "onnx-fp16", "onnx-int8-cpu"]
    kept = [one["variant"] for one in choice["candidates"] if one["result"] == "kept"]
    assert len(kept) == 1
    assert set(bundle.parts["variants"]) == {"onnx-fp32", *kept}
    assert all(one["reason"] for one in choice["candidates"])
    assert {row["batch"] for one in choice["candidates"] for row in one["latency"]} == {1, 2}
    assert find_damage(bundle) == []


def test_auto_validates_the_fastest_and_takes_the_next_where_that_loses_too_much(trained, data, monkeypatch):
    speeds = {"onnx-fp32": 9.0, "onnx-fp16": 5.0, "onnx-int8-cpu": 1.0}
    validated, measure = [], accuracy_gate.measure_accuracy

    def measured(sessions, batches, *others):
        return [
            VariantCandidate(name, precision, latency=(latency(name, 1, speeds[name]),))
            for name, (_, precision) in sessions.items()
        ]

    def accuracy(*given):
        validated.append(given)
        return measure(*given).replace(drop=2.0 if len(validated) == int8 else 0.0)

    monkeypatch.setattr(variant_choice, "measure_candidates", measured)
    monkeypatch.setattr(accuracy_gate, "measure_accuracy", accuracy)
    for int8, kept in ((None, "onnx-int8-cpu"), (2, "onnx-fp16")):
        validated.clear()
        exported = run(trained, auto=True, data=data)
        assert set(exported.variants) == {"onnx-fp32", kept}
        assert len(validated) == (2 if int8 is None else 3)  # fp32, the fastest, and where that fails the next
    results = {one.variant: one for one in exported.choice.candidates}
    assert "loses 2.00 points" in results["onnx-int8-cpu"].reason
    assert results["onnx-fp16"].accuracy.drop == 0


def test_auto_takes_out_what_an_earlier_export_left_and_lost_now(trained, data):
    run(trained, precisions=precisions("fp16"))
    exported = run(
        trained,
        auto=True,
        data=data,
        max_drop=100.0,
        seconds=0.01,
        gates=gates_with_overrides([("fp16", "mean", 0)]),
        remove_refused=True,
    )
    assert "onnx-fp16" not in open_bundle(trained).parts["variants"]
    assert exported.rejected == {}
    (out,) = (one for one in exported.choice.candidates if one.variant == "onnx-fp16")
    assert out.result == "refused"


def test_what_could_not_be_made_now_says_nothing_against_what_is_there(trained, data, write_images, tmp_path):
    run(trained, precisions=precisions("int8-cpu"), calibration=data)
    for number, label in enumerate(open_bundle(trained).parts["labels"]):
        write_images(tmp_path / "few" / "train" / label, 4, seed=number)
        write_images(tmp_path / "few" / "val" / label, 2, seed=100 + number)
    run(trained, auto=True, data=tmp_path / "few", max_drop=100.0, seconds=0.01)
    assert "onnx-int8-cpu" in open_bundle(trained).parts["variants"]


def test_what_was_asked_for_by_name_is_kept_beside_the_winner(trained, data):
    run(trained, auto=True, precisions=precisions("fp16", "bf16"), data=data, max_drop=100.0, seconds=0.01)
    assert {"onnx-fp32", "onnx-fp16", "onnx-bf16"} <= set(open_bundle(trained).parts["variants"])


def test_fp32_falls_back_on_nothing_and_is_not_held_to_the_accuracy_budget(trained, data, monkeypatch):
    measure = accuracy_gate.measure_accuracy
    monkeypatch.setattr(accuracy_gate, "measure_accuracy", lambda *given: measure(*given).replace(drop=1.0))
    exported = run(trained, precisions=precisions("fp16"), data=data, max_drop=0.0)
    assert set(exported.variants) == {"onnx-fp32"}
    assert "may lose 0 (--max-drop)" in str(exported.rejected["onnx-fp16"])


def test_images_that_the_model_does_not_know_are_refused(trained, data):
    update_bundle(trained, Manifest(training=training(0.99)))
    with pytest.raises(
        DataError, match=r"the model classifies .* correctly, and 99\.00% in training: these are different images"
    ):
        run(trained, data=data)
    assert "variants" not in open_bundle(trained).parts


def test_the_accuracy_of_the_same_bytes_is_remembered(trained, data):
    run(trained, precisions=precisions("fp16"), data=data, max_drop=100.0)
    known = open_bundle(trained).variants["onnx-fp16"].accuracy
    assert run(trained, precisions=precisions("fp16")).variants["onnx-fp16"].accuracy == known


def test_few_images_calibrate_with_a_warning(trained, write_images, tmp_path, messages_of):
    write_images(tmp_path / "few", 40)
    loose = dict.fromkeys(PRECISIONS, Gate())
    (told,) = messages_of(trained, precisions=precisions("int8-cpu"), calibration=tmp_path / "few", gates=loose)
    assert "has 40 usable images" in told
    assert open_bundle(trained).variants["onnx-int8-cpu"].calibration.images == 40


def test_auto_goes_on_without_int8_where_there_is_no_image_for_it(trained, data, tmp_path):
    (tmp_path / "none").mkdir()
    exported = run(trained, auto=True, data=data, calibration=tmp_path / "none", max_drop=100.0, seconds=0.01)
    results = {one.variant: one for one in exported.choice.candidates}
    assert results["onnx-int8-cpu"].result == "unmeasured"
    assert "0 usable images" in results["onnx-int8-cpu"].reason


def test_asked_for_by_name_no_image_is_an_error_and_nothing_is_written(trained, tmp_path):
    (tmp_path / "none").mkdir()
    before = (trained / "bundle.json").read_bytes()
    with pytest.raises(DataError, match="0 usable images"):
        run(trained, precisions=precisions("int8"), calibration=tmp_path / "none")
    assert (trained / "bundle.json").read_bytes() == before


def test_pixels_can_be_taken_in_every_precision(trained, data):
    run(trained, precisions=precisions("fp16", "int8-cpu"), calibration=data, uint8=True)
    variants = open_bundle(trained).parts["variants"]
    assert {name for name, one in variants.items() if one["input"] == "uint8"} == {
        "onnx-fp32-uint8",
        "onnx-fp16-uint8",
        "onnx-int8-cpu-uint8",
    }


def test_an_earlier_variant_is_proved_on_a_new_golden_set_with_the_gate_that_it_passed(trained, tmp_path):
    run(trained, precisions=precisions("fp16"))
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "mine.png")
    strict = gates_with_overrides([("fp16", "mean", 0)])
    exported = run(trained, images=(tmp_path / "mine.png",), gates=strict)
    assert exported.rejected == {}
    proof = open_bundle(trained).variants["onnx-fp16"].proof
    assert (proof.images, proof.gate) == (exported.golden.images, GATES["fp16"])
    assert find_damage(open_bundle(trained)) == []


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    if find_gpu() is not None:
        pytest.skip("needs a machine without a CUDA device")


def test_an_engine_is_built_from_each_proved_onnx_and_names_it(rtx, untrained):
    exported = run(untrained, precisions=precisions("fp16"), engines=True, gates={**GATES, "fp16": Gate()})
    assert exported.rejected == {}
    bundle = open_bundle(untrained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32", "onnx-fp16", "rtx-fp32", "rtx-fp16"}
    variant = bundle.parts["variants"]["rtx-fp16"]
    (engine,) = variant["engines"]
    assert variant["source"] == "onnx-fp16"
    assert engine["identity"]["onnx_sha256"] == hashlib.sha256(bundle.read("onnx-fp16.onnx")).hexdigest()
    assert engine["bytes"] == len(bundle.read(engine["file"]))
    assert engine["proof"] is None
    assert "without a GPU" in engine["note"]
    assert set(engine["types"]) == {"fp16"}
    assert engine["types"]["fp16"] + len(engine["unaccounted"]) == len(variant["convolutions"])


def test_every_engine_computes_as_asked(rtx, trained, data):
    exported = run(trained, precisions=precisions("int8", "int8-1x1", "fp8-1x1"), calibration=data, engines=True)
    assert exported.rejected == {}
    types = {name: exported.variants[name].engines[0].types for name in exported.variants if name.startswith("rtx")}
    asked = {"rtx-fp32": {"fp32"}, "rtx-int8": {"int8", "fp16"}, "rtx-int8-1x1": {"int8", "fp16"}}
    assert {name: set(found) for name, found in types.items()} == {**asked, "rtx-fp8-1x1": {"fp8", "fp16"}}


def test_what_computes_otherwise_than_asked_is_refused(rtx, trained, data, monkeypatch):
    """With scales of shape (1,) in place of scalars TensorRT-RTX quietly computes INT8 convolutions in FP16."""
    constant = TypedGraph.constant
    monkeypatch.setattr(TypedGraph, "constant", lambda self, name, value: constant(self, name, np.atleast_1d(value)))
    exported = run(trained, precisions=precisions("int8"), calibration=data, engines=True)
    assert isinstance(exported.rejected["rtx-int8"], ProofError)
    assert "int8 required, fp16 built" in str(exported.rejected["rtx-int8"])
    assert "rtx-int8" not in open_bundle(trained).parts["variants"]
    assert "onnx-int8" in open_bundle(trained).parts["variants"]


def test_int8_for_the_cpu_is_never_given_to_tensorrt(rtx, trained, data):
    exported = run(trained, precisions=precisions("int8-cpu"), calibration=data, engines=True)
    assert set(exported.variants) == {"onnx-fp32", "onnx-int8-cpu", "rtx-fp32"}


def test_engines_stay_while_their_onnx_does_and_go_when_it_changes(rtx, trained, monkeypatch):
    run(trained, engines=True)
    run(trained)
    assert "rtx-fp32" in open_bundle(trained).parts["variants"]
    monkeypatch.setattr(model_source, "build_onnx", with_metadata(model_source.build_onnx))
    run(trained)
    bundle = open_bundle(trained)
    assert set(bundle.parts["variants"]) == {"onnx-fp32"}
    assert not [name for name in bundle.files if name.endswith(".plan")]


def with_metadata(build):
    return lambda *arguments, **options: build(*arguments, **{**options, "metadata": {"other": "bytes"}})


def test_a_new_golden_set_takes_the_proof_of_engines(rtx, trained, tmp_path):
    run(trained, engines=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "mine.png")
    run(trained, images=(tmp_path / "mine.png",))
    (engine,) = open_bundle(trained).parts["variants"]["rtx-fp32"]["engines"]
    assert engine["proof"] is None
    assert "golden set" in engine["note"]


def test_where_no_builder_is_the_onnx_is_kept_and_the_result_says_what_is_missing(untrained, monkeypatch):
    def none(gpu):
        raise MissingExtra("no TensorRT engine was made")

    monkeypatch.setattr(export_module, "find_library", none)
    exported = run(untrained, engines=True)
    assert isinstance(exported.rejected["engines"], MissingExtra)
    assert set(open_bundle(untrained).parts["variants"]) == {"onnx-fp32"}


def test_a_gray_network_is_calibrated_exported_and_proved(gray, tmp_path):
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(1)
    for number in range(48):
        image = draw.integers(0, 256, 3) + draw.integers(-60, 60, (32, 32, 3))
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    precisions = (PRECISIONS["fp32"], PRECISIONS["int8-cpu"])
    export(gray, ExportOptions(precisions=precisions, calibration=tmp_path / "photos", calibration_images=48))
    bundle = open_bundle(gray)
    assert set(bundle.variants) == {"onnx-fp32", "onnx-int8-cpu"}
    for name, variant in bundle.variants.items():
        shape = onnx.load_from_string(bundle.read(variant.file)).graph.input[0].type.tensor_type.shape
        assert [side.dim_value for side in shape.dim][1:] == [1, 32, 32], name
        assert variant.proof.passed


def test_a_gray_network_is_proved_on_gray_noise_before_training(gray):
    golden = make_golden_set(
        create_bundle(gray.parent / "untrained", {"architecture": open_bundle(gray).architecture}),
        load_model(open_bundle(gray)),
        open_bundle(gray).preprocessing,
        (),
    )
    assert golden.golden.images.shape == (16, 32, 32, 1)
