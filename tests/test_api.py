"""The public API: its names, its signatures, what its import costs, and its page of examples."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import typing
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

import regnet_deploy as rd
from regnet_deploy import errors
from regnet_deploy.runtimes.golden_set import load_golden

ROOT = Path(__file__).parents[1]

#: Every public name; of a function, its parameters: those after ``*`` are keywords only.
PUBLIC = {
    "Bounds": None,
    "Budget": None,
    "Bundle": None,
    "EngineOptions": None,
    "ExecutionRequest": None,
    "ExportOptions": None,
    "Gate": None,
    "Limits": None,
    "NamedRecipe": None,
    "Progress": None,
    "Recipe": None,
    "RegnetDeployError": None,
    "ServeOptions": None,
    "ServerSettings": None,
    "Setup": None,
    "TimeLimits": None,
    "TrainOptions": None,
    "__version__": None,
    "calibrate": "setups * networks minutes anyway store progress",
    "check_folder": "data * bundle progress",
    "create_bundle": "path selection * replace_existing",
    "evaluate": "bundle data * variants split device runtime progress",
    "export": "bundle data * precisions options progress",
    "export_file": "bundle path * variant target progress",
    "load_model": "bundle",
    "load_recipe": "name",
    "open_bundle": "path",
    "open_classifier": "bundle * variant device runtime threads",
    "predict": "bundle images * k variant device runtime",
    "profile": "bundle * batches seconds threads device compiled progress",
    "select": "budget * evidence",
    "select_by_time": "limits budget setup * minutes anyway store progress",
    "select_published": "name * resolution classes stem_stride input_channels",
    "serve": "path settings",
    "train": "bundle data recipe options * progress",
    "verify": "bundle",
}


def test_the_public_names_are_these() -> None:
    assert rd.__all__ == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(rd))
    with pytest.raises(AttributeError, match="no attribute 'does_not_exist'"):
        _ = rd.does_not_exist


@pytest.mark.parametrize("name", [name for name, parameters in PUBLIC.items() if parameters is not None])
def test_the_public_functions_have_these_parameters_typed_and_documented(name: str) -> None:
    function = getattr(rd, name)
    words: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name)
        assert parameter.annotation is not inspect.Parameter.empty
        assert len(words) == 1 or f"{parameter.name}:" in function.__doc__ or parameter.name == "*"
    assert " ".join(words) == PUBLIC[name]
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    source = (ROOT / "regnet_deploy" / "__init__.py").read_text(encoding="utf-8")
    static: dict[str, object] = {"__name__": "regnet_deploy", "__file__": ""}
    exec(compile(source.replace("if TYPE_CHECKING:", "if True:"), "regnet_deploy/__init__.py", "exec"), static)
    assert {name: static[name] for name in rd.__all__} == {name: getattr(rd, name) for name in rd.__all__}


def test_the_import_loads_no_other_library() -> None:
    program = "import sys; before = set(sys.modules); import regnet_deploy; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert loaded - set(sys.stdlib_module_names) == {"regnet_deploy"}


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # or the threads wait for each other where the machine is busy
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for label, color in (("cat", (200, 80, 40)), ("dog", (40, 80, 200))):
            folder = tmp_path / "my-images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                noise = draw.integers(-40, 40, (32, 32, 3))
                Image.fromarray((np.array(color) + noise).astype(np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "page"}
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.info == "python":
            assert token.map is not None
            lines = "\n" * (token.map[0] + 1) + token.content  # so that a traceback names the line of the page
            exec(compile(lines, str(ROOT / "docs" / "api.md"), "exec"), names)
    torch.set_num_threads(threads)


def test_paths_arrays_and_pil_images_get_the_same_answers(exported_bundle: Path, tmp_path: Path) -> None:
    golden = load_golden(rd.open_bundle(exported_bundle))
    paths = []
    for i, pixels in enumerate(golden.images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    classifier = rd.open_classifier(exported_bundle)
    given = {
        "paths": paths,
        "words": list(map(str, paths)),
        "one array": golden.images,
        "arrays": list(golden.images),
        "PIL images": [Image.fromarray(pixels) for pixels in golden.images],
    }
    for kind, images in given.items():
        np.testing.assert_allclose(classifier.logits(images), golden.logits, atol=1e-4, err_msg=kind)
    best = golden.logits.argmax(axis=1).tolist()
    for images, wanted in ((paths[0], best[:1]), (golden.images[0], best[:1]), (given["PIL images"], best)):
        answers = rd.predict(exported_bundle, images, k=1)
        assert [answer[0].index for answer in answers] == wanted


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"an array of float32 with the shape \(4, 4, 3\) is not an image"),
        (np.zeros((4, 4), np.uint8), r"give uint8 with the shape \(height, width, 3\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), "is not an image"),
        (7, "int is not an image: give a path"),
        (["missing.png"], "missing.png: cannot be read: No such file"),
    ],
)
def test_what_is_no_image_is_an_error_that_says_what_one_is(
    exported_bundle: Path, image: typing.Any, message: str
) -> None:
    with pytest.raises(rd.RegnetDeployError, match=message):
        rd.predict(exported_bundle, image)


def test_a_grey_array_is_named_by_its_own_shape(exported_bundle: Path) -> None:
    with pytest.raises(errors.DataError, match=r"an array of uint8 with the shape \(32, 30\) is not an image"):
        rd.predict(exported_bundle, np.zeros((32, 30), np.uint8))


@pytest.mark.parametrize(
    ("record", "field", "value", "wanted"),
    [
        (lambda **given: rd.Budget(**{"macs": 4e8, **given}), "macs", "4e9", "a number"),
        (lambda **given: rd.Budget(**{"macs": 4e8, **given}), "classes", 2.5, "a whole number"),
        (lambda **given: rd.Recipe(**given), "epochs", "3", "a whole number"),
        (lambda **given: rd.Recipe(**given), "flip", "no", "True or False"),
        (lambda **given: rd.TrainOptions(**given), "workers", 1.5, "a whole number or None"),
        (lambda **given: rd.ExportOptions(**given), "max_drop", "half", "a number"),
        (lambda **given: rd.EngineOptions(**given), "max_batch", "8", "a whole number"),
        (lambda **given: rd.ServeOptions(**given), "threads", "all", "a whole number or None"),
        (lambda **given: rd.ServerSettings(**given), "port", "8000", "a whole number"),
        (lambda **given: rd.Limits(**given), "max_queue", None, "a whole number"),
    ],
)
def test_an_option_of_another_type_is_an_error_that_says_what_was_expected(
    record: typing.Callable[..., object], field: str, value: object, wanted: str
) -> None:
    said = re.escape(f"{field} must be {wanted}, got {value!r} ({type(value).__name__})")
    with pytest.raises(errors.UsageError, match=said):
        record(**{field: value})
    record()


def test_numbers_of_numpy_are_numbers() -> None:
    assert rd.Recipe(epochs=np.int64(3), lr=np.float32(0.1)).epochs == 3


#: What is called with the folder of a bundle -> what the error says was expected.
MISTAKES: dict[str, tuple[typing.Callable[[Path], typing.Any], str]] = {
    "one batch size": (lambda path: rd.profile(path, batches=8), r"batches must be whole numbers .*, got 8 \(int\)"),
    "a text of batch sizes": (lambda path: rd.profile(path, batches="1,8"), r"batches must .*, got '1,8' \(str\)"),
    "a fraction of a batch": (lambda path: rd.profile(path, batches=(1.5,)), r"each of batches must .*, got 1\.5"),
    "seconds in words": (lambda path: rd.profile(path, seconds="1"), "seconds must be a number of seconds, got '1'"),
    "threads in words": (lambda path: rd.open_classifier(path, threads="2"), "threads must be a number of CPU threads"),
    "a device by number": (lambda path: rd.profile(path, device=0), "no device 0; there are"),
    "no bundle": (lambda path: rd.verify(None), r"bundle must be a bundle or its folder, got None \(NoneType\)"),
    "a bundle by number": (lambda path: rd.open_bundle(5), r"by the path of its folder, got 5 \(int\)"),
    "a model by number": (lambda path: rd.load_model(5), "bundle must be a bundle or its folder, got 5"),
    "a budget in words": (
        lambda path: rd.select("4"),
        r"budget must be a Budget such as .*, got '4'",
    ),
    "one file of evidence": (
        lambda path: rd.select(rd.Budget(macs=4e8), evidence="a.csv"),
        "evidence must be a sequence of files",
    ),
    "a network by number": (lambda path: rd.select_published(4), "name must be a name such as 'RegNetY-4.0GF', got 4"),
    "no selection": (lambda path: rd.create_bundle(path / "new", None), "selection must be a result of rd.select"),
    "images by number": (lambda path: rd.train(path, 5), "data must be a folder of images, got 5"),
    "epochs as a recipe": (lambda path: rd.train(path, path, 1), "recipe must be a Recipe such as"),
    "precision by number": (lambda path: rd.export(path, precisions=16), "precisions must be a name or several"),
    "options in JSON": (lambda path: rd.export(path, options={}), "options must be ExportOptions"),
    "k in words": (lambda path: rd.predict(path, [], k="3"), "k must be a whole number, got '3'"),
    "settings in JSON": (lambda path: rd.serve(path, {"port": 1}), "settings must be ServerSettings"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_argument_of_another_type_is_an_error_that_says_what_was_expected(
    exported_bundle: Path, mistake: str
) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(errors.UsageError, match=message):
        call(exported_bundle)


def test_functions_take_a_bundle_as_well_as_its_folder(exported_bundle: Path) -> None:
    bundle = rd.open_bundle(exported_bundle)
    images = load_golden(bundle).images
    assert rd.predict(bundle, images, k=1) == rd.predict(exported_bundle, images, k=1)
    assert rd.open_classifier(bundle).variant == rd.open_classifier(exported_bundle).variant
    assert rd.verify(bundle) == rd.verify(exported_bundle)


def test_a_variant_that_is_wrong_here_is_not_opened(disagreeing_bundle: Path, tmp_path: Path) -> None:
    pixels = load_golden(rd.open_bundle(disagreeing_bundle)).images[0]
    with pytest.raises(errors.ProofError, match=r"onnx-fp32 .* does not agree with its golden set"):
        rd.predict(disagreeing_bundle, pixels)
    with pytest.raises(errors.ProofError, match=r"onnx-fp32-uint8 .* does not agree with its golden set"):
        rd.evaluate(disagreeing_bundle, tmp_path, variants=["onnx-fp32-uint8"])


def test_no_images_give_no_predictions(exported_bundle: Path) -> None:
    assert rd.predict(exported_bundle, []) == []


def test_a_server_answers_while_its_context_lasts(exported_bundle: Path) -> None:
    settings = rd.ServerSettings(name="tiny", port=0, model=rd.ServeOptions(variant="onnx-fp32"))
    with rd.serve(exported_bundle, settings) as server:
        with urllib.request.urlopen(f"{server.url}/v2/models/tiny/ready") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{server.url}/v2/models/tiny") as answer:
            assert json.load(answer)["name"] == "tiny"
    server.close()  # a second time is nothing
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}/v2/health/live")


def test_a_server_that_does_not_agree_with_its_golden_set_does_not_start(exported_bundle: Path) -> None:
    from regnet_deploy.bundle import update_bundle
    from regnet_deploy.errors import ProofError
    from regnet_deploy.runtimes.golden_set import GoldenSet, golden_to_bytes

    golden = load_golden(rd.open_bundle(exported_bundle))
    other = golden_to_bytes(GoldenSet(golden.images, golden.logits + 1))
    update_bundle(exported_bundle, {}, {"golden.safetensors": other})
    with pytest.raises(ProofError):
        rd.serve(exported_bundle)
