"""The ONNX files of an export in OpenVINO: proved, measured, elected, and what becomes of them later."""

import hashlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from bundle_parts import latency
from PIL import Image

from regnet_deploy.bundle import Manifest, find_damage, open_bundle, update_bundle
from regnet_deploy.bundle.variants import OpenvinoVariant
from regnet_deploy.errors import BundleError, MissingExtra, UsageError
from regnet_deploy.exporting import accuracy_gate, openvino_variants, variant_choice
from regnet_deploy.exporting import export as export_module
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.variant_choice import VariantCandidate
from regnet_deploy.runtimes.checked_variant import open_checked_variant
from regnet_deploy.runtimes.default_variant import default_variant, fallback_note
from regnet_deploy.runtimes.gates import gates_with_overrides
from regnet_deploy.runtimes.openvino_session import bf16_unsupported_reason
from regnet_deploy.runtimes.runtime import open_variant, runtime_unsupported_reason

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")

INT8_CPU = PRECISIONS["int8-cpu"]
SIDE = 32  # pixels of the bundle's images
NO_BF16 = "OpenVINO computes in FP32, INT8 on this CPU, which has no instructions for BF16"


def run(path, **changes):
    return export(path, ExportOptions(device="cpu", **changes))


def missing():
    raise MissingExtra("this needs OpenVINO, which is not installed: pip install 'regnet-deploy[openvino]'")


@pytest.fixture
def data(trained, tmp_path):
    """A training folder with images like the samples of the bundle, which are the golden set."""
    draw = np.random.default_rng(5)
    for subset, count in (("train", 70), ("val", 8)):
        for label in open_bundle(trained).labels:
            (tmp_path / "data" / subset / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (1, 1, 3)) + draw.integers(-60, 60, (SIDE, SIDE, 3))
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(tmp_path / "data" / subset / label / f"{number:03}.png")
    return tmp_path / "data"


@pytest.fixture
def speeds(monkeypatch):
    """Median ms of each candidate, in place of a measurement; the test may change them."""
    ms = {"onnx-fp32": 9.0, "onnx-fp16": 12.0, "onnx-int8-cpu": 5.0}
    ms |= {"openvino-fp32": 6.0, "openvino-bf16": 4.0, "openvino-int8-cpu": 2.0}

    def measured(sessions, batches, *others):
        rows = {name: latency(name, 1, ms[name], runtime=session.runtime) for name, (session, _) in sessions.items()}
        return [VariantCandidate(name, one, latency=(rows[name],)) for name, (_, one) in sessions.items()]

    monkeypatch.setattr(variant_choice, "measure_candidates", measured)
    return ms


@pytest.fixture
def without_bf16(monkeypatch):
    """A CPU without BF16."""
    for module in ("exporting.openvino_variants", "runtimes.runtime"):
        monkeypatch.setattr(f"regnet_deploy.{module}.bf16_unsupported_reason", lambda: NO_BF16)


def test_requested_variants_run_the_files_of_the_bundle_and_are_proved_by_openvino(trained, data):
    exported = run(trained, openvino=True, uint8=True, precisions=(INT8_CPU,), data=data, max_drop=100.0)
    assert exported.rejected == {}
    bundle = open_bundle(trained)
    found = {name: one for name, one in bundle.variants.items() if isinstance(one, OpenvinoVariant)}
    made = {"openvino-fp32": "onnx-fp32", "openvino-int8-cpu": "onnx-int8-cpu"}
    if bf16_unsupported_reason() is None:
        made["openvino-bf16"] = "onnx-fp32"
    made |= {f"{name}-uint8": f"{source}-uint8" for name, source in made.items()}
    assert {name: one.source for name, one in found.items()} == made
    for name, one in found.items():
        assert one.proof.passed
        assert one.proof.standard
        assert one.proof.runtime.startswith("openvino ")
        assert one.accuracy.images == 40
        assert one.compute == ("bf16" if one.precision == "bf16" else "fp32")
        assert one.onnx_sha256 == hashlib.sha256(bundle.read(f"{one.source}.onnx")).hexdigest()
        assert open_checked_variant(bundle, name, threads=1).input == one.input
    assert find_damage(bundle) == []


def test_a_plain_export_has_none(trained):
    assert list(run(trained).variants) == ["onnx-fp32"]


@pytest.mark.parametrize("computes", ["fp32", "bf16"])
def test_the_type_of_a_variant_is_what_openvino_computes_in(trained, computes):
    if computes == "bf16" and bf16_unsupported_reason():
        pytest.skip("needs a CPU with BF16")
    run(trained, openvino=True)
    session = open_variant(open_bundle(trained), f"openvino-{computes}", threads=1)
    session.run(np.zeros((2, 3, SIDE, SIDE), np.float32))
    wanted = {"fp32": "f32", "bf16": "bf16"}[computes]
    for compiled in session._compiled:
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == wanted


def test_auto_elects_over_runtimes_and_precisions_and_keeps_the_file_and_a_way_without_openvino(
    trained, data, speeds, monkeypatch
):
    speeds["onnx-int8-cpu"] = 10.0  # slower than fp32 in ONNX Runtime, the fastest in OpenVINO
    exported = run(trained, auto=True, data=data, max_drop=100.0)
    assert set(exported.variants) == {"onnx-fp32", "onnx-int8-cpu", "openvino-int8-cpu"}
    bundle = open_bundle(trained)
    results = {one.variant: one for one in exported.choice.candidates}
    assert results["openvino-fp32"].result == "slower"
    assert results["openvino-int8-cpu"].accuracy is not None
    assert results["onnx-int8-cpu"].reason.startswith("openvino-int8-cpu runs its file; by itself it takes 1.11 times")
    assert default_variant(bundle) == default_variant(bundle, runtime="openvino") == "openvino-int8-cpu"
    assert default_variant(bundle, runtime="onnxruntime") == "onnx-fp32"
    assert fallback_note(bundle, "openvino-int8-cpu") is None

    monkeypatch.setattr("regnet_deploy.runtimes.runtime.installed_openvino", missing)
    assert default_variant(bundle) == "onnx-fp32"
    assert fallback_note(bundle, "onnx-fp32") == (
        "onnx-fp32 runs in place of openvino-int8-cpu, which was measured as faster: this needs OpenVINO, which is not "
        "installed: pip install 'regnet-deploy[openvino]'"
    )
    assert fallback_note(bundle, "onnx-fp32", runtime="onnxruntime") is None  # as requested
    with pytest.raises(UsageError, match=r"variant openvino-int8-cpu of .* cannot be served: this needs OpenVINO"):
        default_variant(bundle, "openvino-int8-cpu")


def test_bf16_is_a_candidate_from_the_fp32_file_where_the_cpu_has_it(trained, data, speeds, monkeypatch):
    if bf16_unsupported_reason():
        pytest.skip("needs a CPU with BF16")
    speeds["openvino-bf16"] = 1.0
    run(trained, auto=True, data=data, max_drop=100.0)
    bundle = open_bundle(trained)
    assert default_variant(bundle) == "openvino-bf16"
    monkeypatch.setattr("regnet_deploy.runtimes.runtime.bf16_unsupported_reason", lambda: NO_BF16)
    assert default_variant(bundle) == "onnx-int8-cpu"
    assert str(fallback_note(bundle, "onnx-int8-cpu")).endswith(f"which was measured as faster: {NO_BF16}")
    with pytest.raises(UsageError, match="variant openvino-bf16 cannot be run here: OpenVINO computes in FP32, INT8"):
        open_variant(bundle, "openvino-bf16")


@pytest.mark.usefixtures("without_bf16")
def test_a_cpu_without_bf16_is_said_where_openvino_was_requested(trained, recorded_progress):
    exported = export(trained, ExportOptions(device="cpu", openvino=True), recorded_progress)
    assert set(exported.variants) == {"onnx-fp32", "openvino-fp32"}
    assert f"openvino-bf16 is not made: {NO_BF16}" in recorded_progress.messages


def test_without_openvino_nothing_is_written_if_it_was_requested_and_auto_says_what_it_misses(
    trained, data, speeds, monkeypatch, recorded_progress
):
    monkeypatch.setattr(export_module, "installed_openvino", missing)
    monkeypatch.setattr(openvino_variants, "installed_openvino", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[openvino\]'"):
        run(trained, openvino=True)
    assert open_bundle(trained).manifest.variants == {}
    exported = export(
        trained,
        ExportOptions(device="cpu", auto=True, data=data, max_drop=100.0),
        recorded_progress,
    )
    assert set(exported.variants) == {"onnx-fp32", "onnx-int8-cpu"}
    assert any(line.startswith("OpenVINO, which is often faster on CPUs") for line in recorded_progress.messages)


def test_a_variant_that_does_not_pass_its_gate_is_an_error_where_it_was_requested_and_never_elected(
    trained, data, speeds
):
    if bf16_unsupported_reason():
        pytest.skip("needs a CPU with BF16")
    speeds["openvino-bf16"] = 0.1
    strict = gates_with_overrides([("bf16", "mean", 0.0)])
    exported = run(trained, openvino=True, gates=strict)
    assert list(exported.rejected) == ["openvino-bf16"]
    assert set(exported.variants) == {"onnx-fp32", "openvino-fp32"}
    exported = run(trained, auto=True, data=data, max_drop=100.0, gates=strict)
    assert {one.variant: one.result for one in exported.choice.candidates}["openvino-bf16"] == "refused"
    assert default_variant(open_bundle(trained)) == "openvino-int8-cpu"


def test_a_file_that_loses_too_much_is_refused_in_both_runtimes(trained, data, speeds, monkeypatch):
    speeds |= {"onnx-int8-cpu": 1.0, "openvino-int8-cpu": 0.5, "openvino-bf16": 8.0}
    measure = accuracy_gate.measure_accuracy

    def accuracy(session, *given):
        quantized = session.runtime.startswith("onnxruntime") and session is not first[0]
        return measure(session, *given).replace(drop=2.0 if quantized else 0.0)

    first = []
    make = variant_choice.choose_variants

    def choosing(context, state):
        first.append(state.onnx["onnx-fp32"].session)
        return make(context, state)

    monkeypatch.setattr(export_module, "choose_variants", choosing)
    monkeypatch.setattr(
        accuracy_gate, "measure_accuracy", lambda *given: accuracy(*given) if first else measure(*given)
    )
    exported = run(trained, auto=True, data=data)
    results = {one.variant: one for one in exported.choice.candidates}
    assert results["onnx-int8-cpu"].result == "refused"
    assert results["openvino-int8-cpu"].result == "refused"
    assert results["openvino-int8-cpu"].reason == "it runs the file of onnx-int8-cpu, which is refused"
    assert set(exported.variants) == {"onnx-fp32", "openvino-fp32"}


def test_one_goes_with_its_file_and_stays_with_a_plain_export(trained, data, write_images, tmp_path):
    run(trained, openvino=True, precisions=(INT8_CPU,), calibration=data)
    run(trained)
    assert "openvino-int8-cpu" in open_bundle(trained).variants
    write_images(tmp_path / "others", 320, seed=7)
    run(trained, precisions=(INT8_CPU,), calibration=tmp_path / "others")
    bundle = open_bundle(trained)
    assert {"openvino-fp32", "onnx-int8-cpu"} <= set(bundle.variants)
    assert "openvino-int8-cpu" not in bundle.variants


def test_a_new_golden_set_proves_it_again_or_takes_its_proof(trained, write_images, tmp_path, monkeypatch):
    run(trained, openvino=True)
    before = open_bundle(trained).variants["openvino-fp32"]
    write_images(tmp_path / "golden", 20, seed=3)
    run(trained, images=(tmp_path / "golden",))
    again = open_bundle(trained).variants["openvino-fp32"]
    assert (before.proof.images, again.proof.images) == (16, 20)

    def open_none(data, **others):
        missing()

    monkeypatch.setattr("regnet_deploy.exporting.existing_variants.open_by_openvino", open_none)
    write_images(tmp_path / "other", 10, seed=4)
    run(trained, images=(tmp_path / "other",))
    bundle = open_bundle(trained)
    assert bundle.variants["openvino-fp32"].proof is None
    assert "export --openvino again" in bundle.variants["openvino-fp32"].note
    assert default_variant(bundle, runtime="openvino") == "onnx-fp32"


def test_an_accuracy_that_was_measured_for_the_same_file_is_kept(trained, data):
    run(trained, openvino=True, data=data, max_drop=100.0)
    measured = open_bundle(trained).variants["openvino-fp32"].accuracy
    run(trained, openvino=True)
    assert open_bundle(trained).variants["openvino-fp32"].accuracy == measured


def test_a_manifest_that_names_another_file_is_not_run(trained):
    run(trained, openvino=True)
    bundle = open_bundle(trained)
    wrong = bundle.variants["openvino-fp32"].replace(onnx_sha256="0" * 64)
    update_bundle(trained, Manifest(variants={**bundle.variants, "openvino-fp32": wrong}))
    with pytest.raises(BundleError, match=r"was proved with another file than that of onnx-fp32: run `regnet-deploy"):
        open_variant(open_bundle(trained), "openvino-fp32")


@pytest.mark.parametrize(
    ("runtime", "device", "says"),
    [
        ("onnxruntime", "auto", "it is for OpenVINO, and onnxruntime was requested"),
        ("tensorrt", "auto", "it is for OpenVINO, and tensorrt was requested"),
        ("auto", "cuda", "it is for OpenVINO on a CPU, and cuda was requested"),
        ("openvino", "cpu", None),
    ],
)
def test_it_runs_in_openvino_on_a_cpu_and_nowhere_else(trained, runtime, device, says):
    run(trained, openvino=True)
    assert runtime_unsupported_reason(open_bundle(trained), "openvino-fp32", device, runtime) == says


def test_int8_that_saturates_here_is_not_the_default(trained, data, speeds, monkeypatch):
    run(trained, auto=True, data=data, max_drop=100.0)
    bundle = open_bundle(trained)
    eight = {
        name: one.replace(weight_bits=8) if name == "onnx-int8-cpu" else one for name, one in bundle.variants.items()
    }
    bundle = replace(bundle, manifest=bundle.manifest.replace(variants=eight))
    monkeypatch.setattr("regnet_deploy.runtimes.default_variant.int8_sums_saturate", lambda: True)
    assert default_variant(bundle) == "onnx-fp32"
