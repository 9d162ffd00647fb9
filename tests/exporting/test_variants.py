import hashlib
from dataclasses import replace

import onnx
import pytest

from regnet_deploy.errors import DataError, ProofError
from regnet_deploy.exporting import proof, variants
from regnet_deploy.exporting.calibration import CalibrationSet, Calibrator
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.proof import open_for_proof
from regnet_deploy.exporting.variants import export_onnx
from regnet_deploy.progress import NoProgress
from regnet_deploy.runtimes.gates import gates_with_overrides


def none():
    raise DataError("there are no images")


@pytest.fixture
def make(context):
    """Return a maker of the variants of a precision, calibrated on the golden images."""

    def made(precision, pixels=False, **changes):
        options = replace(context.options, uint8=pixels)
        return export_onnx(replace(context, options=options, **changes), PRECISIONS[precision])

    return made


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_the_entry_says_what_the_file_is(make, precision):
    (one,) = make(precision)
    known = PRECISIONS[precision]
    assert one.name == f"onnx-{precision}"
    assert one.variant.file == f"onnx-{precision}.onnx"
    assert one.variant.bytes == len(one.data)
    assert (one.variant.runtime, one.variant.input) == ("onnxruntime", "float32")
    assert one.variant.opset == onnx.load_from_string(one.data).opset_import[0].version == known.opset
    assert one.variant.exact is known.tensorrt_only
    assert one.variant.proof.passed
    assert (one.variant.calibration.digest if one.variant.calibration else None) == (
        "abc" if known.needs_ranges else None
    )
    assert one.accuracy is None


def test_what_takes_pixels_is_a_variant_of_its_own_with_a_proof_of_its_own(make):
    plain, pixels = make("fp16", pixels=True)
    assert (plain.name, pixels.name) == ("onnx-fp16", "onnx-fp16-uint8")
    assert (plain.variant.input, pixels.variant.input) == ("float32", "uint8")
    assert pixels.session.input == "uint8"
    assert pixels.variant.proof.passed


@pytest.mark.parametrize("saturates", [False, True])
def test_where_the_cpu_saturates_weights_for_it_have_a_bit_less(make, monkeypatch, saturates):
    monkeypatch.setattr(variants, "int8_sums_saturate", lambda: saturates)
    (cpu,), (gpu,) = make("int8-cpu"), make("int8")
    assert cpu.variant.weight_bits == (7 if saturates else 8)
    assert gpu.variant.weight_bits is None
    largest = max(
        abs(int(value))
        for constant in onnx.load_from_string(cpu.data).graph.initializer
        if constant.data_type == onnx.TensorProto.INT8 and len(constant.dims) == 4
        for value in onnx.numpy_helper.to_array(constant).ravel()
    )
    assert 32 < largest <= 64 if saturates else largest == 127


def test_images_are_not_asked_for_before_a_precision_needs_them_and_then_once(source, golden, make):
    asked = []

    def images():
        asked.append(1)
        return CalibrationSet(golden.golden.images, "golden images", "none", 0, "abc")

    calibrator = Calibrator(images, source, NoProgress())
    make("fp16", calibrator=calibrator)
    assert asked == []
    make("int8", calibrator=calibrator)
    make("int8-cpu", calibrator=calibrator)
    assert asked == [1]


def test_that_there_are_no_images_is_found_out_once(make, source):
    asked = []
    calibrator = Calibrator(lambda: asked.append(1) or none(), source, NoProgress())
    for precision in ("int8", "int8-cpu"):
        with pytest.raises(DataError, match="there are no images"):
            make(precision, calibrator=calibrator)
    assert asked == [1]


def test_without_images_nothing_is_quantised(make, source):
    with pytest.raises(DataError, match="there are no images"):
        make("int8", calibrator=Calibrator(none, source, NoProgress()))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-cpu", "bf16", "fp8-1x1"])
def test_what_is_below_its_gate_is_refused(make, gate, precision):
    strict = replace(gate, gates=gates_with_overrides([(precision, "mean", 0.0)]))
    with pytest.raises(ProofError, match=rf"^onnx-{precision} does not agree .*mean \|error\|"):
        make(precision, gate=strict)


@pytest.mark.parametrize(
    ("precision", "device", "opened"),
    [
        ("fp32", "auto", {"device": "auto"}),
        ("fp16", "cuda", {"device": "cuda"}),
        ("int8-cpu", "auto", {"device": "cpu"}),  # where it is served
        ("int8-cpu", "cuda", {"device": "cuda"}),
        ("int8", "auto", {"device": "cpu", "exact": True}),
        ("fp8-1x1", "cuda", {"device": "cpu", "exact": True}),
        ("bf16", "auto", {"device": "cpu", "exact": True}),
    ],
)
def test_a_file_is_proved_as_it_is_run(monkeypatch, precision, device, opened):
    seen = []
    monkeypatch.setattr(proof, "open_onnx", lambda data, **options: seen.append((data, options)))
    monkeypatch.setattr(proof, "emulate", lambda data, precision: data + f" as {precision.name}".encode())
    open_for_proof(b"file", PRECISIONS[precision], device)
    assert seen == [(f"file as {precision}".encode() if opened.get("exact") else b"file", opened)]


def test_the_same_network_gives_the_same_bytes(make):
    digests = [hashlib.sha256(make("int8-cpu")[0].data).hexdigest() for _ in range(2)]
    assert digests[0] == digests[1]
