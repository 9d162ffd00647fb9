"""Accuracy beside the model's: the right images, each counted once, and what differs told in figures."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_parts import accuracy
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, MissingPart, ProofError
from regnet_deploy.exporting import validation as validation_module
from regnet_deploy.exporting.accuracy import (
    ReferenceLogits,
    measure_accuracy,
    paired_difference,
    reference_logits,
    undecided_drops,
)
from regnet_deploy.exporting.decoded_images import pixels_fingerprint
from regnet_deploy.exporting.onnx_graph import build_onnx
from regnet_deploy.exporting.training_dataset import load_training_dataset
from regnet_deploy.exporting.validation import ValidationSet, load_validation_set
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.models.weights import load_model
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network

SIDE = 32
LABELS = ["ant", "bee", "café", "dog", "eel"]
PREPROCESSING = default_preprocessing(SIDE)


@pytest.fixture
def folder(tmp_path, write_images):
    """20 training and 23 validation images, one of which is broken."""
    root = tmp_path / "data"
    for label, name in enumerate(LABELS):
        write_images(root / "train" / name, 4, seed=label)
        write_images(root / "val" / name, 4 + label % 2, seed=label + 10)
    write_images(root / "val" / "eel", 5, seed=14)
    (root / "val" / "bee" / "002.png").write_bytes(b"no image")
    return root


@pytest.fixture
def bundle(trained, folder, trained_on):
    trained_on(trained, folder)
    (folder / "val" / "ant" / "001.png").write_bytes(b"broken since it was trained on")
    return open_bundle(trained)


@pytest.fixture(params=["in memory", "streamed"])
def validation(request, bundle, folder, monkeypatch):
    if request.param == "streamed":
        monkeypatch.setattr(validation_module, "MEMORY_BYTES", 0)
    found = load_validation_set(folder, bundle, PREPROCESSING)
    assert (found.pixels is None) == (request.param == "streamed")
    return found


class Fake:
    """A session that gives the logits it was given, image after image."""

    runtime, device, input, input_name, output_name = "fake 1", "cpu", "float32", "images", "logits"

    def __init__(self, logits):
        self.logits, self.done = np.asarray(logits, np.float32), 0

    def run(self, images):
        self.done += len(images)
        return self.logits[self.done - len(images) : self.done]


def made(labels):
    """Return a validation set of black images with these labels."""
    labels = np.asarray(labels)
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    source, indices = FolderSource(Path("none"), tuple(map(str, range(len(labels))))), tuple(range(len(labels)))
    return ValidationSet(source, indices, labels, np.arange(len(labels)), "made", Preprocessing(4, 4), pixels, {})


def names(validation):
    return [validation.source.names[index] for index in validation.indices]


def one_hot(classes, count=3, scale=1.0):
    return (np.eye(count)[classes] * scale).astype(np.float32)


def test_the_images_are_those_of_val_as_the_server_sees_them(validation, folder, bundle):
    batches = list(validation.batches(5))
    labels, numbers = (np.concatenate([getattr(each, name) for each in batches]) for name in ("labels", "numbers"))
    assert sum(len(each.pixels) for each in batches) == len(labels) == 21
    assert np.bincount(labels).tolist() == [3, 4, 4, 5, 5]
    assert (np.diff(numbers) > 0).all()
    assert batches[0].pixels.shape[1:] == (SIDE, SIDE, 3)
    assert validation.split == "val/ of the folder"
    assert len(validation) == (22 if validation.pixels is None else 21)
    assert list(validation.unreadable) == ["val/ant/001.png"]


def test_files_that_cannot_be_read_are_told_and_counted(validation, folder, bundle):
    reference = reference_logits(load_model(bundle), validation)
    assert validation.check_unreadable() == (
        f"1 of 22 validation images in {folder} cannot be read, for example val/ant/001.png: "
        f"{validation.unreadable['val/ant/001.png']}"
    )
    assert validation.unreadable["val/ant/001.png"].startswith("not an image")
    found = measure_accuracy(Fake(reference.logits), validation, reference)
    assert (found.images, found.left_out) == (21, 1)
    assert found.to_json()["left_out"] == 1


@pytest.mark.parametrize("memory", [0, 2**29])
@pytest.mark.parametrize("broken", [2, 3])
def test_no_more_than_a_tenth_may_be_unreadable(bundle, folder, monkeypatch, memory, broken):
    monkeypatch.setattr(validation_module, "MEMORY_BYTES", memory)
    for number in range(broken - 1):
        (folder / "val" / "eel" / f"{number:03}.png").write_bytes(b"gone bad")
    if broken / 22 <= 0.1:
        validation = load_validation_set(folder, bundle, PREPROCESSING)
        assert len(reference_logits(load_model(bundle), validation).labels) == 20
        return
    with pytest.raises(
        DataError, match=r"3 of 22 validation images in .* cannot be read, for example .*at most 10%"
    ) as e:
        reference_logits(load_model(bundle), load_validation_set(folder, bundle, PREPROCESSING))
    assert "\n" not in str(e.value)


def test_the_reference_keeps_no_pixels(bundle, folder, monkeypatch, write_images):
    monkeypatch.setattr(validation_module, "MEMORY_BYTES", 0)
    for label, name in enumerate(LABELS):
        write_images(folder / "val" / name, 60, seed=30 + label)
    large = PREPROCESSING.replace(resize=64, crop=64)
    validation = load_validation_set(folder, bundle, large)
    model = load_model(bundle)
    reference_logits(model, validation.subset(40), batch=8)  # what is imported and set up once
    tracemalloc.start()
    try:
        found = reference_logits(model, validation, batch=8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.labels) == len(found.fingerprints) == 299  # one was broken when it was trained on
    assert peak < 300 * 64 * 64 * 3 / 2


def test_the_reference_knows_every_view_again(validation, bundle):
    found = reference_logits(load_model(bundle), validation, batch=4)
    pixels = np.concatenate([each.pixels for each in validation.batches()])
    assert found.fingerprints == {pixels_fingerprint(image) for image in pixels}


def test_a_folder_that_was_split_already_is_not_split_again(bundle, folder):
    split = load_training_dataset(folder, bundle)
    once, again = (load_validation_set(given, bundle, PREPROCESSING) for given in (folder, split))
    assert (once.indices, once.labels.tolist(), once.split) == (again.indices, again.labels.tolist(), again.split)


def test_a_held_out_share_is_the_same_as_training_had(trained, folder, trained_on):
    split = trained_on(trained, folder / "train", share=0.5, seed=2)
    found = load_validation_set(folder / "train", open_bundle(trained), PREPROCESSING)
    assert names(found) == [split.name(image) for image in split.val]
    assert np.bincount(found.labels).tolist() == [2] * 5


def test_labels_are_places_in_the_bundles_labels(bundle, folder):
    found = load_validation_set(folder, bundle, PREPROCESSING)
    assert all(path.split("/")[1] == LABELS[label] for path, label in zip(names(found), found.labels, strict=True))


def test_progress_receives_the_images_done(bundle, folder, recorded_progress):
    recorded_progress.step("images")
    validation = load_validation_set(folder, bundle, PREPROCESSING, recorded_progress)
    recorded_progress.step("logits")
    reference_logits(load_model(bundle), validation, recorded_progress, batch=16)
    updates = [("images", done, 22, "") for done in range(1, 23)]
    assert recorded_progress.updates == [*updates, ("logits", 16, 21, ""), ("logits", 21, 21, "")]


def test_the_reference_is_the_model(validation, bundle):
    threads = torch.get_num_threads()
    model = load_model(bundle)
    found = reference_logits(model, validation, batch=4)
    assert torch.get_num_threads() == threads
    pixels = np.concatenate([each.pixels for each in validation.batches()])
    with torch.inference_mode():
        wanted = model(torch.from_numpy(normalize(pixels, PREPROCESSING))).numpy()
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-4)
    assert found.top1 == (wanted.argmax(1) == found.labels).mean()


@pytest.mark.parametrize("pixels", [False, True])
def test_an_exported_file_answers_as_the_model_does(validation, bundle, pixels):
    model = load_model(bundle)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    data = build_onnx(Network.from_json(bundle.parts["architecture"]), weights, PREPROCESSING, pixels=pixels)
    reference = reference_logits(model, validation)
    found = measure_accuracy(open_onnx(data, threads=1, device="cpu"), validation, reference, batch=4)
    assert (found.images, found.agreement, found.drop) == (21, 1.0, 0.0)
    assert found.top1 == found.reference_top1 == reference.top1
    assert found.max_abs_error < 1e-3
    assert found.cosine > 0.9999


def test_figures_are_counted_image_by_image():
    labels = [0, 0, 1, 1, 2, 2, 2, 0]
    before = [0, 0, 1, 2, 2, 2, 1, 0]  # 6 right
    after = [0, 1, 1, 1, 2, 2, 0, 1]  # two of those wrong now, one other right
    reference = ReferenceLogits(np.arange(8), np.asarray(labels), one_hot(before, scale=2.0))
    found = measure_accuracy(Fake(one_hot(after)), made(labels), reference, batch=3)
    assert (found.images, found.top1, found.reference_top1) == (8, 5 / 8, 6 / 8)
    assert found.agreement == 4 / 8
    expected = paired_difference(2, 1, 8)
    assert found.drop == pytest.approx(12.5)
    assert (found.low, found.high) == (100 * expected.low, 100 * expected.high)
    assert found.max_abs_error == 2.0
    assert found.mean_abs_error == pytest.approx((4 * 1 + 4 * (2 + 1)) / 24)
    assert found.cosine == 0.0
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["drop"] == pytest.approx(12.5)


def test_a_variant_may_gain():
    reference = ReferenceLogits(np.arange(4), np.asarray([0, 1, 2, 0]), one_hot([1, 1, 2, 0]))
    found = measure_accuracy(Fake(one_hot([0, 1, 2, 0])), made([0, 1, 2, 0]), reference)
    assert found.drop == -25.0
    assert found.low < -25.0 < found.high


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong_and_stay_told(value):
    logits = one_hot([0, 1, 2, 0])
    logits[1, 1] = value
    reference = ReferenceLogits(np.arange(4), np.asarray([0, 1, 2, 0]), one_hot([0, 1, 2, 0]))
    found = measure_accuracy(Fake(logits), made([0, 1, 2, 0]), reference, batch=1)
    assert (found.top1, found.agreement) == (0.75, 0.75)
    assert (found.max_abs_error, found.mean_abs_error, found.cosine) == (None, None, None)
    figures = found.to_json()
    assert figures["max_abs_error"] is figures["mean_abs_error"] is figures["cosine"] is None


def test_logits_of_other_classes_cannot_be_compared():
    reference = ReferenceLogits(np.arange(2), np.asarray([0, 1]), one_hot([0, 1]))
    with pytest.raises(ProofError, match=r"logits of shape \(2, 4\) cannot be compared with a reference of \(2, 3\)"):
        measure_accuracy(Fake(one_hot([0, 1], count=4)), made([0, 1]), reference)


def test_a_subset_is_spread_seeded_and_measured_with_the_whole_reference(validation, bundle):
    whole = reference_logits(load_model(bundle), validation)
    some = validation.subset(10, seed=1)
    assert len(some) == 10
    assert np.bincount(some.labels).tolist() == [2] * 5
    assert (np.diff(some.numbers) > 0).all()
    assert set(some.indices) <= set(validation.indices)
    assert some.indices == validation.subset(10, seed=1).indices
    assert some.indices != validation.subset(10, seed=2).indices
    part = whole.restricted_to(some)
    np.testing.assert_allclose(part.logits, reference_logits(load_model(bundle), some).logits, rtol=1e-4, atol=1e-4)
    for reference in (whole, part):
        found = measure_accuracy(Fake(part.logits), some, reference)
        assert (found.images, found.agreement, found.max_abs_error) == (len(part.labels), 1.0, 0.0)
        assert found.reference_top1 == part.top1


def test_a_subset_of_more_than_all_is_all(validation):
    assert validation.subset(1000) is validation


def test_too_few_images_for_a_limit_are_told_with_the_widest_interval():
    none, some = (accuracy(images=400, drop=0.25, low=low, high=high) for low, high in ((-0.9, 0.9), (-0.5, 1.5)))
    assert undecided_drops({}, 0.5) is None
    assert undecided_drops({"onnx-fp32": none, "onnx-int8": some}, 1.0) is None
    assert undecided_drops({"onnx-fp32": none, "onnx-int8": some}, 0.5) == (
        "400 validation images are too few to measure a drop of 0.5 points: onnx-int8 loses 0.25 points, with a 95 % "
        "interval of -0.50 to 1.50"
    )


def test_an_image_that_goes_meanwhile_is_noticed(bundle, folder, monkeypatch):
    monkeypatch.setattr(validation_module, "MEMORY_BYTES", 0)
    validation = load_validation_set(folder, bundle, PREPROCESSING)
    reference = reference_logits(load_model(bundle), validation)
    (folder / "val" / "dog" / "000.png").unlink()
    with pytest.raises(DataError, match="validation images changed while they were used: run this command again"):
        measure_accuracy(Fake(reference.logits), validation, reference)


def test_an_image_that_comes_back_meanwhile_is_noticed(bundle, folder, monkeypatch, write_images):
    monkeypatch.setattr(validation_module, "MEMORY_BYTES", 0)
    validation = load_validation_set(folder, bundle, PREPROCESSING)
    reference = reference_logits(load_model(bundle), validation)
    write_images(folder / "val" / "ant", 2, seed=70)
    with pytest.raises(DataError, match="validation images changed"):
        measure_accuracy(Fake(reference.logits), validation, reference)


def test_the_models_own_logits_must_be_finite(bundle, folder):
    model = load_model(bundle)
    with torch.no_grad():
        model.head.fc.bias[0] = torch.nan
    with pytest.raises(ProofError, match="the model's own logits are not finite"):
        reference_logits(model, load_validation_set(folder, bundle, PREPROCESSING))


@pytest.mark.parametrize("memory", [0, 2**29])
def test_images_none_of_which_can_be_read(bundle, folder, monkeypatch, memory):
    monkeypatch.setattr(validation_module, "MEMORY_BYTES", memory)
    for file in (folder / "val").rglob("*.png"):
        file.write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"22 of 22 validation images in .* cannot be read") as error:
        reference_logits(load_model(bundle), load_validation_set(folder, bundle, PREPROCESSING))
    assert "\n" not in str(error.value)


def test_other_classes_are_refused(bundle, folder):
    (folder / "train" / "dog").rename(folder / "train" / "dogs")
    (folder / "val" / "dog").rename(folder / "val" / "dogs")
    with pytest.raises(DataError, match=r"are not those of the bundle: .* dogs \(did you mean dog\?\)"):
        load_validation_set(folder, bundle, PREPROCESSING)


def test_an_untrained_bundle_is_refused(folder, untrained):
    with pytest.raises(MissingPart, match=r"no labels yet: run `regnet-deploy train --data DIR \S+` first"):
        load_validation_set(folder, open_bundle(untrained), PREPROCESSING)


# The interval of a difference between paired shares is Tango's, and holds its level.


Z = 1.959963984540054
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200)).filter(lambda c: sum(c) > 0)


def score(lost, gained, n, d):
    """Tango's statistic, its likeliest share found by search over the likelihood itself."""
    least, most = max(0.0, -d), (1 - d) / 2
    q = np.linspace(least, most, 200_001)[1:-1]
    with np.errstate(divide="ignore"):
        likelihood = lost * np.log(q + d) + gained * np.log(q) + (n - lost - gained) * np.log1p(-2 * q - d)
    best = q[likelihood.argmax()]
    return (lost - gained - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 7, 21), (6, 16, 161), (12, 2, 50), (40, 20, 160), (3, 3, 40)])
def test_the_ends_are_where_the_score_test_begins_to_reject(lost, gained, n):
    found = paired_difference(lost, gained, n)
    assert found.value == (lost - gained) / n
    assert score(lost, gained, n, found.low) == pytest.approx(Z, abs=1e-3)
    assert score(lost, gained, n, found.high) == pytest.approx(-Z, abs=1e-3)


@pytest.mark.parametrize("n", [1, 50, 50_000])
def test_where_nothing_differs_the_ends_have_a_closed_form(n):
    found = paired_difference(0, 0, n)
    end = Z**2 / (n + Z**2)  # of (n d)^2 = Z^2 n d (1 - d)
    assert (found.value, found.low, found.high) == (0, pytest.approx(-end), pytest.approx(end))


def test_everything_lost_and_everything_gained():
    assert paired_difference(5, 0, 5).high == 1
    assert paired_difference(5, 0, 5).low > 0
    assert paired_difference(0, 5, 5).low == -1
    assert paired_difference(0, 5, 5).high < 0


@given(counts)
def test_it_holds_the_estimate_and_is_symmetric(c):
    lost, gained, rest = c
    n = lost + gained + rest
    one, other = paired_difference(lost, gained, n), paired_difference(gained, lost, n)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.low, one.high) == (pytest.approx(-other.high, abs=1e-9), pytest.approx(-other.low, abs=1e-9))


@settings(max_examples=20, deadline=None)
@given(counts)
def test_zero_is_outside_where_mcnemar_rejects(c):
    lost, gained, rest = c
    n = lost + gained + rest
    found = paired_difference(lost, gained, n)
    mcnemar = (lost - gained) / math.sqrt(lost + gained) if lost + gained else 0.0
    if abs(abs(mcnemar) - Z) > 1e-9:
        assert (found.low <= 0 <= found.high) == (abs(mcnemar) < Z)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.05, 0.05), (0.15, 0.02), (0.3, 0.1)])
def test_it_covers_the_truth_as_often_as_it_says(only_first, only_second):
    n, covered = 40, 0.0
    truth, rest = only_first - only_second, 1 - only_first - only_second
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            found = paired_difference(lost, gained, n)
            if found.low <= truth <= found.high:
                ways = math.comb(n, lost) * math.comb(n - lost, gained)
                covered += ways * only_first**lost * only_second**gained * rest ** (n - lost - gained)
    assert 0.93 <= covered <= 0.985
