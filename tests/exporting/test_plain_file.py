"""Plain files beside a bundle: the network as it was proved, described, and run without this package."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.manifest import WeightsOrigin
from regnet_deploy.durable_files import TEMPORARY
from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.exporting import plain_file
from regnet_deploy.exporting.emulation import runs_as_typed
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.plain_file import write_plain_file
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.images.preprocessing import load_pixels
from regnet_deploy.protobuf.wire_format import split
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import classify_pixels, open_variant

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "pt2": "model.pt2", "openvino": "model.xml"}

#: Runs a program beside a plain file on arrays and image files, and stores what it returns. It imports this package
#: nowhere, and its isolated interpreter cannot.
RUN = """
import importlib.util, sys
import numpy as np
sys.modules["regnet_deploy"] = None
spec = importlib.util.spec_from_file_location("program", sys.argv[1])
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
given = np.load(sys.argv[2])
seen = [program.load_pixels(path) for path in sys.argv[4:]]
assert "openvino_telemetry" not in sys.modules
np.savez(sys.argv[3], one=program.logits(given[:1]), all=program.logits(given), seen=np.array(seen))
"""


def skip_without_openvino() -> None:
    if find_spec("openvino") is None:
        pytest.skip("needs OpenVINO (extra [openvino])")


@pytest.fixture
def exported(trained):
    export(trained, ExportOptions())
    return open_bundle(trained)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def run_program(program: Path, pixels: np.ndarray, images: tuple[Path, ...] = ()) -> dict[str, np.ndarray]:
    given, answers = program.parent.parent / "given.npy", program.parent.parent / "answers.npz"
    np.save(given, pixels)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, program, given, answers, *images],
        capture_output=True,
        text=True,
        check=False,
        cwd=program.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    with np.load(answers) as loaded:
        return dict(loaded)


def test_onnx_has_every_byte_of_the_variant_and_says_what_it_is(exported, folder):
    written = write_plain_file(exported, folder / "model.onnx")
    data, variant = (folder / "model.onnx").read_bytes(), exported.read("onnx-fp32.onnx")
    assert split(data, 14)[0] == split(variant, 14)[0]  # 14: metadata_props
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    inside = {entry.key: entry.value for entry in model.metadata_props}
    assert len(inside) == len(model.metadata_props)
    assert inside["variant"] == "onnx-fp32"
    assert inside["bundle_sha256"] == exported.digest
    assert json.loads(inside["labels"]) == list(exported.labels)
    assert json.loads(inside["preprocessing"]) == {**exported.preprocessing.to_json(), "antialias": True}
    assert json.loads(inside["proof"]) == exported.parts["variants"]["onnx-fp32"]["proof"]
    beside = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert beside["files"] == {"model.onnx": hashlib.sha256(data).hexdigest()}
    assert beside["labels"] == list(exported.labels)
    assert beside["input"] == {"name": "images", "type": "float32", "shape": ["n", 3, 32, 32]}
    assert beside["proof"]["passed"]
    assert beside["proof"] == written.proof.to_json()
    assert sorted(os.listdir(folder)) == ["model.json", "model.onnx", "model.py"]
    assert written.files == (folder / "model.onnx", folder / "model.json", folder / "model.py")


@pytest.mark.parametrize("target", FILES)
def test_the_program_beside_it_gives_the_golden_logits_without_this_package(exported, folder, target):
    if target == "openvino":
        skip_without_openvino()
    written = write_plain_file(exported, folder / FILES[target])
    golden = load_golden(exported)
    answers = run_program(folder / "model.py", golden.images)
    np.testing.assert_allclose(answers["all"], golden.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(answers["one"], golden.logits[:1], rtol=1e-4, atol=1e-4)
    assert written.target == target
    assert written.proof.passed
    assert set(written.files) == set(folder.iterdir())
    assert exported.digest == open_bundle(exported.path).digest


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kind", ["trained", "gray"])
def test_the_program_sees_the_pixels_that_the_network_sees(kind, request, folder, tmp_path, antialias):
    path = request.getfixturevalue(kind)
    export(path, ExportOptions())
    exported = open_bundle(path)
    if not antialias:
        steps = exported.preprocessing.replace(antialias=False, scaled_decoding=False)
        exported = update_bundle(exported.path, {"preprocessing": steps})
    write_plain_file(exported, folder / "model.onnx")
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 13, 3), np.uint8))
    paths = []
    for name, (size, mode, orientation) in {
        "large.jpg": ((531, 397), "RGB", 1),
        "turned.jpg": ((531, 397), "RGB", 6),
        "mirrored.jpg": ((397, 531), "RGB", 7),
        "small.png": ((20, 47), "RGB", 1),
        "gray.png": ((90, 60), "L", 1),
        "palette.gif": ((90, 60), "P", 1),
        "alpha.png": ((90, 60), "RGBA", 1),
        "deep.png": ((90, 60), "I;16", 1),
    }.items():
        image = coarse.resize(size, Image.Resampling.BICUBIC)
        if mode == "RGBA":
            image.putalpha(image.getchannel("R"))
        elif mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / name, exif=exif)
        paths.append(tmp_path / name)
    white = Image.new("RGBA", (90, 60), "white")
    white.putalpha(coarse.resize(white.size).getchannel("R"))
    eight_bits = np.asarray(coarse.resize((90, 60)).convert("L"))
    odd = {
        "white-shapes.png": white,
        "white-shapes-gray.png": white.convert("LA"),
        "transparent.png": Image.new("RGBA", (90, 60)),
        "8-bits-in-16.png": Image.fromarray(eight_bits.astype(np.uint16)),
        "9-bits-in-16.png": Image.fromarray(eight_bits.astype(np.uint16) * 2),
    }
    for name, image in odd.items():
        image.save(tmp_path / name)
        paths.append(tmp_path / name)
    seen = run_program(folder / "model.py", load_golden(exported).images, tuple(paths))["seen"]
    for path, pixels in zip(paths, seen, strict=True):
        expected = load_pixels(path.read_bytes(), exported.preprocessing)
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)


def test_the_program_answers_for_image_files(exported, folder, tmp_path):
    write_plain_file(exported, folder / "model.onnx")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    done = subprocess.run(
        [sys.executable, folder / "model.py", tmp_path / "red.png"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert {line.split()[1] for line in lines} == set(exported.labels)
    assert done.stderr == ""


def test_the_program_answers_wrong_calls_with_one_line(exported, folder, tmp_path):
    write_plain_file(exported, folder / "model.onnx")
    (tmp_path / "text.png").write_text("no image")

    def answer(*arguments):
        done = subprocess.run([sys.executable, folder / "model.py", *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    usage = "usage: model.py IMAGE ...\n"
    assert answer() == (2, "", usage)
    assert answer("--help") == (0, usage, "")
    assert answer("none.png") == (1, "", "cannot read none.png: No such file or directory\n")
    code, _, said = answer(tmp_path / "text.png")
    assert (code, said.count("\n")) == (1, 1)
    assert "cannot identify image file" in said
    (folder / "model.json").unlink()
    assert answer("none.png") == (1, "", f"{folder / 'model.json'} is missing: it belongs beside model.py\n")


def test_a_variant_is_chosen_by_name_and_takes_pixels_where_it_did(trained, folder):
    export(trained, ExportOptions(uint8=True, precisions=(PRECISIONS["fp16"], PRECISIONS["bf16"])))
    bundle = open_bundle(trained)
    golden = load_golden(bundle)
    write_plain_file(bundle, folder / "model.onnx", variant="onnx-fp32-uint8")
    np.testing.assert_allclose(run_program(folder / "model.py", golden.images)["all"], golden.logits, atol=1e-3)
    assert write_plain_file(bundle, folder / "model.onnx", variant="onnx-fp16").precision == "fp16"
    assert (folder / "model.py").exists()
    written = write_plain_file(bundle, folder / "model.onnx", variant="onnx-bf16")
    assert not (folder / "model.py").exists()  # no ONNX Runtime computes BF16
    assert "no program is written" in " ".join(written.notes)
    with pytest.raises(UsageError, match="has no variant 'onnx-fp23'"):
        write_plain_file(bundle, folder / "model.onnx", variant="onnx-fp23")


def test_an_int8_file_for_engines_is_run_as_written_by_the_program(trained, folder, tmp_path):
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(1)
    for number in range(24):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    int8 = PRECISIONS["int8-1x1"]
    export(trained, ExportOptions(precisions=(int8,), calibration=tmp_path / "photos", calibration_images=24))
    bundle = open_bundle(trained)
    assert write_plain_file(bundle, folder / "model.onnx").variant == "onnx-fp32"  # as would be served
    written = write_plain_file(bundle, folder / "model.onnx", variant="onnx-int8-1x1")
    assert "it is for TensorRT" in " ".join(written.notes)
    if not runs_as_typed(int8):
        assert not (folder / "model.py").exists()
        return
    golden = load_golden(bundle)
    logits = run_program(folder / "model.py", golden.images)["all"]
    as_proved = open_variant(bundle, "onnx-int8-1x1")
    np.testing.assert_array_equal(logits, classify_pixels(as_proved, golden.images, bundle.preprocessing))


def test_the_license_of_imported_weights_goes_with_the_file(exported, folder):
    origin = WeightsOrigin(file="w.pth", sha256="0" * 64, source="timm", container="torch zip", license="CC-BY-NC-4.0")
    bundle = update_bundle(exported.path, {"imported": origin}, {})
    written = write_plain_file(bundle, folder / "model.onnx")
    assert written.notes == ("license of the weights: CC-BY-NC-4.0",)
    assert json.loads((folder / "model.json").read_text())["license"] == "CC-BY-NC-4.0"
    inside = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert inside["license"] == "CC-BY-NC-4.0"


@pytest.mark.parametrize("target", ["onnx", "torchscript", "pt2", "openvino"])
def test_a_file_that_does_not_agree_is_not_left(disagreeing_bundle, folder, target):
    if target == "openvino":
        skip_without_openvino()
    (folder / FILES[target]).write_bytes(b"earlier")
    with pytest.raises(ProofError, match=rf"{FILES[target]} does not agree with the model: .*max \|error\|"):
        write_plain_file(open_bundle(disagreeing_bundle), folder / FILES[target])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {FILES[target]: b"earlier"}


def test_a_full_temporary_folder_is_named(exported, folder, tmp_path, monkeypatch):
    skip_without_openvino()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"into the temporary folder .*none .*: free space there, or name another"):
        write_plain_file(exported, folder / "model.xml")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, UsageError])
def test_an_interrupted_write_leaves_nothing(exported, folder, monkeypatch, fault):
    def fail(*_args, **_options):
        assert [path.name.startswith(TEMPORARY) for path in folder.iterdir()] == [True, True]
        raise fault

    monkeypatch.setattr(plain_file, "snippet", fail)
    with pytest.raises(fault):
        write_plain_file(exported, folder / "model.onnx")
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("model.pth", {}, "a network is written as .onnx, .pt, .torchscript, .pt2 or .xml, got model.pth"),
        ("model.onnx", {"target": "pt2"}, "a network for pt2 is written as .pt2, got model.onnx"),
        ("model.onnx", {"target": "onx"}, "--to must be one of onnx, .*got 'onx' \\(did you mean onnx\\?\\)"),
        (
            "model.pt2",
            {"variant": "onnx-fp32"},
            "--variant chooses an ONNX file, and model.pt2 is written from the FP32",
        ),
        ("none/model.onnx", {}, "there is no folder .*none for model.onnx"),
        ("../bundle/model.onnx", {}, "is inside the bundle"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is(exported, folder, name, options, says):
    with pytest.raises(UsageError, match=says):
        write_plain_file(exported, folder / name, **options)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.py", "import numpy"), ("model.json", "{}"), ("model.json", "["), ("model.bin", "weights")],
)
def test_a_file_of_somebody_else_is_never_replaced(exported, folder, name, content):
    (folder / name).write_text(content)
    target = "model.xml" if name == "model.bin" else "model.onnx"
    with pytest.raises(UsageError, match=f"{name} exists, would be replaced with {target}, and is not of this command"):
        write_plain_file(exported, folder / target)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: content}


def test_several_formats_of_one_name_fit_into_a_folder_and_each_is_written_again(exported, folder):
    first = write_plain_file(exported, folder / "model.onnx")
    second = write_plain_file(exported, folder / "model.pt2")
    assert [path.name for path in first.files] == ["model.onnx", "model.json", "model.py"]
    assert [path.name for path in second.files] == ["model.pt2", "model.pt2.json", "model.pt2.py"]
    for written in (first, second):
        again = write_plain_file(exported, written.path)
        assert again.files == written.files
        described = json.loads(again.files[1].read_text(encoding="utf-8"))["files"]
        assert described == {written.path.name: hashlib.sha256(written.path.read_bytes()).hexdigest()}
        golden = load_golden(exported)
        logits = run_program(again.files[2], golden.images[:2])["all"]
        np.testing.assert_allclose(logits, golden.logits[:2], atol=1e-3)
    (folder / "model.pt2.json").write_text("{}")
    with pytest.raises(UsageError, match=r"model\.pt2\.json exists, would be replaced with model\.pt2"):
        write_plain_file(exported, folder / "model.pt2")


def test_what_was_beside_a_file_that_is_gone_is_replaced(exported, folder):
    write_plain_file(exported, folder / "model.onnx").path.unlink()
    written = write_plain_file(exported, folder / "model.pt2")
    assert [path.name for path in written.files] == ["model.pt2", "model.json", "model.py"]


@pytest.mark.parametrize("target", FILES)
def test_files_of_a_gray_network_take_one_channel(gray, folder, target):
    if target == "openvino":
        skip_without_openvino()
    export(gray, ExportOptions(uint8=target == "onnx"))
    bundle = open_bundle(gray)
    variant = "onnx-fp32-uint8" if target == "onnx" else None
    written = write_plain_file(bundle, folder / FILES[target], variant=variant)
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert about["input"]["shape"] == (["n", 32, 32, 1] if target == "onnx" else ["n", 1, 32, 32])
    assert (about["preprocessing"]["colours"], about["preprocessing"]["mean"]) == ("L", [0.459])
    golden = load_golden(bundle)
    assert golden.images.shape == (16, 32, 32, 1)
    np.testing.assert_allclose(run_program(folder / "model.py", golden.images)["all"], golden.logits, atol=1e-4)
    assert written.proof.passed
