from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bundle_parts import candidate, choice, latency, profile, proof

from regnet_deploy.bundle import Bundle, Manifest, open_bundle, update_bundle
from regnet_deploy.bundle.variants import Gate, Proof, TensorrtVariant
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import (
    default_variant,
    needs_engine_build,
    proof_of,
    variant_unsupported_reason,
)
from regnet_deploy.runtimes.gates import GATES

WITH_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")


def measured(bundle: Path, *rows: tuple[str | None, int, float]) -> Bundle:
    return update_bundle(bundle, Manifest(profile=profile(*(latency(*row) for row in rows))))


def changed(bundle: Path, name: str, **fields: Any) -> Bundle:
    variants = open_bundle(bundle).variants
    return update_bundle(bundle, Manifest(variants={**variants, name: variants[name].replace(**fields)}))


def test_without_measurements_it_is_the_first(exported_bundle: Path):
    assert default_variant(open_bundle(exported_bundle)) == "onnx-fp32"


def test_with_measurements_it_is_the_fastest_by_the_mean_over_batch_sizes(exported_bundle: Path):
    bundle = measured(exported_bundle, ("onnx-fp32", 1, 3.0), ("onnx-fp32-uint8", 1, 2.0), (None, 1, 1.0))
    assert default_variant(bundle) == "onnx-fp32-uint8"
    assert default_variant(bundle, "onnx-fp32") == "onnx-fp32"
    bundle = measured(
        exported_bundle,
        *(("onnx-fp32", 1, 3.0), ("onnx-fp32", 8, 8.0)),  # 3 and 1 ms an image
        *(("onnx-fp32-uint8", 1, 2.0), ("onnx-fp32-uint8", 8, 16.0)),  # 2 and 2
    )
    assert default_variant(bundle) == "onnx-fp32"


def test_one_that_was_not_measured_comes_last(exported_bundle: Path):
    assert default_variant(measured(exported_bundle, ("onnx-fp32-uint8", 4, 9.0))) == "onnx-fp32-uint8"


@pytest.mark.parametrize("unproved", [None, proof(passed=False)])
def test_an_unproved_one_is_never_chosen(exported_bundle: Path, unproved: Proof | None):
    measured(exported_bundle, ("onnx-fp32", 1, 1.0), ("onnx-fp32-uint8", 1, 2.0))
    bundle = changed(exported_bundle, "onnx-fp32", proof=unproved)
    assert default_variant(bundle) == "onnx-fp32-uint8"
    with pytest.raises(UsageError, match="not proved"):
        default_variant(bundle, "onnx-fp32")


def test_where_none_will_do_each_reason_is_given(exported_bundle: Path):
    changed(exported_bundle, "onnx-fp32", proof=None)
    bundle = changed(exported_bundle, "onnx-fp32-uint8", precision="bf16")
    with pytest.raises(UsageError, match=r"onnx-fp32: it is not proved.*onnx-fp32-uint8: ONNX Runtime has no BF16"):
        default_variant(bundle)


def test_before_export_the_command_is_named(exported_bundle: Path):
    bundle = update_bundle(exported_bundle, {}, drop=("variants",))
    with pytest.raises(MissingPart, match="export --onnx"):
        default_variant(bundle)


@pytest.mark.parametrize(
    "gate",
    [
        GATES["fp32"].replace(atol=0.5),
        GATES["fp32"].replace(rtol=0.1),
        GATES["fp32"].replace(top1=0.9),
        Gate(),
        None,  # of a version before gates
    ],
)
def test_one_that_was_proved_loosely_is_only_taken_when_it_is_named(exported_bundle: Path, gate: Gate | None):
    bundle = changed(exported_bundle, "onnx-fp32", proof=proof(gate=gate))
    assert default_variant(bundle) == "onnx-fp32-uint8"
    assert default_variant(bundle, "onnx-fp32") == "onnx-fp32"
    bundle = changed(exported_bundle, "onnx-fp32-uint8", proof=proof(gate=gate))
    with pytest.raises(UsageError, match=r"looser gate than fp32 has, name it with --variant onnx-fp32;"):
        default_variant(bundle)


def test_what_engines_are_built_from_is_only_taken_when_it_is_named(exported_bundle: Path):
    bundle = changed(exported_bundle, "onnx-fp32", exact=True)
    assert default_variant(bundle) == "onnx-fp32-uint8"
    assert default_variant(bundle, "onnx-fp32") == "onnx-fp32"
    bundle = changed(exported_bundle, "onnx-fp32-uint8", exact=True)
    with pytest.raises(UsageError, match="TensorRT engines are built from it"):
        default_variant(bundle)


def test_an_engine_is_not_blamed_for_the_proofs_that_its_engines_have(exported_bundle: Path):
    variants = open_bundle(exported_bundle).variants
    engine = TensorrtVariant(
        precision="fp32", input="float32", opset=18, source="onnx-fp32", convolutions={}, engines=()
    )
    bundle = update_bundle(exported_bundle, Manifest(variants={"trt-fp32": engine, **variants}))
    assert default_variant(bundle) == "onnx-fp32"
    with pytest.raises(UsageError, match="cannot be served: it has no engine"):
        default_variant(bundle, "trt-fp32")
    with pytest.raises(UsageError, match="it is a tensorrt engine, which runs on a GPU, and the CPU was requested"):
        default_variant(bundle, "trt-fp32", "cpu")


def chosen(bundle: Path, *rows: tuple[str, int, float]) -> Bundle:
    """A bundle with what ``export --precision auto`` measured."""
    return update_bundle(bundle, Manifest(choice=choice(*(candidate(row[0], latency(*row)) for row in rows))))


def test_where_nothing_was_measured_it_is_the_most_precise(exported_bundle: Path):
    variants = open_bundle(exported_bundle).variants
    half = variants["onnx-fp32"].replace(precision="fp16", proof=proof("fp16"))
    bundle = update_bundle(exported_bundle, Manifest(variants={"onnx-a": half, **variants}))
    assert default_variant(bundle) == "onnx-fp32"
    assert default_variant(measured(exported_bundle, ("onnx-a", 1, 5.0))) == "onnx-a"


def test_what_export_measured_decides_where_profile_did_not(exported_bundle: Path):
    bundle = chosen(exported_bundle, ("onnx-fp32", 1, 3.0), ("onnx-fp32-uint8", 1, 2.0), ("onnx-gone", 1, 1.0))
    assert default_variant(bundle) == "onnx-fp32-uint8"


def test_profile_is_believed_before_export(exported_bundle: Path):
    chosen(exported_bundle, ("onnx-fp32", 1, 3.0), ("onnx-fp32-uint8", 1, 2.0))
    bundle = measured(exported_bundle, ("onnx-fp32", 8, 16.0), ("onnx-fp32-uint8", 8, 24.0))
    assert default_variant(bundle) == "onnx-fp32"


def test_rows_of_the_two_are_not_compared_and_the_one_that_knows_more_is_taken(exported_bundle: Path):
    chosen(exported_bundle, ("onnx-fp32", 1, 3.0), ("onnx-fp32-uint8", 1, 2.0))
    assert default_variant(measured(exported_bundle, ("onnx-fp32", 1, 1.0))) == "onnx-fp32-uint8"


def test_a_choice_without_measurements_is_no_measurement(exported_bundle: Path):
    bundle = update_bundle(exported_bundle, Manifest(choice=choice(candidate("onnx-fp32"))))
    assert default_variant(bundle) == "onnx-fp32"


@pytest.mark.parametrize(
    ("runtime", "device", "says"),
    [
        (
            "openvin",
            "auto",
            r"no runtime 'openvin' \(did you mean openvino\?\); there are auto, onnxruntime, tensorrt, ",
        ),
        ("auto", "cudda", r"no device 'cudda' \(did you mean cuda\?\); there are auto, cpu, cuda, tensorrt"),
        (
            "openvino",
            "cuda",
            "--runtime openvino runs on the CPU, and --device cuda was requested: choose --device cpu",
        ),
        ("openvino", "tensorrt", "runs on the CPU, and --device tensorrt was requested"),
        ("tensorrt", "cpu", "--runtime tensorrt runs on a GPU, and --device cpu was requested: choose --device auto"),
        ("tensorrt", "auto", r"has none: run `regnet-deploy export --trt .*`, or choose --runtime onnxruntime"),
    ],
)
@pytest.mark.parametrize("wanted", [None, "onnx-fp32"])
def test_a_runtime_that_cannot_be_is_one_line(
    exported_bundle: Path, wanted: str | None, runtime: Any, device: Any, says: str
):
    if wanted and (runtime, device) == ("tensorrt", "auto"):
        says = "variant onnx-fp32 of .* cannot be served: it is an ONNX file, and TensorRT engines were requested"
    with pytest.raises(UsageError, match=says):
        default_variant(open_bundle(exported_bundle), wanted, device, runtime)


@WITH_OPENVINO
def test_openvino_and_onnxruntime_take_what_the_other_takes_and_no_engines(without_engine: Path):
    bundle = open_bundle(without_engine)
    for runtime in ("onnxruntime", "openvino"):
        assert default_variant(bundle, None, "auto", runtime) == "onnx-fp32"
        assert default_variant(bundle, "onnx-fp32-uint8", "cpu", runtime) == "onnx-fp32-uint8"
        says = f"it is a tensorrt engine, and {runtime} was requested"
        assert variant_unsupported_reason(bundle, "trt-fp32", "auto", runtime) == says


@WITH_OPENVINO
def test_openvino_is_not_given_what_is_written_for_engines(exported_bundle: Path):
    bundle = changed(exported_bundle, "onnx-fp32", exact=True)
    says = "fp32 is for TensorRT engines, and OpenVINO does not compute the types of the file"
    assert variant_unsupported_reason(bundle, "onnx-fp32", runtime="openvino") == says
    assert default_variant(bundle, runtime="openvino") == "onnx-fp32-uint8"
    with pytest.raises(UsageError, match=says):
        default_variant(bundle, "onnx-fp32", runtime="openvino")


@WITH_OPENVINO
def test_what_one_runtime_took_says_nothing_of_the_other(exported_bundle: Path):
    rows = [
        latency("onnx-fp32", 1, 3.0),
        latency("onnx-fp32-uint8", 1, 4.0),
        latency("onnx-fp32", 1, 2.0, runtime="openvino 2026.4.1"),
        latency("onnx-fp32-uint8", 1, 1.0, runtime="openvino 2026.4.1"),
    ]
    bundle = update_bundle(exported_bundle, Manifest(profile=profile(*rows)))
    assert default_variant(bundle, runtime="openvino") == "onnx-fp32-uint8"
    assert default_variant(bundle, runtime="onnxruntime") == default_variant(bundle) == "onnx-fp32"


def test_openvino_that_is_not_installed_is_a_reason(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    bundle = open_bundle(exported_bundle)
    monkeypatch.setattr(metadata, "version", version)
    assert "pip install 'regnet-deploy[openvino]'" in str(
        variant_unsupported_reason(bundle, "onnx-fp32", "cpu", "openvino")
    )


class TestEngines:
    """Of engines it is the one that fits which counts."""

    def test_the_proof_is_that_of_the_engine_that_fits(self, with_h100_engine: Path, computer: Any, fake_machine: Any):
        bundle = open_bundle(with_h100_engine)
        proof = proof_of(bundle, "trt-fp32")
        assert proof == bundle.variants["trt-fp32"].engines[0].proof
        assert variant_unsupported_reason(bundle, "trt-fp32") is None
        assert default_variant(bundle, "trt-fp32") == "trt-fp32"
        computer.driver.gpu = fake_machine.A100
        assert proof_of(bundle, "trt-fp32") is None
        assert "it was built for NVIDIA H100" in str(variant_unsupported_reason(bundle, "trt-fp32"))

    def test_one_that_was_proved_loosely_is_only_taken_when_it_is_named(self, with_h100_engine: Path):
        variants = open_bundle(with_h100_engine).parts["variants"]
        variants["trt-fp32"]["engines"][0]["proof"]["gate"] = Gate().to_json()
        update_bundle(with_h100_engine, {"variants": variants})
        bundle = measured(with_h100_engine, ("trt-fp32", 1, 1.0), ("onnx-fp32", 1, 2.0))
        assert default_variant(bundle) == "onnx-fp32"
        assert default_variant(bundle, "trt-fp32") == "trt-fp32"

    @pytest.mark.parametrize(
        ("proof", "gpu", "device", "must"),
        [
            ("kept", "H100", "auto", False),
            ("kept", "A100", "auto", True),
            ("kept", "A100", "cpu", False),
            ("kept", None, "auto", False),
            (None, "H100", "auto", True),
        ],
    )
    def test_it_must_be_built_where_there_is_a_gpu_and_none_that_is_proved(
        self,
        with_h100_engine: Path,
        computer: Any,
        fake_machine: Any,
        proof: str | None,
        gpu: str | None,
        device: Any,
        must: bool,
    ):
        bundle = open_bundle(with_h100_engine)
        variants = bundle.parts["variants"]
        if proof is None:
            variants["trt-fp32"]["engines"][0]["proof"] = None
            bundle = update_bundle(with_h100_engine, {"variants": variants})
        computer.driver.gpu = getattr(fake_machine, gpu) if gpu else None
        assert needs_engine_build(bundle, "trt-fp32", device) is must
        assert needs_engine_build(bundle, "onnx-fp32", device) is False
        assert needs_engine_build(bundle, "trt-fp32", device, "onnxruntime") is False
        if device == "auto":
            assert needs_engine_build(bundle, "trt-fp32", device, "tensorrt") is must

    def test_tensorrt_is_its_engines_and_nothing_else(self, with_h100_engine: Path, computer: Any, fake_machine: Any):
        bundle = measured(with_h100_engine, ("trt-fp32", 1, 9.0), ("onnx-fp32", 1, 2.0))
        assert default_variant(bundle) == default_variant(bundle, runtime="onnxruntime") == "onnx-fp32"
        assert default_variant(bundle, runtime="tensorrt") == "trt-fp32"
        with pytest.raises(UsageError, match="it is a tensorrt engine, and openvino was requested"):
            default_variant(bundle, "trt-fp32", runtime="openvino")
        computer.driver.gpu = fake_machine.A100
        with pytest.raises(UsageError, match=r"can be served - trt-fp32: it was built for NVIDIA H100[^;]*$"):
            default_variant(bundle, runtime="tensorrt")
