import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.cli.main import run
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.serving.golden import Golden, golden_to_bytes, load_golden
from regnet_deploy.serving.runtime import classify_pixels


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run(["verify", *arguments])
    out, errors = capsys.readouterr()
    return int(ended.value.code or 0), out, errors


def checks(capsys: pytest.CaptureFixture[str], bundle: Path, code: int) -> dict[str, dict[str, Any]]:
    got, out, errors = verify(capsys, str(bundle), "--json")
    assert got == code, errors
    document = json.loads(out)
    assert document["ok"] is (code == 0)
    return {check["subject"]: check for check in document["checks"]}


def outcomes(capsys: pytest.CaptureFixture[str], bundle: Path, code: int) -> dict[str, str]:
    return {subject: check["outcome"] for subject, check in checks(capsys, bundle, code).items()}


@pytest.mark.usefixtures("no_torch")
def test_a_whole_bundle_verifies_and_says_what_was_not_run(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    found = checks(capsys, exported_bundle, 0)
    assert {subject: check["outcome"] for subject, check in found.items()} == {
        "bundle.json": "ok",
        "golden.safetensors": "ok",
        "onnx-fp32-uint8.onnx": "ok",
        "onnx-fp32.onnx": "ok",
        "labels": "ok",
        "golden set": "ok",
        "weights": "not run",
        "onnx-fp32": "ok",
        "onnx-fp32-uint8": "ok",
    }
    assert "pip install 'regnet-deploy[train]'" in found["weights"]["detail"]
    assert found["onnx-fp32-uint8"]["agreement"]["images"] == 16
    assert found["onnx-fp32-uint8"]["agreement"]["max_abs_error"] < 1e-3


@pytest.mark.usefixtures("no_torch")
def test_the_table_has_the_figures(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    code, out, errors = verify(capsys, str(exported_bundle))
    assert (code, errors) == (0, "")
    row = next(line for line in out.splitlines() if line.strip().startswith("onnx-fp32-uint8 "))
    assert "100.0%" in row
    assert "onnxruntime" in row


@pytest.mark.usefixtures("no_torch")
def test_a_flipped_bit_anywhere_is_found(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    draw = np.random.default_rng(0)
    paths = sorted(exported_bundle.iterdir())
    assert MANIFEST in [path.name for path in paths]
    for path in paths:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1, *draw.integers(0, len(whole), 5).tolist()}:
            changed = bytearray(whole)
            changed[at] ^= 1 << int(draw.integers(8))
            path.write_bytes(changed)
            code, _, errors = verify(capsys, str(exported_bundle))
            assert code == 2, (path, at)
            assert path.name in errors
            assert errors.count("\n") == 1
        path.write_bytes(whole)
    assert verify(capsys, str(exported_bundle))[0] == 0


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_another_length_is_found(capsys: pytest.CaptureFixture[str], exported_bundle: Path, change: str):
    path = open_bundle(exported_bundle).stored_path("onnx-fp32.onnx")
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "shorter" else path.read_bytes() + b"\0")
    found = outcomes(capsys, exported_bundle, 2)
    assert found["onnx-fp32.onnx"] == found["onnx-fp32"] == "damaged"
    assert found["onnx-fp32-uint8"] == "ok"  # the others are looked at all the same


@pytest.mark.usefixtures("no_torch")
def test_a_file_that_does_not_belong_is_found(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    (exported_bundle / "model.pkl").write_bytes(b"cos\nsystem\n")
    found = checks(capsys, exported_bundle, 2)
    assert "model.pkl is not part of the bundle" in found["folder"]["detail"]


@pytest.mark.usefixtures("no_torch")
def test_a_network_that_disagrees_is_exit_code_3_with_figures(
    capsys: pytest.CaptureFixture[str], exported_bundle: Path
):
    golden = load_golden(open_bundle(exported_bundle))
    logits = golden.logits.copy()
    logits[3, 1] += 0.25
    update_bundle(exported_bundle, {}, {"golden.safetensors": golden_to_bytes(Golden(golden.images, logits))})
    code, _, errors = verify(capsys, str(exported_bundle))
    assert code == 3
    assert "onnx-fp32: golden set by onnxruntime" in errors
    assert "max |error| 0.25" in errors
    assert errors.count("\n") == 1


@pytest.mark.usefixtures("no_torch")
def test_variants_that_this_machine_cannot_run_are_named(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    variants = open_bundle(exported_bundle).part("variants")
    variants["onnx-fp32"]["runtime"] = "tensorrt"
    variants["onnx-fp32-uint8"]["precision"] = "fp3"
    update_bundle(exported_bundle, {"variants": variants})
    found = checks(capsys, exported_bundle, 2)
    assert found["onnx-fp32"]["outcome"] == "not run"
    assert "it is a tensorrt engine, and this needs torch" in found["onnx-fp32"]["detail"]
    assert "fp3" in found["onnx-fp32-uint8"]["detail"]


@pytest.mark.usefixtures("no_torch")
def test_a_bundle_before_export_is_checked_as_far_as_it_goes(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    update_bundle(exported_bundle, {}, drop=("labels", "golden", "variants", *bundle.files))
    found = checks(capsys, exported_bundle, 0)
    assert found["weights"]["outcome"] == "not run"
    assert "export --onnx" in found["weights"]["detail"]
    assert found["labels"]["detail"] == "none before training"


@pytest.mark.usefixtures("no_torch")
def test_labels_of_another_number_are_found(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    update_bundle(exported_bundle, {"labels": ["one", "two"]})
    assert outcomes(capsys, exported_bundle, 2)["labels"] == "damaged"


def test_the_model_itself_is_held_against_its_golden_set(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    import torch

    from regnet_deploy.models.session import TorchSession
    from regnet_deploy.models.weights import FILE, model_of, weights_to_bytes

    bundle = open_bundle(exported_bundle)
    model = model_of(bundle)
    with torch.no_grad():
        model.head.fc.weight.mul_(100)
    weights = weights_to_bytes(model.state_dict())
    bundle = update_bundle(exported_bundle, {}, {FILE: weights}, drop=("variants", *bundle.files))
    images = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3)).astype(np.uint8)
    logits = classify_pixels(TorchSession(bundle), images, Preprocessing.from_json(bundle.part("preprocessing")))
    golden = golden_to_bytes(Golden(images, logits))
    part = {"weights_sha256": bundle.files[FILE].sha256, "images": 9}
    update_bundle(exported_bundle, {"golden": part}, {"golden.safetensors": golden})
    found = checks(capsys, exported_bundle, 0)
    assert found["weights"]["outcome"] == "ok"
    assert found["weights"]["agreement"]["max_abs_error"] < 1e-4
    assert "torch" in found["weights"]["detail"]

    with torch.no_grad():
        model.head.fc.bias.add_(torch.arange(6) * 0.1)
    update_bundle(exported_bundle, {}, {FILE: weights_to_bytes(model.state_dict())})
    found = checks(capsys, exported_bundle, 2)
    assert "other weights" in found["golden set"]["detail"]
    assert found["weights"]["outcome"] == "disagrees"


def test_no_bundle_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, out, errors = verify(capsys, str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert "select --gflops" in errors


def with_an_engine(path: Path) -> None:
    variants = open_bundle(path).part("variants")
    engine = {"runtime": "tensorrt", "file": "trt-fp32.plan", "engine": {"options": {"max_batch": 4}}}
    update_bundle(
        path, {"variants": {**variants, "trt-fp32": {**variants["onnx-fp32"], **engine}}}, {"trt-fp32.plan": b"p"}
    )


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_an_engine_is_run_where_it_can_be(
    capsys: pytest.CaptureFixture[str], exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
):
    with_an_engine(exported_bundle)
    from regnet_deploy.exporting import tensorrt
    from regnet_deploy.serving.runtime import open_variant

    class Engine:
        input, input_name, output_name, runtime, device = "float32", "images", "logits", "tensorrt 10.9", "cuda:0 (x)"

        def __init__(self, bundle, name):
            assert name == "trt-fp32"
            self._session = open_variant(bundle, "onnx-fp32")

        def run(self, images):
            return self._session.run(images) + np.float32(wrong)

    monkeypatch.setattr(tensorrt, "open_engine", Engine)
    found = checks(capsys, exported_bundle, 3)  # in any case: this bundle's golden set is of other weights
    assert found["trt-fp32"]["outcome"] == ("disagrees" if wrong else "ok")
    assert found["trt-fp32"]["detail"] == "golden set by tensorrt 10.9 on cuda:0 (x)"


def test_an_engine_that_cannot_be_run_says_why(capsys: pytest.CaptureFixture[str], exported_bundle: Path):
    with_an_engine(exported_bundle)
    _, out, _ = verify(capsys, str(exported_bundle), "--json")
    found = {check["subject"]: check for check in json.loads(out)["checks"]}
    assert found["trt-fp32"]["outcome"] == "not run"
    assert "it is a tensorrt engine and " in found["trt-fp32"]["detail"]
