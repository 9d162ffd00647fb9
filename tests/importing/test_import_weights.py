"""A bundle of weights of another library: the same network, its preprocessing, its class names, and their origin."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_weights import X, as_library, weights_of

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import GRAY_MEAN
from regnet_deploy.errors import BundleError, DataError, UsageError
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.importing import public_weights
from regnet_deploy.importing.export_weights import export_weights
from regnet_deploy.importing.import_weights import ImportOptions, import_weights
from regnet_deploy.importing.public_weights import find_weights
from regnet_deploy.models.weights import load_model
from regnet_deploy.space.published import find_published

Save = Callable[..., Path]


@pytest.fixture
def timm_file(saved: Save) -> Path:
    return saved(as_library("timm", weights_of(X), X), "mine.pth")


def test_the_bundle_has_the_network_of_the_file_and_says_where_it_is_from(timm_file: Path, tmp_path: Path) -> None:
    bundle = import_weights(timm_file, tmp_path / "b", ImportOptions(resolution=64))
    opened = open_bundle(tmp_path / "b")
    assert opened.architecture.network == X
    assert (opened.architecture.name, opened.architecture.classes) == (bundle.architecture.name, 5)
    origin = opened.manifest.imported
    assert origin is not None
    assert (origin.file, origin.source, origin.container, origin.published) == ("mine.pth", "timm", "torch zip", None)
    assert origin.sha256 == hashlib.sha256(timm_file.read_bytes()).hexdigest()
    assert "preprocessing as in the default test of timm (short side 67, center 64, bicubic" in origin.assumptions[0]
    assert (opened.preprocessing.resize, opened.preprocessing.crop) == (67, 64)
    state = load_model(opened).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights_of(X).items())
    assert opened.is_trained


def test_what_is_given_is_taken_and_nothing_is_assumed(timm_file: Path, tmp_path: Path) -> None:
    options = ImportOptions(
        resolution=64,
        resize=64,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.5, 0.5),
        channels="rgb",
        stem_stride=2,
    )
    bundle = import_weights(timm_file, tmp_path / "b", options)
    pixels = bundle.preprocessing
    assert (pixels.resize, pixels.crop, pixels.interpolation) == (64, 64, "bilinear")
    assert (pixels.mean, pixels.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    assert bundle.manifest.imported is not None
    assert bundle.manifest.imported.assumptions == ()


@pytest.mark.parametrize(
    ("library", "order"),
    [
        ("timm", "the order of the channels is RGB, as timm has it: --channels bgr"),
        ("mmpretrain", "the order of the channels is BGR, as mmpretrain has it: --channels rgb"),
        ("pycls", "the file does not say the order of the channels: BGR is assumed"),
    ],
)
def test_what_is_assumed_of_the_stem_stays_in_the_bundle(saved: Save, tmp_path: Path, library: str, order: str) -> None:
    file = saved(as_library(library, weights_of(X), X), "mine.pth")
    for name, options in (("a", ImportOptions()), ("b", ImportOptions(channels="rgb", stem_stride=1))):
        origin = import_weights(file, tmp_path / name, options).manifest.imported
        assert origin is not None
        told = [any(text in line for line in origin.assumptions) for text in (order, "the stem has stride 2")]
        assert told == [name == "a"] * 2
        assert sum("order of the channels" in line for line in origin.assumptions) == (name == "a")


def test_public_weights_of_another_library_are_refused_with_the_option_that_named_them(
    timm_file: Path, tmp_path: Path
) -> None:
    said = r"names of timm, not of pycls: omit --weights RegNetX-200MF\.pycls"
    with pytest.raises(DataError, match=said):
        import_weights(timm_file, tmp_path / "b", ImportOptions(published="RegNetX-200MF.pycls"))


def test_public_weights_bring_preprocessing_license_and_accuracy(saved: Save, tmp_path: Path) -> None:
    network = find_published("RegNetX-200MF").network
    file = saved(as_library("timm", weights_of(network, 1000), network), "model.pth")
    bundle = import_weights(file, tmp_path / "b", ImportOptions(published="regnetx_002.pycls_in1k"))
    origin = bundle.manifest.imported
    assert origin is not None
    assert (origin.published, origin.license, origin.top1_percent) == ("regnetx_002.pycls_in1k", "MIT", 68.758)
    assert (bundle.preprocessing.resize, bundle.preprocessing.interpolation) == (256, "bicubic")
    assert (bundle.architecture.name, bundle.architecture.w_a) == ("RegNetX-200MF", 36.44)
    assert bundle.labels[:2] == ("tench", "goldfish")
    with pytest.raises(UsageError, match=r"does not have the network of regnety_002\.pycls_in1k: omit --weights"):
        import_weights(file, tmp_path / "c", ImportOptions(published="regnety_002.pycls_in1k"))
    assert not (tmp_path / "c").exists()


def test_a_digest_in_the_name_has_to_agree(timm_file: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(timm_file.read_bytes()).hexdigest()[:8]
    right, wrong = (timm_file.with_name(f"regnet-{each}.pth") for each in (digest, "e6988f5f"))
    right.write_bytes(timm_file.read_bytes())
    wrong.write_bytes(timm_file.read_bytes())
    import_weights(right, tmp_path / "b")
    with pytest.raises(DataError, match=f"its SHA-256 begins with {digest}, and its name says e6988f5f"):
        import_weights(wrong, tmp_path / "c")


def test_what_lies_beside_weights_of_a_repository_is_taken_and_options_go_before(saved: Save, tmp_path: Path) -> None:
    file = saved(as_library("timm", weights_of(X), X), "pytorch_model.bin")
    trained = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bilinear", "mean": [0.5] * 3}
    config = {"pretrained_cfg": {**trained, "std": [0.25] * 3, "license": "mit"}, "label_names": list("abcde")}
    file.with_name("config.json").write_text(json.dumps(config))
    bundle = import_weights(file, tmp_path / "b", location="hf:me/net@main")
    pixels, origin = bundle.preprocessing, bundle.manifest.imported
    assert origin is not None
    assert (pixels.resize, pixels.crop, pixels.interpolation) == (71, 64, "bilinear")
    assert (pixels.mean, pixels.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert bundle.labels == ("a", "b", "c", "d", "e")
    assert (origin.license, origin.location) == ("mit", "hf:me/net@main")
    assert not any("preprocessing" in text or "classes" in text for text in origin.assumptions)
    (tmp_path / "names").write_text("v\nw\nx\ny\nz\n")
    options = ImportOptions(resolution=128, interpolation="bicubic", std=(0.2, 0.2, 0.2), labels=tmp_path / "names")
    bundle = import_weights(file, tmp_path / "c", options)
    pixels = bundle.preprocessing
    assert (pixels.resize, pixels.crop, pixels.interpolation, pixels.std) == (142, 128, "bicubic", (0.2, 0.2, 0.2))
    assert bundle.labels == ("v", "w", "x", "y", "z")


def test_a_configuration_of_other_classes_is_not_taken_and_said(saved: Save, tmp_path: Path) -> None:
    file = saved(as_library("timm", weights_of(X), X), "pytorch_model.bin")
    file.with_name("config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.5] * 3}, "label_names": ["a"]}))
    bundle = import_weights(file, tmp_path / "b")
    assert bundle.manifest.imported is not None
    assert bundle.manifest.labels == ()
    assert (
        "default test of timm (short side 235, center 224, bicubic, mean and" in bundle.manifest.imported.assumptions[0]
    )
    assert any("1 class name, and the network 5 outputs" in line for line in bundle.manifest.imported.assumptions)


def test_the_place_of_public_weights_tells_what_a_file_is_if_it_has_their_network(saved: Save, tmp_path: Path) -> None:
    network = find_published("RegNetX-200MF").network
    file = saved(as_library("timm", weights_of(network, 1000), network), "pytorch_model.bin")
    origins = [
        import_weights(file, tmp_path / name, location=f"hf:timm/{name}@{'0' * 40}").manifest.imported
        for name in ("regnetx_002.pycls_in1k", "regnety_002.pycls_in1k")
    ]
    assert [each.published for each in origins if each] == ["regnetx_002.pycls_in1k", None]
    assert origins[0] is not None
    assert origins[0].assumed is None
    assert origins[0].assumptions == (origins[0].assumptions[-1],)
    assert origins[1] is not None
    assert "the place of regnety_002.pycls_in1k, and the file does not have its network" in origins[1].assumptions[0]


def test_a_file_of_a_public_network_is_not_taken_for_public_weights(saved: Save, tmp_path: Path) -> None:
    network = find_published("RegNetY-600MF").network  # of which timm has one set of weights
    file = saved(as_library("timm", weights_of(network, 1000), network), "model.pth")
    bundle = import_weights(file, tmp_path / "b")
    origin = bundle.manifest.imported
    assert origin is not None
    assert (origin.published, origin.license, origin.top1_percent, origin.assumed) == (None, None, None, None)
    assert "not taken for public weights of this network (regnety_006.pycls_in1k)" in origin.assumptions[0]
    assert bundle.preprocessing.resize == 235  # timm's own default


def test_what_the_name_alone_says_is_an_assumption_that_an_option_turns_off(saved: Save, tmp_path: Path) -> None:
    network = find_published("RegNetY-600MF").network
    file = saved(as_library("timm", weights_of(network, 1000), network), "regnety_006.pycls_in1k.pth")
    origin = import_weights(file, tmp_path / "b").manifest.imported
    assert origin is not None
    assert (origin.published, origin.top1_percent, origin.assumed) == ("regnety_006.pycls_in1k", 75.274, True)
    assert origin.license_text == "MIT (assumed, by the name of the file)"
    assert "--weights none that it is not" in origin.assumptions[0]
    said = import_weights(file, tmp_path / "c", ImportOptions(published="regnety_006.pycls_in1k")).manifest.imported
    assert said is not None
    assert (said.license_text, said.assumed) == ("MIT", None)
    own = import_weights(file, tmp_path / "d", ImportOptions(published="none")).manifest.imported
    assert own is not None
    assert (own.published, own.license, own.top1_percent, own.assumed) == (None, None, None, None)
    assert not any("public" in text for text in own.assumptions)


def test_a_license_that_may_forbid_a_use_is_named_with_the_weights(saved: Save, tmp_path: Path) -> None:
    network = find_published("RegNetY-600MF").network
    file = saved(as_library("timm", weights_of(network, 1000), network), "model.pth")
    restricted = dataclasses.replace(find_weights("regnety_006.pycls_in1k"), license="CC-BY-NC-4.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public_weights, "public_weights", lambda: (restricted,))
        origin = import_weights(file, tmp_path / "c").manifest.imported
    assert origin is not None
    assert "(regnety_006.pycls_in1k (CC-BY-NC-4.0))" in origin.assumptions[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\nb\n", "has 2 class names, and the network has 5 outputs"),
        ("a\nb\nc\nd\na\n", "names the class 'a' twice"),
        ('["a", "b", 3, "d", "e"]', "is no list of class names"),
        ("[", "is not JSON"),
        (100_000 * "[", "is not JSON"),
    ],
)
def test_class_names_that_do_not_fit_are_one_line(timm_file: Path, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "names").write_text(content)
    with pytest.raises(DataError, match=said):
        import_weights(timm_file, tmp_path / "b", ImportOptions(labels=tmp_path / "names"))


@pytest.mark.parametrize(
    "content",
    [
        "a\nb\n\nc\nd\ne\n",
        '["a", "b", "c", "d", "e"]',
        json.dumps({"id2label": {str(i): name for i, name in enumerate("abcde")}}),
    ],
)
def test_class_names_are_read_as_lines_a_list_or_numbers(timm_file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "names").write_text(content)
    bundle = import_weights(timm_file, tmp_path / "b", ImportOptions(labels=tmp_path / "names"))
    assert bundle.labels == ("a", "b", "c", "d", "e")


def test_weights_are_not_replaced_unasked(timm_file: Path, tmp_path: Path) -> None:
    first = import_weights(timm_file, tmp_path / "b")
    with pytest.raises(BundleError, match="already holds weights"):
        import_weights(timm_file, tmp_path / "b")
    again = import_weights(timm_file, tmp_path / "b", replace_existing=True)
    assert again.files == first.files


def test_the_weights_of_a_bundle_that_lost_its_manifest_give_the_same_model(tmp_path: Path) -> None:
    """As the error of such a folder advises; the file does not hold what the options say."""
    whole = open_bundle(Path(__file__).parents[1] / "fixtures" / "bundles" / "exported")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(whole.labels))
    file = whole.path / whole.files["weights.safetensors"].name
    options = ImportOptions(channels="rgb", resolution=32, resize=32, stem_stride=1, labels=labels)
    bundle = import_weights(file, tmp_path / "b", options)
    assert bundle.preprocessing == whole.preprocessing
    assert bundle.labels == whole.labels
    before, after = load_model(whole).eval(), load_model(bundle).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(before(images), after(images))


def test_the_default_preprocessing_is_that_of_training_where_the_error_names_no_resize(
    timm_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    source = open_bundle(import_weights(timm_file, tmp_path / "a").path)
    file.write_bytes(source.read("weights.safetensors"))
    for resolution in (96, 128, 224):
        bundle = import_weights(file, tmp_path / f"{resolution}", ImportOptions(channels="rgb", resolution=resolution))
        assert bundle.preprocessing == default_preprocessing(resolution)


@pytest.mark.parametrize(
    ("source", "content", "antialias"),
    [
        ("pycls", {}, False),
        ("pycls", {"cfg": "DATA_LOADER:\n  MODE: ffcv\n"}, True),
        ("mmpretrain", {}, False),
        ("torchvision", {}, True),
        ("timm", {}, True),
    ],
)
def test_images_are_resized_with_antialiasing_where_the_library_does(
    saved: Save, tmp_path: Path, source: str, content: dict[str, str], antialias: bool
) -> None:
    file = saved({"model_state": as_library(source, weights_of(X), X), **content})
    bundle = import_weights(file, tmp_path / "b")
    assert bundle.preprocessing.antialias is antialias
    assert bundle.preprocessing.scaled_decoding is antialias
    assert bundle.manifest.imported is not None
    assert (
        any("bilinear without antialiasing" in line for line in bundle.manifest.imported.assumptions) is not antialias
    )
    other = import_weights(file, tmp_path / "c", ImportOptions(antialias=not antialias, interpolation="bilinear"))
    assert other.preprocessing.antialias is not antialias
    assert import_weights(file, tmp_path / "d", ImportOptions(interpolation="bicubic")).preprocessing.antialias
    with pytest.raises(UsageError, match="--no-antialias goes with --interpolation bilinear, and not with bicubic"):
        import_weights(file, tmp_path / "e", ImportOptions(interpolation="bicubic", antialias=False))


def test_a_digest_in_a_name_of_pytorchcv_is_that_of_sha1(timm_file: Path, tmp_path: Path) -> None:
    digest = hashlib.sha1(timm_file.read_bytes()).hexdigest()[:8]
    file = timm_file.rename(timm_file.with_name(f"regnetx002-1066-{digest}.pth"))
    import_weights(file, tmp_path / "b")


def test_weights_of_a_bundle_are_not_taken_for_those_of_pycls(timm_file: Path, tmp_path: Path) -> None:
    bundle = import_weights(timm_file, tmp_path / "b")
    (file,) = (tmp_path / "b").glob("weights-*.safetensors")
    with pytest.raises(UsageError, match="is a part of the bundle"):
        import_weights(file, tmp_path / "c")
    copy = import_weights(file, tmp_path / "c", ImportOptions(channels="rgb"))
    assert copy.read("weights.safetensors") == bundle.read("weights.safetensors")


def test_the_default_test_of_timm_is_rounded_down_as_there(timm_file: Path, tmp_path: Path) -> None:
    pixels = import_weights(timm_file, tmp_path / "b").preprocessing
    assert (pixels.resize, pixels.crop, pixels.interpolation) == (235, 224, "bicubic")


def test_weights_of_a_gray_network_are_recognized_by_their_stem(saved: Save, tmp_path: Path) -> None:
    gray = replace(X, input_channels=1)
    for number, library in enumerate(("timm", "pycls")):  # the order of colors of pycls does not matter
        file = saved(as_library(library, weights_of(gray), gray), f"{library}.pth")
        bundle = import_weights(file, tmp_path / f"b{number}", ImportOptions(resolution=64))
        assert bundle.architecture.network == gray
        assert (bundle.preprocessing.colours, bundle.preprocessing.mean) == ("L", GRAY_MEAN)
        state = load_model(bundle).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights_of(gray).items())
        origin = bundle.manifest.imported
        assert origin is not None
        said = " ".join(origin.assumptions)
        assert "BGR" not in said
        assert "RGB" not in said
        assert "mean and deviation of gray)" in said
        with pytest.raises(UsageError, match="takes gray images, whose one channel has no order: omit --channels bgr"):
            import_weights(file, tmp_path / "no", ImportOptions(channels="bgr"))
    options = ImportOptions(resolution=64, mean=(0.13,), std=(0.31,))
    bundle = import_weights(file, tmp_path / "given", options)
    assert (bundle.preprocessing.mean, bundle.preprocessing.std) == ((0.13,), (0.31,))
    with pytest.raises(
        UsageError, match=r"--mean must have one number, because the network takes gray images, got 0.1"
    ):
        import_weights(file, tmp_path / "wrong", ImportOptions(mean=(0.1, 0.2, 0.3)))
    again = export_weights(bundle, "timm", tmp_path / "again.safetensors")
    assert import_weights(again, tmp_path / "round").architecture.network == gray


def test_a_stem_of_other_channels_is_refused(saved: Save, tmp_path: Path) -> None:
    state = weights_of(X)
    state["stem.conv.weight"] = torch.zeros(8, 4, 3, 3)
    with pytest.raises(
        DataError, match=r"the shapes fit no RegNet: input channels must be 1 \(gray\) or 3 \(RGB\), got 4"
    ):
        import_weights(saved(as_library("timm", state, X), "four.pth"), tmp_path / "b")


@pytest.mark.parametrize(
    ("channels", "stated", "taken"), [(1, [0.13], (0.13,)), (3, [0.5], (0.5,) * 3), (1, [0.1, 0.2, 0.3], GRAY_MEAN)]
)
def test_config_json_of_timm_normalizes_as_many_channels_as_the_stem_has(
    saved: Save, tmp_path: Path, channels: int, stated: list[float], taken: tuple[float, ...]
) -> None:
    network = replace(X, input_channels=channels)
    file = saved(as_library("timm", weights_of(network), network), "pytorch_model.bin")
    config = {"pretrained_cfg": {"input_size": [channels, 64, 64], "mean": stated, "crop_pct": 1.0}}
    file.with_name("config.json").write_text(json.dumps(config))
    bundle = import_weights(file, tmp_path / "b")
    assert bundle.preprocessing.mean == taken
    assert bundle.manifest.imported is not None
    told = "config.json has 3 values of mean for 1 channel: not taken" in bundle.manifest.imported.assumptions
    assert told == (len(stated) == 3)
