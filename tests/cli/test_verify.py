import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import MANIFEST, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes, load_golden
from regnet_deploy.runtimes.runtime import classify_pixels


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def checks(cli: Any, bundle: Path, code: int) -> dict[str, dict[str, Any]]:
    done = cli("verify", bundle, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is (code == 0)
    return {check["subject"]: check for check in document["checks"]}


def outcomes(cli: Any, bundle: Path, code: int) -> dict[str, str]:
    return {subject: check["outcome"] for subject, check in checks(cli, bundle, code).items()}


@pytest.mark.usefixtures("no_torch")
def test_a_whole_bundle_verifies_and_says_what_was_not_run(cli: Any, exported_bundle: Path):
    found = checks(cli, exported_bundle, 0)
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
def test_the_table_has_the_figures(cli: Any, exported_bundle: Path):
    done = cli("verify", exported_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("onnx-fp32-uint8 "))
    assert "100.0%" in row
    assert "onnxruntime" in row


@pytest.mark.usefixtures("no_torch")
def test_a_flipped_bit_anywhere_is_found(cli: Any, exported_bundle: Path):
    draw = np.random.default_rng(0)
    paths = sorted(exported_bundle.iterdir())
    assert MANIFEST in [path.name for path in paths]
    for path in paths:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1, *draw.integers(0, len(whole), 5).tolist()}:
            changed = bytearray(whole)
            changed[at] ^= 1 << int(draw.integers(8))
            path.write_bytes(changed)
            done = cli("verify", exported_bundle)
            assert done.returncode == 2, (path, at)
            assert path.name in done.stderr
            assert done.stderr.count("\n") == 1
        path.write_bytes(whole)
    assert cli("verify", exported_bundle).returncode == 0


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_another_length_is_found(cli: Any, exported_bundle: Path, change: str):
    path = open_bundle(exported_bundle).stored_path("onnx-fp32.onnx")
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "shorter" else path.read_bytes() + b"\0")
    found = outcomes(cli, exported_bundle, 2)
    assert found["onnx-fp32.onnx"] == found["onnx-fp32"] == "damaged"
    assert found["onnx-fp32-uint8"] == "ok"  # the others are looked at all the same


@pytest.mark.usefixtures("no_torch")
def test_a_file_that_does_not_belong_is_found(cli: Any, exported_bundle: Path):
    (exported_bundle / "model.pkl").write_bytes(b"cos\nsystem\n")
    found = checks(cli, exported_bundle, 2)
    assert "model.pkl is not part of the bundle" in found["folder"]["detail"]


@pytest.mark.usefixtures("no_torch")
def test_a_damaged_manifest_names_the_command_that_restores_it(cli: Any, exported_bundle: Path):
    update_bundle(exported_bundle, {"labels": list("abcdef")})
    whole = (exported_bundle / MANIFEST).read_bytes()
    (exported_bundle / MANIFEST).write_bytes(whole[:-100])
    for command in ("verify", "show", "serve", "export", "train", "predict", "package"):
        more = {"train": ("--data", "x"), "predict": ("x.png",), "package": ("--kserve",)}.get(command, ())
        done = cli(command, exported_bundle, *more)
        assert done.returncode == 2
        assert f"is cut off after {len(whole) - 100:,} bytes" in done.stderr
        assert f"`regnet-deploy verify {exported_bundle} --repair` restores it" in done.stderr
    done = cli("verify", exported_bundle, "--repair", "--json")
    assert done.returncode == 0
    assert "repaired: " in done.stderr
    assert json.loads(done.stdout)["ok"]
    assert (exported_bundle / MANIFEST).read_bytes() == whole


@pytest.mark.usefixtures("no_torch")
def test_what_a_dead_command_left_is_listed_and_no_damage(cli: Any, exported_bundle: Path):
    data = b"of a command that was killed"
    name = f"onnx-fp16-{hashlib.sha256(data).hexdigest()[:12]}.onnx"
    (exported_bundle / name).write_bytes(data)
    found = checks(cli, exported_bundle, 0)
    assert found["folder"]["outcome"] == "ok"
    assert name in found["folder"]["detail"]
    update_bundle(exported_bundle, {})
    assert "folder" not in checks(cli, exported_bundle, 0)


@pytest.mark.usefixtures("no_torch")
def test_a_network_that_disagrees_is_exit_code_3_with_figures(cli: Any, exported_bundle: Path):
    golden = load_golden(open_bundle(exported_bundle))
    logits = golden.logits.copy()
    logits[3, 1] += 0.25
    update_bundle(exported_bundle, {}, {"golden.safetensors": golden_to_bytes(GoldenSet(golden.images, logits))})
    done = cli("verify", exported_bundle)
    assert done.returncode == 3
    assert "onnx-fp32: golden set by onnxruntime" in done.stderr
    assert "max |error| 0.25" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("no_torch")
def test_variants_that_this_machine_cannot_run_are_named(cli: Any, exported_bundle: Path):
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-fp32"]["precision"] = "bf16"
    variants["onnx-fp32-uint8"]["precision"] = "fp3"
    update_bundle(exported_bundle, {"variants": variants})
    found = checks(cli, exported_bundle, 2)
    assert found["onnx-fp32"]["outcome"] == "not run"
    assert found["onnx-fp32"]["detail"].startswith("variant onnx-fp32 cannot be run here: ONNX Runtime has no BF16")
    assert "fp3" in found["onnx-fp32-uint8"]["detail"]


@pytest.mark.usefixtures("no_torch")
def test_a_bundle_before_export_is_checked_as_far_as_it_goes(cli: Any, exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    update_bundle(exported_bundle, {}, drop=("labels", "golden", "variants", *bundle.files))
    found = checks(cli, exported_bundle, 0)
    assert found["weights"]["outcome"] == "not run"
    assert "export --onnx" in found["weights"]["detail"]
    assert found["labels"]["detail"] == "none before training"


@pytest.mark.usefixtures("no_torch")
def test_labels_of_another_number_are_found(cli: Any, exported_bundle: Path):
    update_bundle(exported_bundle, {"labels": ["one", "two"]})
    assert outcomes(cli, exported_bundle, 2)["labels"] == "damaged"


def test_the_model_itself_is_held_against_its_golden_set(cli: Any, exported_bundle: Path):
    import torch

    from regnet_deploy.models.torch_session import TorchSession
    from regnet_deploy.models.weights import FILE, load_model, weights_to_bytes

    bundle = open_bundle(exported_bundle)
    model = load_model(bundle)
    with torch.no_grad():
        model.head.fc.weight.mul_(100)
    weights = weights_to_bytes(model.state_dict())
    bundle = update_bundle(exported_bundle, {}, {FILE: weights}, drop=("variants", *bundle.files))
    images = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3)).astype(np.uint8)
    logits = classify_pixels(TorchSession(bundle), images, Preprocessing.from_json(bundle.parts["preprocessing"]))
    golden = golden_to_bytes(GoldenSet(images, logits))
    part = {"weights_sha256": bundle.files[FILE].sha256, "images": 9, "source": "made by a test", "seed": None}
    update_bundle(exported_bundle, {"golden": part}, {"golden.safetensors": golden})
    found = checks(cli, exported_bundle, 0)
    assert found["weights"]["outcome"] == "ok"
    assert found["weights"]["agreement"]["max_abs_error"] < 1e-4
    assert "torch" in found["weights"]["detail"]

    with torch.no_grad():
        model.head.fc.bias.add_(torch.arange(6) * 0.1)
    update_bundle(exported_bundle, {}, {FILE: weights_to_bytes(model.state_dict())})
    found = checks(cli, exported_bundle, 2)
    assert "other weights" in found["golden set"]["detail"]
    assert found["weights"]["outcome"] == "disagrees"


def test_no_bundle_is_one_line(cli: Any, tmp_path: Path):
    done = cli("verify", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "select --gflops" in done.stderr


def test_an_engine_that_cannot_be_run_says_why(cli: Any, exported_bundle: Path):
    variants = open_bundle(exported_bundle).parts["variants"]
    engine = {"runtime": "tensorrt", "precision": "fp32", "input": "float32", "opset": 18, "source": "onnx-fp32"}
    engine |= {"convolutions": {}, "engines": []}
    update_bundle(exported_bundle, {"variants": {**variants, "trt-fp32": engine}})
    done = cli("verify", exported_bundle, "--json")
    found = {check["subject"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["trt-fp32"]["outcome"] == "not run"
    assert found["trt-fp32"]["detail"] == "variant trt-fp32 cannot be run here: it has no engine"


@pytest.fixture
def in_every_precision(exported_bundle: Path) -> Path:
    """A bundle with an ONNX variant of its seeded weights in each precision that needs no ranges."""
    from regnet_deploy.exporting.golden_images import make_golden_set
    from regnet_deploy.exporting.model_source import load_model_source
    from regnet_deploy.exporting.precision import PRECISIONS

    bundle = open_bundle(exported_bundle)
    bundle = update_bundle(exported_bundle, {"variants": {}}, drop=("golden", *bundle.files))
    source = load_model_source(bundle)
    golden = make_golden_set(bundle, source.model, source.preprocessing, ())
    files, variants = {"golden.safetensors": golden.data}, {}
    for precision in (PRECISIONS[name] for name in ("fp32", "fp16", "bf16")):
        name = f"onnx-{precision.name}"
        files[f"{name}.onnx"] = source.onnx(precision)
        variants[name] = {
            "file": f"{name}.onnx",
            "bytes": len(files[f"{name}.onnx"]),
            "runtime": "onnxruntime",
            "precision": precision.name,
            "input": "float32",
            "opset": precision.opset,
            "exact": precision.tensorrt_only,
            "proof": None,
        }
    return update_bundle(exported_bundle, {"golden": golden.record, "variants": variants}, files).path


def test_each_precision_is_held_to_its_own_gate(cli: Any, in_every_precision: Path):
    found = checks(cli, in_every_precision, 0)
    for precision in ("fp32", "fp16", "bf16"):
        check = found[f"onnx-{precision}"]
        assert (check["outcome"], check["failures"]) == ("ok", [])
        assert check["agreement"]["gate"]["mean"] == {"fp32": None, "fp16": 0.01, "bf16": 0.08}[precision]
    errors = [found[f"onnx-{precision}"]["agreement"]["relative_error"] for precision in ("fp32", "fp16", "bf16")]
    assert errors == sorted(errors)
    assert 0 < errors[1] < errors[2] / 2


@pytest.mark.parametrize(("version", "written_anew"), [("1.23.2", True), ("1.32.0", False)])
def test_int8_is_held_to_its_proof_by_releases_that_truncate_fp16_too(
    in_every_precision: Path, monkeypatch: pytest.MonkeyPatch, version: str, written_anew: bool
):
    from regnet_deploy.api.variants import _open_emulated
    from regnet_deploy.exporting import emulation
    from regnet_deploy.exporting.model_source import load_model_source
    from regnet_deploy.exporting.precision import PRECISIONS
    from regnet_deploy.exporting.quantization import TensorRange

    bundle = open_bundle(in_every_precision)
    source = load_model_source(bundle)
    data = source.onnx(PRECISIONS["int8"], dict.fromkeys(source.activation_names(), TensorRange(-4.0, 4.0)))
    variant = {**bundle.parts["variants"]["onnx-bf16"], "file": "onnx-int8.onnx", "precision": "int8"}
    bundle = update_bundle(in_every_precision, {"variants": {"onnx-int8": variant}}, {"onnx-int8.onnx": data})
    made = []
    real = emulation.emulate_fp16_quantization
    monkeypatch.setattr(emulation, "emulate_fp16_quantization", lambda data: made.append(1) or real(data))
    monkeypatch.setattr(emulation, "installed_onnxruntime", lambda: ("onnxruntime", version))
    session = _open_emulated(bundle, "onnx-int8")
    assert session.input == "float32"
    assert bool(made) is session.runtime.endswith("which emulates its types,") is written_anew


def test_the_gate_that_refuses_is_named(cli: Any, in_every_precision: Path):
    """A shift of the logits by 4 % of their spread is within what BF16 may do, and beyond what the others may."""
    golden = load_golden(open_bundle(in_every_precision))
    shifted = golden.logits + np.float32(0.04 * golden.logits.std(axis=0).mean())
    update_bundle(in_every_precision, {}, {"golden.safetensors": golden_to_bytes(GoldenSet(golden.images, shifted))})
    found = checks(cli, in_every_precision, 3)
    assert [found[f"onnx-{name}"]["outcome"] for name in ("fp32", "fp16", "bf16")] == ["disagrees", "disagrees", "ok"]
    assert re.match(r"\|error\| \S+ of a logit of \S+ \(at most ", found["onnx-fp32"]["failures"][0])
    assert re.match(r"mean \|error\| (3|4)\.\d+% of the spread \(at most 1.00%\)", found["onnx-fp16"]["failures"][0])
    done = cli("verify", in_every_precision)
    assert "onnx-fp16: golden set by onnxruntime" in done.stderr
    assert found["onnx-fp16"]["failures"][0].split("%")[0] in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_an_engine_is_run_where_it_fits(
    cli: Any,
    with_h100_engine: Path,
    computer: Any,
    fake_machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    no_torch: None,
    wrong: float,
):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + np.float32(wrong))
    found = checks(cli, with_h100_engine, 3 if wrong else 0)
    assert found["trt-fp32"]["outcome"] == ("disagrees" if wrong else "ok")
    assert found["trt-fp32"]["detail"] == "golden set by tensorrt 11.4.0.106 on cuda:0 (NVIDIA H100 80GB HBM3)"
