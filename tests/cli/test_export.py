import json
import os
import sys
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.space.network import Network

pytestmark = pytest.mark.usefixtures("short_warmup")


@pytest.fixture
def bundle(tmp_path):
    """A bundle as select leaves it."""
    network = Network((1, 1), (8, 16), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
    architecture = Architecture.of(network, name="tiny", classes=3, resolution=32)
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(32).to_json()}
    return create_bundle(tmp_path / "bundle", parts).path


@pytest.fixture
def labelled(bundle):
    """A bundle with labels, whose seeded weights stand for trained ones."""
    from regnet_deploy.models.weights import load_model, weights_to_bytes

    weights = weights_to_bytes(load_model(open_bundle(bundle)).state_dict())
    return update_bundle(bundle, {"labels": ["cat", "dog", "owl"]}, {"weights.safetensors": weights}).path


@pytest.fixture
def write_class_folders(tmp_path):
    """Return a writer of images, no two alike, for the labels of the bundle."""

    def write(train, val):
        draw = np.random.default_rng(0)
        for subset, count in (("train", train), ("val", val)):
            for label in ("cat", "dog", "owl"):
                folder = tmp_path / "data" / subset / label
                folder.mkdir(parents=True)
                for number in range(count):
                    Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
        return tmp_path / "data"

    return write


@pytest.fixture
def spoiled(monkeypatch):
    from regnet_deploy.exporting import onnx_graph

    fold = onnx_graph.fold
    monkeypatch.setattr(onnx_graph, "fold", lambda *names: tuple(value + 0.05 for value in fold(*names)))


@pytest.fixture
def no_tensorrt(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))


@pytest.mark.parametrize("options", [(), ("--onnx",)])
def test_onnx_is_what_is_meant_and_the_table_has_the_proof(cli, bundle, options):
    done = cli("export", bundle, *options)
    assert done.returncode == 0, done.stderr
    assert "onnx-fp32" in done.stdout
    assert "100%" in done.stdout
    assert "onnxruntime 1." in done.stdout
    assert "seeded noise" in done.stderr
    assert list(open_bundle(bundle).parts["variants"]) == ["onnx-fp32"]


def test_json_is_one_document_with_golden_set_and_variants(cli_process, bundle):
    done = cli_process("export", bundle, "--uint8", "--json")
    document = json.loads(done.stdout)
    assert document["golden"] == open_bundle(bundle).parts["golden"]
    assert document["variants"] == open_bundle(bundle).parts["variants"]
    assert set(document["variants"]) == {"onnx-fp32", "onnx-fp32-uint8"}


def test_a_variant_that_does_not_agree_exits_3_and_leaves_the_bundle(cli, bundle, spoiled):
    before, names = (bundle / "bundle.json").read_bytes(), sorted(os.listdir(bundle))
    done = cli("export", bundle)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "max |error|" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (bundle / "bundle.json").read_bytes() == before
    assert sorted(os.listdir(bundle)) == names


def test_gates_are_options(cli, bundle):
    assert cli("export", bundle, "--atol", "0", "--rtol", "0").returncode == 3
    assert cli("export", bundle, "--gate", "fp32:atol=0", "--gate", "fp32:rtol=0").returncode == 3
    assert cli("export", bundle, "--atol", "0.5").returncode == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--precision", "fp61"),
            "unknown precision 'fp61' (did you mean fp16?); the precisions are fp32, fp16, bf16, int8",
        ),
        (("--precision", "int8"), "int8 must be calibrated on real images: give --data DIR"),
        (("--precision", "auto"), "--precision auto measures accuracy on validation images: give --data DIR"),
        (("--gate", "int8:cosine=0.9"), "int8 is not exported: add --precision int8"),
        (("--gate", "fp23:cosine=0.9"), "no precision 'fp23' (did you mean fp32?)"),
        (("--gate", "fp32:cosin=0.9"), "no figure 'cosin' (did you mean cosine?)"),
        (("--gate", "fp32:cosine=2"), "cosine must be a number from -1 to 1"),
        (("--gate", "fp32"), "not of the form precision:figure=limit, such as int8:worst=0.3"),
        (("--tuned-batch", "64"), "batches of 1 to 32 images tuned for 64 are impossible"),
        (("--calibration-images", "513"), "513 is not in the range 1<=x<=512"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_before_anything_is_computed(cli, bundle, options, says):
    before = (bundle / "bundle.json").read_bytes()
    done = cli("export", bundle, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert (bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no image folder at"),
        (lambda folder: folder.mkdir(), "has 0 usable images"),
        (lambda folder: (folder / "wolf").mkdir(parents=True), "has 0 usable images"),
    ],
)
def test_a_calibration_folder_that_will_not_do_is_one_line(cli, labelled, tmp_path, make, says):
    make(tmp_path / "images")
    done = cli("export", labelled, "--precision", "int8", "--calibration", tmp_path / "images")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "variants" not in open_bundle(labelled).parts


def test_a_variant_below_its_gate_exits_3_and_the_others_are_written(cli, bundle):
    done = cli("export", bundle, "--precision", "fp16", "--gate", "fp16:mean=0")
    assert done.returncode == 3
    assert "onnx-fp32" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("regnet-deploy: onnx-fp16 does not agree with the model: mean")
    assert done.stderr.splitlines()[-1].endswith("(the other variants are written)")
    assert list(open_bundle(bundle).parts["variants"]) == ["onnx-fp32"]


def test_several_precisions_are_several_rows(cli, bundle):
    done = cli("export", bundle, "--precision", "fp16", "--precision", "bf16", "--uint8")
    assert done.returncode == 0, done.stderr
    assert all(f"onnx-{name}" in done.stdout for name in ("fp32", "fp16", "bf16", "fp16-uint8", "bf16-uint8"))
    assert "emulated" in done.stdout


def test_with_data_the_choice_is_printed_and_in_the_json(cli, labelled, write_class_folders):
    data = write_class_folders(train=110, val=5)
    arguments = ("export", labelled, "--data", data, "--max-drop", "100", "--seconds", "0.01", "--batch", "1")
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Chosen by median latency" in done.stdout
    assert "onnx-int8-cpu" in done.stdout
    done = cli(*arguments, "--json")
    document = json.loads(done.stdout)
    assert document["choice"] == open_bundle(labelled).parts["choice"]
    assert {one["result"] for one in document["choice"]["candidates"]} >= {"kept"}


def test_trt_without_tensorrt_exits_2_with_one_line_and_keeps_the_onnx(cli, bundle, no_tensorrt):
    done = cli("export", bundle, "--trt")
    assert done.returncode == 2
    assert "onnx-fp32" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "regnet-deploy: no TensorRT engine can be built: tensorrt is not installed"
    )
    assert "pip install 'regnet-deploy[trt-rtx]'" in done.stderr
    assert list(open_bundle(bundle).parts["variants"]) == ["onnx-fp32"]


def test_trt_with_tensorrt_rtx_adds_an_engine_before_training(cli, bundle):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    done = cli("export", bundle, "--trt", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    assert set(open_bundle(bundle).parts["variants"]) in ({"onnx-fp32", "rtx-fp32"}, {"onnx-fp32", "trt-fp32"})
    assert "-fp32" in done.stdout


def test_few_images_of_ones_own_are_taken_and_more_are_recommended(cli, bundle, tmp_path):
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "one.png")
    done = cli("export", bundle, "--images", tmp_path / "one.png")
    assert done.returncode == 0
    assert "1 images (user images); 16 or more images make a stronger proof" in done.stderr


def test_a_bad_image_is_named_and_nothing_is_written(cli, bundle, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = cli("export", bundle, "--images", tmp_path / "bad.png")
    assert done.returncode == 2
    assert "bad.png" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert "golden" not in open_bundle(bundle).parts


@pytest.mark.parametrize(
    "options",
    [
        *((name, value) for name in ("--atol", "--rtol") for value in ("-1", "inf", "nan", "-inf", "1e999")),
        ("--max-batch", "-3"),
        ("--max-batch", "0"),
        ("--max-batch", "1000000"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(cli, bundle, options):
    done = cli("export", bundle, *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_missing_bundle_names_the_command_that_makes_one(cli, tmp_path):
    done = cli("export", tmp_path / "none")
    assert done.returncode == 2
    assert "regnet-deploy select" in done.stderr


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_library_is_one_line_with_the_pip_command(cli, bundle, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    done = cli("export", bundle)
    assert done.returncode == 2
    assert "pip install 'regnet-deploy[export]'" in done.stderr


def test_an_interrupt_leaves_the_bundle_as_it_was(cli, bundle, monkeypatch):
    before = (bundle / "bundle.json").read_bytes()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("regnet_deploy.exporting.accuracy_gate.prove", interrupted)
    done = cli("export", bundle)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "regnet-deploy: interrupted")
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_the_bundle(cli, bundle, monkeypatch):
    before, names = (bundle / "bundle.json").read_bytes(), sorted(os.listdir(bundle))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regnet_deploy.durable_files.os.fsync", full)
    done = cli("export", bundle)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert sorted(os.listdir(bundle)) == names
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_looser_tolerance_is_said_and_recorded(cli, bundle):
    done = cli("export", bundle, "--rtol", "0.5")
    assert done.returncode == 0
    assert "onnx-fp32 passed a looser gate than that of fp32" in done.stderr
    assert "does not count as proved and is served only with --variant onnx-fp32" in done.stderr
    assert "looser gate" in done.stdout
    assert open_bundle(bundle).parts["variants"]["onnx-fp32"]["proof"]["standard"] is False
    done = cli("export", bundle)
    assert "does not count" not in done.stderr
    assert "looser gate" not in done.stdout


def test_a_missing_onnxruntime_is_one_line_before_anything_is_computed(cli, bundle, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(
        "regnet_deploy.exporting.export.make_golden_set", lambda *names: pytest.fail("logits were computed")
    )
    done = cli("export", bundle)
    assert done.returncode == 2
    assert "pip install 'regnet-deploy[cpu]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--max-batch", "7"), "--max-batch is an option of TensorRT engines: add --trt"),
        (("--tf32",), "--tf32 is an option of TensorRT engines: add --trt"),
        (("--hardware-compatible", "ampere+"), "--hardware-compatible is an option of TensorRT engines: add --trt"),
        (("--max-drop", "0.1"), "--max-drop is measured on validation images: add --data DIR"),
        (("--batch", "4"), "--batch is an option of --precision auto"),
        (("--seconds", "1"), "--seconds is an option of --precision auto"),
        (
            ("--calibration", "photos"),
            "--calibration is an option of quantized precisions: add for example --precision int8-cpu",
        ),
        (("--precision", "fp16", "--seed", "5"), "--seed is an option of quantized precisions"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(cli, bundle, options, says):
    done = cli("export", bundle, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_precisions_may_be_one_word(cli, bundle):
    done = cli("export", bundle, "--precision", "fp16,bf16")
    assert done.returncode == 0, done.stderr
    assert {"onnx-fp16", "onnx-bf16"} < set(open_bundle(bundle).parts["variants"])


def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_judged(cli, labelled, write_class_folders):
    data = write_class_folders(train=3, val=2)
    done = cli("export", labelled, "--data", data, "--batch", "1,20000000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give at most --batch" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_precision_that_auto_was_told_by_name_and_that_fails_exits_3(cli, labelled, write_class_folders):
    data = write_class_folders(train=110, val=5)
    arguments = ("--data", data, "--max-drop", "100", "--seconds", "0.01", "--batch", "1", "--gate", "bf16:mean=0")
    done = cli("export", labelled, "--precision", "auto,bf16", *arguments)
    assert done.returncode == 3
    assert "onnx-bf16 does not agree with the model" in done.stderr
    assert "Chosen by median latency" in done.stdout


def test_a_plain_file_of_a_bundle_that_is_not_exported_exports_it_first(cli, bundle, tmp_path):
    done = cli("export", bundle, "-o", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    assert f"{bundle} is not exported yet: onnx-fp32 is exported into it first" in done.stderr
    assert "Exported to" in done.stdout
    assert "model.onnx: onnx-fp32; max |logit error|" in " ".join(done.stdout.split())
    assert list(open_bundle(bundle).variants) == ["onnx-fp32"]
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "model.json", "model.onnx", "model.py"}


def test_a_plain_file_of_an_exported_bundle_leaves_the_bundle(cli_process, exported_bundle, tmp_path):
    before = {path.name: path.read_bytes() for path in exported_bundle.iterdir()}
    exported_bundle.chmod(0o500)
    done = cli_process("export", exported_bundle, "-o", tmp_path / "model.onnx", "--json")
    exported_bundle.chmod(0o700)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["bundle"] == str(exported_bundle)
    assert document["file"]["variant"] == "onnx-fp32"
    assert document["file"]["files"][0] == str(tmp_path / "model.onnx")
    assert {path.name: path.read_bytes() for path in exported_bundle.iterdir()} == before


def test_options_of_the_export_are_followed_before_the_plain_file_is_written(cli_process, bundle, tmp_path):
    assert cli_process("export", bundle).returncode == 0
    options = ("--precision", "fp16", "--json", "-o", tmp_path / "model.onnx", "--variant", "onnx-fp16")
    document = json.loads(cli_process("export", bundle, *options).stdout)
    assert set(document["variants"]) == {"onnx-fp32", "onnx-fp16"}
    assert document["file"]["variant"] == "onnx-fp16"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--variant", "onnx-fp32"), "--variant onnx-fp32 says what -o FILE writes: add -o"),
        (("--to", "pt2"), "--to pt2 says what -o FILE writes: add -o"),
        (("-o", "model.tflite"), "a network is written as .onnx, .pt, .torchscript, .pt2 or .xml, got model.tflite"),
        (("-o", "bundle/model.onnx"), "is inside the bundle, whose files have names of their own"),
    ],
)
def test_a_plain_file_that_cannot_be_written_is_refused_before_the_export(
    cli_error, bundle, tmp_path, monkeypatch, options, says
):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(bundle))
    assert says in cli_error("export", bundle, *options)
    assert sorted(os.listdir(bundle)) == before
