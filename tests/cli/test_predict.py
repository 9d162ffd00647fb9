import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import candidate, choice, latency, openvino_variant
from PIL import Image

from regnet_deploy.bundle import Manifest, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import MissingExtra
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import classify_pixels, open_variant


@pytest.fixture
def images(exported_bundle: Path, tmp_path: Path) -> list[Path]:
    """The golden set as files: pixels of the right size pass through preprocessing unchanged."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    paths = []
    for i, pixels in enumerate(load_golden(open_bundle(exported_bundle)).images[:5]):
        paths.append(folder / ("deeper" if i > 2 else "") / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("variant", [None, "onnx-fp32", "onnx-fp32-uint8"])
def test_files_get_the_answers_of_the_network(cli: Any, exported_bundle: Path, images: list[Path], variant: str | None):
    options = ["--variant", variant] if variant else []
    done = cli("predict", exported_bundle, *images, *options, "--json", "-k", "2")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["variant"] == (variant or "onnx-fp32")
    bundle = open_bundle(exported_bundle)
    logits = load_golden(bundle).logits
    assert [result["image"] for result in document["results"]] == [str(path) for path in images]
    for row, result in zip(logits, document["results"], strict=False):
        best = np.argsort(-row)[:2]
        assert [p["index"] for p in result["predictions"]] == best.tolist()
        assert [p["label"] for p in result["predictions"]] == [bundle.parts["labels"][i] for i in best]
        wanted = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert [p["probability"] for p in result["predictions"]] == pytest.approx(wanted[best].tolist(), abs=1e-5)


def test_a_variant_that_is_wrong_here_answers_nothing_and_another_is_named(
    cli_error: Any, disagreeing_bundle: Path, images: list[Path]
):
    line = cli_error("predict", disagreeing_bundle, *images, "--variant", "onnx-fp32", code=3)
    assert f"variant onnx-fp32 of {disagreeing_bundle} does not agree with its golden set: |error| 0.5 " in line
    assert "choose --variant onnx-fp32-uint8" in line


def test_a_folder_of_images_alone_is_for_the_default_bundle(
    cli: Any, exported_bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(exported_bundle, tmp_path / "regnet-bundle")
    done = cli("predict", images[0].parent, "-k", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["results"]) == len(images)


def test_of_a_folder_the_images_that_training_reads_are_answered_and_the_rest_is_named(
    cli: Any, exported_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    (folder / "@eaDir").mkdir(parents=True)
    names = ["a.jfif", "b.jpe", "c.jpg_large", "noext"]
    for name in (*names, "@eaDir/thumb.jpg"):
        Image.new("RGB", (24, 24)).save(folder / name, "JPEG")
    for number in range(3):
        (folder / f"{number}.xml").write_text("<annotation/>")
    done = cli("predict", exported_bundle, folder, "-k", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert [result["image"] for result in json.loads(done.stdout)["results"]] == [str(folder / name) for name in names]
    said = done.stderr.splitlines()
    assert said[0] == "4 files and folders left out:"
    assert f"  {folder}/@eaDir/: thumbnails of a NAS" in said
    assert any(line.startswith(f"  3 like {folder}/0.xml, {folder}/1.xml, {folder}/2.xml: not an im") for line in said)


def test_images_in_which_the_network_sees_nothing_are_named(
    cli: Any, exported_bundle: Path, images: list[Path]
) -> None:
    icon = np.zeros((24, 24, 4), np.uint8)
    Image.fromarray(icon).save(images[0].parent / "icon.png")
    done = cli("predict", exported_bundle, images[0].parent, "-k", "1")
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "the network sees one color" in line]
    assert line.startswith("in 1 of 6 images the network sees one color, so the answer says nothing")
    assert line.endswith(f": {images[0].parent}/icon.png")


def test_a_folder_is_every_file_in_it(cli: Any, exported_bundle: Path, images: list[Path]):
    (images[0].parent / ".hidden").write_bytes(b"x")
    done = cli("predict", exported_bundle, images[0].parent, "--json")
    assert done.returncode == 0
    assert [result["image"] for result in json.loads(done.stdout)["results"]] == sorted(map(str, images))


def test_more_images_than_fit_a_batch_keep_their_order(cli: Any, exported_bundle: Path, images: list[Path]):
    files = [images[i % 5] for i in range(37)]
    done = cli("predict", exported_bundle, *files, "--json", "-k", "1")
    assert done.returncode == 0
    results = json.loads(done.stdout)["results"]
    assert [result["image"] for result in results] == list(map(str, files))
    tops = [result["predictions"][0]["index"] for result in results]
    assert tops == [load_golden(open_bundle(exported_bundle)).logits[i % 5].argmax() for i in range(37)]


def test_a_bad_image_is_named_and_the_others_are_answered(cli: Any, exported_bundle: Path, images: list[Path]):
    broken, missing = images[0].with_name("broken.png"), images[0].with_name("missing.png")
    broken.write_bytes(images[0].read_bytes()[:100])
    done = cli("predict", exported_bundle, broken, images[0], missing, images[1], "--json")
    assert done.returncode == 2
    results = json.loads(done.stdout)["results"]
    assert ["error" in result for result in results] == [True, False, True, False]
    assert f"{broken}: broken image" in done.stderr
    assert f"{missing}: cannot be read: No such file" in done.stderr
    assert done.stderr.endswith("regnet-deploy: 2 of 4 images could not be classified\n")
    done = cli("predict", exported_bundle, broken)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_table_names_image_label_and_probability(cli: Any, exported_bundle: Path, images: list[Path]):
    done = cli("predict", exported_bundle, images[0], "-k", "1")
    assert done.returncode == 0
    label = open_bundle(exported_bundle).parts["labels"][load_golden(open_bundle(exported_bundle)).logits[0].argmax()]
    row = next(line for line in done.stdout.splitlines() if str(images[0]) in line)
    assert label in row
    assert "%" in row
    assert "onnxruntime" in done.stderr


def test_the_bundle_may_be_left_out(
    cli: Any, exported_bundle: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
):
    exported_bundle.rename(exported_bundle.with_name("regnet-bundle"))
    monkeypatch.chdir(exported_bundle.parent)
    done = cli("predict", images[0], images[1], "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["results"]) == 2


def test_before_export_the_weights_answer(cli: Any, exported_bundle: Path, images: list[Path]):
    from regnet_deploy.models.torch_session import TorchSession

    bundle = open_bundle(exported_bundle)
    bundle = update_bundle(exported_bundle, {}, drop=("golden", "variants", "labels", *bundle.files))
    done = cli("predict", exported_bundle, images[0], "--json", "-k", "1")
    assert done.returncode == 0
    assert "not trained" in done.stderr
    document = json.loads(done.stdout)
    assert document["variant"] is None
    assert document["runtime"].startswith("torch ")
    pixels = np.asarray(Image.open(images[0]))[None]
    logits = classify_pixels(TorchSession(bundle), pixels, Preprocessing.from_json(bundle.parts["preprocessing"]))
    best = int(logits[0].argmax())
    assert document["results"][0]["predictions"][0]["label"] == f"class {best}"


def test_before_export_and_without_torch_the_way_out_is_named(
    cli: Any, exported_bundle: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
):
    bundle = open_bundle(exported_bundle)
    update_bundle(exported_bundle, {}, drop=("golden", "variants", *bundle.files))
    monkeypatch.setitem(sys.modules, "torch", None)
    done = cli("predict", exported_bundle, images[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'regnet-deploy[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{bundle}"], "no images given"),
        (["{bundle}", "{image}", "--variant", "onnx-fp64"], "did you mean onnx-fp32?"),
        (["{bundle}", "{image}", "-k", "0"], "-k"),
        (["{bundle}", "{empty}"], "no images in this folder"),
        (["{empty}/nowhere", "{image}"], "no bundle at"),
        (["{empty}/cta.jpg"], "there is no image {empty}/cta.jpg"),
        (["{empty}/cta.JPEG", "{image}"], "there is no image"),
        (["x" * 300, "{image}"], "File name too long"),
        (["x" * 300 + ".jpg"], "there is no image"),
        ([], "IMAGE"),
    ],
)
def test_what_cannot_be_is_one_line(
    cli: Any, exported_bundle: Path, images: list[Path], tmp_path: Path, arguments: list[str], says: str
):
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [text.format(bundle=exported_bundle, image=images[0], empty=empty) for text in arguments]
    done = cli("predict", *filled)
    assert (done.returncode, done.stdout) == (2, "")
    assert says.format(empty=empty) in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_that_cannot_be_looked_up_are_named_and_the_others_are_answered(
    cli: Any, exported_bundle: Path, images: list[Path]
):
    done = cli("predict", exported_bundle, "x" * 300, images[0], "--json")
    assert done.returncode == 2
    assert ["error" in result for result in json.loads(done.stdout)["results"]] == [True, False]
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_network_is_not_run(cli: Any, exported_bundle: Path, images: list[Path]):
    path = open_bundle(exported_bundle).stored_path("onnx-fp32.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    done = cli("predict", exported_bundle, images[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "damaged" in done.stderr


def test_variants_open_with_the_threads_asked_for(
    exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, images
):
    seen = []

    def record(data: bytes, version: str, *, threads: int, exact: bool) -> object:
        seen.append(threads)
        return real(data, version, threads=threads, exact=exact)

    from regnet_deploy.runtimes import runtime

    real = runtime.open_on_cpu
    monkeypatch.setattr(runtime, "open_on_cpu", record)
    assert cli("predict", exported_bundle, images[0], "--threads", "3").returncode == 0
    open_variant(open_bundle(exported_bundle), "onnx-fp32")
    assert seen == [3, runtime.available_cores()]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_is_never_quietly_the_cpu(cli: Any, exported_bundle: Path, images: list[Path], device: str):
    done = cli("predict", exported_bundle, images[0], "--device", device)
    assert (done.returncode, done.stdout) == (2, "")
    assert "onnxruntime-gpu" in done.stderr
    update_bundle(exported_bundle, {}, drop=("variants",))
    done = cli("predict", exported_bundle, images[0], "--device", device)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--device {device} runs an exported variant" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_faster_variant_that_cannot_run_here_is_said(
    cli: Any, exported_bundle: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
):
    bundle = open_bundle(exported_bundle)
    fast = candidate("openvino-fp32", latency("openvino-fp32", 1, 1.0, runtime="openvino 2026.4.1"))
    slow = candidate("onnx-fp32", latency("onnx-fp32", 1, 2.0))
    variants = {**bundle.variants, "openvino-fp32": openvino_variant(bundle)}
    update_bundle(exported_bundle, Manifest(variants=variants, choice=choice(slow, fast)))

    def missing() -> str:
        raise MissingExtra("OpenVINO is not installed")

    monkeypatch.setattr("regnet_deploy.runtimes.runtime.installed_openvino", missing)
    done = cli("predict", exported_bundle, images[0])
    assert done.returncode == 0, done.stderr
    says = "onnx-fp32 runs in place of openvino-fp32, which was measured as faster: OpenVINO is not installed"
    assert says in done.stderr


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")
def test_openvino_gives_the_answers_of_onnxruntime(cli: Any, exported_bundle: Path, images: list[Path]):
    answers = {}
    for runtime in ("onnxruntime", "openvino"):
        done = cli("predict", exported_bundle, images[0], "--runtime", runtime, "--json")
        assert done.returncode == 0
        answers[runtime] = json.loads(done.stdout)
        assert answers[runtime]["runtime"].startswith(f"{runtime} ")
    first, second = (found["results"][0]["predictions"] for found in answers.values())
    assert [one["label"] for one in first] == [one["label"] for one in second]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--runtime", "openvino", "--device", "cuda"], "--runtime openvino runs on the CPU"),
        (["--runtime", "tensorrt"], "--runtime tensorrt runs engines"),
    ],
)
def test_a_runtime_that_cannot_be_is_one_line(
    cli: Any, exported_bundle: Path, images: list[Path], options: list[str], says: str
):
    done = cli("predict", exported_bundle, images[0], *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_runtime_is_never_quietly_pytorch(cli: Any, exported_bundle: Path, images: list[Path]):
    update_bundle(exported_bundle, {}, drop=("variants",))
    done = cli("predict", exported_bundle, images[0], "--runtime", "openvino")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--runtime openvino runs an exported variant" in done.stderr


def test_names_are_shown_as_they_are(cli: Any, exported_bundle: Path, images: list[Path]):
    odd = images[0].rename(images[0].with_name("[red] :cat: x.png"))
    done = cli("predict", exported_bundle, odd, "-k", "1")
    assert done.returncode == 0
    assert str(odd) in done.stdout
