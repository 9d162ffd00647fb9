"""Batches: one order for every run, whoever loads them, and nothing lost or shown twice."""

import dataclasses
import itertools
import math
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.images.dataset import ImageDataset, LabelledImage, build_dataset
from regnet_deploy.images.decode import Scaled, decode
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.training import data_loader, packed_images, stored_images
from regnet_deploy.training.augmentation import augment, epoch_order, random_box
from regnet_deploy.training.data_loader import (
    Batch,
    EvaluationDataset,
    ImageSubset,
    TrainingDataset,
    UnreadableImage,
    batches_from,
    epoch_batches,
    evaluation_dataset,
    load,
    number_batches,
    training_dataset,
)
from regnet_deploy.training.distributed import ProcessGroup
from regnet_deploy.training.packed_images import PackedImages
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_checks import SAMPLINGS
from regnet_deploy.training.stored_images import ImageStore

#: Loaders fork: not from a process with threads of pytest-xdist.
pytestmark = pytest.mark.alone

#: Python 3.12 and newer warn of every fork beside threads; PyTorch's loading processes are forked and use none.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def ignore(done: int, total: int) -> None:
    pass


def loaded(views: TrainingDataset, recipe: Recipe, workers: int = 0) -> list[Batch]:
    return list(load(views, batches_from(recipe, views.labels, 0, 0), workers, pin=False))


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.shifts, b.shifts) and torch.equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=60),
    st.integers(2, 20),
    st.integers(1, 4),
    st.sampled_from(SAMPLINGS),
    st.data(),
)
def test_what_is_left_of_a_run_is_its_end_wherever_it_stands(
    classes: list[int], size: int, epochs: int, sampling: str, draw
) -> None:
    recipe, labels = Recipe(epochs=epochs, batch_size=size, seed=5, sampling=sampling), np.array(classes)
    whole = list(batches_from(recipe, labels, 0, 0))
    steps = len(whole) // epochs
    epoch, step = draw.draw(st.integers(0, epochs - 1)), draw.draw(st.integers(0, steps))
    assert list(batches_from(recipe, labels, epoch, step)) == whole[epoch * steps + step :]


@given(st.integers(2, 200), st.integers(2, 50))
def test_an_epoch_shows_an_image_once_and_leaves_out_less_than_a_batch(images: int, size: int) -> None:
    batches = epoch_batches(Recipe(batch_size=size), 3, np.zeros(images, np.int64))
    numbers = [number for batch in batches for epoch, number in batch]
    assert {epoch for batch in batches for epoch, _ in batch} == {3}
    assert len(numbers) == len(set(numbers))
    if images >= size:
        assert {len(batch) for batch in batches} == {size}
        assert images - len(numbers) < size
    else:  # the partial batch is the only one
        assert len(numbers) == images


def test_a_balanced_epoch_shows_small_classes_again_each_time_as_another_view(views: TrainingDataset) -> None:
    few = TrainingDataset(ImageSubset(views.subset.source, views.subset.images[:12]), views.recipe, views.preprocessing)
    assert few.class_counts(4) == [10, 2, 0, 0]
    recipe = Recipe(batch_size=12, sampling="balanced", seed=1)
    (keys,) = epoch_batches(recipe, 2, few.labels)
    assert len(keys) == len(set(keys)) == 12
    assert sorted(key for key in keys if key[1] >= 10) == [
        (2, number, *again) for number in (10, 11) for again in ((), (1,), (2,))
    ]
    shown = [few[(2, 10, *again)].pixels for again in ((), (1,), (2,))]
    assert all((one != other).any() for one, other in itertools.combinations(shown, 2))
    assert (few[(2, 10, 1)].pixels == few[(2, 10, 1)].pixels).all()


def test_evaluation_takes_every_image_in_order() -> None:
    assert number_batches(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


@FORKS
@pytest.mark.parametrize("workers", [1, 2])
def test_loading_processes_change_nothing(views: TrainingDataset, recipe: Recipe, workers: int) -> None:
    assert equal(loaded(views, recipe, workers), loaded(views, recipe))


@FORKS
def test_a_batch_needs_no_shared_memory(views: TrainingDataset, recipe: Recipe) -> None:
    """A container has 64 MB of it; here a loading process may not write to files at all, and /dev/shm has files."""
    parent = os.getpid()

    class Limited(TrainingDataset):
        def __getitem__(self, key: tuple[int, int]) -> object:
            if os.getpid() != parent:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return super().__getitem__(key)

    limited = Limited(views.subset, views.recipe, views.preprocessing)
    assert equal(loaded(limited, recipe, workers=1), loaded(views, recipe))


@FORKS
def test_loading_processes_leave_signals_to_the_training(views: TrainingDataset, recipe: Recipe) -> None:
    iterator = load(views, batches_from(recipe, views.labels, 0, 0), 1, pin=False)
    batches = [next(iterator)]
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    batches += iterator
    assert equal(batches, loaded(views, recipe))


def test_processes_that_cannot_be_started_are_one_line(
    views: TrainingDataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(data_loader.DataLoader, "__iter__", refuse)
    with pytest.raises(DataError, match=r"cannot start 2 processes .*Function not implemented; give --workers 0"):
        loaded(views, recipe, workers=2)


def test_images_kept_in_memory_change_nothing_where_they_are_not_shrunk(
    folder: ImageDataset, views: TrainingDataset, recipe: Recipe, preprocessing: Preprocessing
) -> None:
    kept = training_dataset(folder.source, folder.train, recipe, preprocessing)
    assert kept.in_memory
    assert equal(loaded(kept, recipe), loaded(views, recipe))


def test_large_images_are_shrunk_in_memory_to_twice_the_view(
    folder: ImageDataset, recipe: Recipe, preprocessing: Preprocessing
) -> None:
    small = preprocessing.replace(resize=8, crop=8)
    kept = training_dataset(folder.source, folder.train, recipe, small).stored
    assert isinstance(kept, list)
    sizes = [image.size for image in kept if not isinstance(image, UnreadableImage)]
    originals = [(file.width, file.height) for file in folder.train]
    assert {min(size) for size, original in zip(sizes, originals, strict=True) if min(original) > 16} == {16}


@pytest.fixture
def photos(tmp_path: Path) -> ImageDataset:
    """JPEG files of several sizes, some turned by their EXIF data, that are many times as large as the view."""
    draw, root = np.random.default_rng(0), tmp_path / "photos"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            coarse = Image.fromarray(draw.integers(0, 256, (4, 3, 3), dtype=np.uint8))
            photo = coarse.resize((48 + 37 * i, 60 + 19 * i), Image.Resampling.BICUBIC)
            exif = Image.Exif()
            exif[0x0112] = 1 + i
            photo.save(root / name / f"{i}.jpg", quality=92, exif=exif)
    listing = list_images(root)
    return build_dataset(listing, check_images(listing.source))


@FORKS
@pytest.mark.parametrize("shrunk", [True, False])
def test_batches_are_the_same_to_the_bit_wherever_images_are_stored_and_whoever_loads_them(
    photos: ImageDataset,
    recipe: Recipe,
    preprocessing: Preprocessing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shrunk: bool,
) -> None:
    if not shrunk:
        monkeypatch.setattr(stored_images, "PACKED_BYTES", 1000)

    def opened(store: ImageStore) -> TrainingDataset:
        return training_dataset(photos.source, photos.train, recipe, preprocessing, store=store)

    decoded = opened(ImageStore(memory=False))
    assert decoded.stored is None
    wanted = loaded(decoded, recipe)
    for workers in (1, 2):
        assert equal(loaded(decoded, recipe, workers), wanted)
    if not shrunk:
        assert decoded.side is None
        return
    in_memory, packed = opened(ImageStore()), opened(ImageStore(False, tmp_path / "cache"))
    assert in_memory.in_memory
    assert isinstance(packed.stored, PackedImages)
    for dataset in (in_memory, packed):
        for workers in (0, 2):
            assert equal(loaded(dataset, recipe, workers), wanted)


@FORKS
def test_a_run_goes_on_with_the_same_batches_with_another_number_of_loading_processes(
    photos: ImageDataset, recipe: Recipe, preprocessing: Preprocessing
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=4)
    dataset = training_dataset(photos.source, photos.train, recipe, preprocessing, store=ImageStore(False))
    assert len(epoch_batches(recipe, 0, dataset.labels)) == 3
    wanted, parts = loaded(dataset, recipe), []
    for epoch, step, workers, taken in ((0, 0, 2, 1), (0, 1, 0, 3), (1, 1, 1, 5)):
        iterator = load(dataset, batches_from(recipe, dataset.labels, epoch, step), workers, pin=False)
        parts += [next(iterator) for _ in range(taken)]
        del iterator
    assert equal(parts, wanted)


def test_a_crop_of_a_large_photo_is_decoded_no_larger_than_needed_and_never_enlarged(
    photos: ImageDataset, recipe: Recipe, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales, sides = [], []

    def seen(image: Scaled, key: tuple[int, int], recipe: Recipe, preprocessing: Preprocessing) -> object:
        rng = np.random.default_rng((recipe.seed, 2, *key))
        left, top, right, bottom = image.box(*random_box(*image.size, recipe.crop_area, rng))
        scales.append(image.scale)
        sides.append(min(right - left, bottom - top))
        return augment(image, key, recipe, preprocessing)

    monkeypatch.setattr(data_loader, "augment", seen)
    monkeypatch.setattr(stored_images, "PACKED_BYTES", 1000)
    dataset = training_dataset(photos.source, photos.train, recipe, preprocessing)
    loaded(dataset, recipe)
    assert {2, 4} <= set(scales)
    reduced = [(scale, side) for scale, side in zip(scales, sides, strict=True) if scale > 1]
    assert min(side for _, side in reduced) >= preprocessing.crop
    assert all(side < 2.5 * preprocessing.crop for scale, side in reduced if scale < 8)  # the next scale was too small


@pytest.mark.parametrize("shrunk", [True, False])
def test_pixels_of_reduced_decoding_are_those_of_full_decoding_but_for_a_little(
    photos: ImageDataset,
    recipe: Recipe,
    preprocessing: Preprocessing,
    monkeypatch: pytest.MonkeyPatch,
    shrunk: bool,
) -> None:
    def views() -> np.ndarray:
        dataset = training_dataset(photos.source, photos.train, recipe, preprocessing, store=ImageStore(False))
        return np.concatenate([batch.pixels.numpy() for batch in loaded(dataset, recipe)]).astype(float)

    if not shrunk:
        monkeypatch.setattr(stored_images, "PACKED_BYTES", 1000)
    reduced = views()
    monkeypatch.setattr(data_loader, "decode_scaled", lambda data, enough, name, colours: whole(data, name, colours))
    full = views()
    assert (reduced != full).any()
    assert np.abs(reduced - full).mean() < 1.0  # of 255
    assert np.abs(reduced.mean((1, 2)) - full.mean((1, 2))).max() < 1.0


def whole(data: bytes, name: str, colours: str) -> Scaled:
    image = decode(data, name, colours=colours)
    return Scaled(image, image.size)


def test_where_no_folder_was_named_images_that_cannot_be_packed_are_decoded_every_time(
    photos: ImageDataset,
    recipe: Recipe,
    preprocessing: Preprocessing,
    tmp_path: Path,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(packed_images, "FREE_BYTES", 2**60)
    arguments = photos.source, photos.train, recipe, preprocessing, recorded_progress
    dataset = training_dataset(*arguments, ImageStore(True, tmp_path / "run"))
    assert dataset.stored is None
    assert "GB free, and the decoded images need" in recorded_progress.text
    assert "Images are now decoded in every epoch, to the same pixels" in recorded_progress.text
    with pytest.raises(DataError, match="GB free, and the decoded images need"):
        training_dataset(*arguments, ImageStore(False, tmp_path / "named", required=True))
    monkeypatch.setattr(data_loader, "available_memory", lambda: 1000)
    assert training_dataset(*arguments, ImageStore(True, tmp_path / "run")).stored is None
    assert "more than half of the memory; --cache DIR stores them" in recorded_progress.messages[-1]


def test_so_many_images_are_not_packed_even_if_a_folder_was_named(
    photos: ImageDataset,
    recipe: Recipe,
    preprocessing: Preprocessing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stored_images, "PACKED_BYTES", 1000)
    store = ImageStore(False, tmp_path / "named", required=True)
    with pytest.raises(DataError, match=r"take more than 0\.0 GB decoded.*omit --cache"):
        training_dataset(photos.source, photos.train, recipe, preprocessing, store=store)


def test_many_large_images_stay_in_their_files(
    folder: ImageDataset, recipe: Recipe, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 1000)
    assert training_dataset(folder.source, folder.train, recipe, preprocessing).stored is None
    assert evaluation_dataset(folder.source, folder.val, preprocessing).cached is None


@pytest.mark.parametrize("in_memory", [True, False])
def test_evaluation_sees_to_the_bit_what_the_server_sees(
    folder: ImageDataset, preprocessing: Preprocessing, in_memory: bool
) -> None:
    views = EvaluationDataset(ImageSubset(folder.source, folder.val), preprocessing)
    if in_memory:
        views = evaluation_dataset(folder.source, folder.val, preprocessing)
        assert views.cached is not None
    (batch,) = load(views, number_batches(len(folder.val), 100), 0, pin=False)
    for pixels, label, file in zip(batch.pixels, batch.labels, folder.val, strict=True):
        served = load_pixels((folder.source.root / folder.name(file)).read_bytes(), preprocessing)
        assert (pixels.numpy() == served).all()
        assert label == file.label
    assert batch.pixels.dtype == torch.uint8
    assert (batch.shifts == 0).all()


@FORKS
@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_are_gone_or_broken_are_named_and_the_rest_is_loaded(
    folder: ImageDataset, views: TrainingDataset, recipe: Recipe, workers: int
) -> None:
    gone, broken = folder.name(folder.train[3]), folder.name(folder.train[4])
    (folder.source.root / gone).unlink()
    (folder.source.root / broken).write_bytes(b"no image any more")
    recipe = dataclasses.replace(recipe, epochs=1, warmup_epochs=0, batch_size=30)
    (batch,) = loaded(views, recipe, workers)
    assert len(batch.labels) == len(batch.pixels) == 28
    reasons = {each.name: each.reason.split(" (")[0] for each in batch.unreadable}
    assert reasons == {
        gone: "cannot be read: No such file or directory",
        broken: "not an image in a format that is read",
    }


def test_a_batch_of_nothing_is_an_empty_batch(tmp_path: Path, recipe: Recipe, preprocessing: Preprocessing) -> None:
    images = [LabelledImage(i, 0, 9, 9) for i in range(2)]
    source = FolderSource(tmp_path, ("0.png", "1.png"))
    views = TrainingDataset(ImageSubset(source, images), recipe, preprocessing)
    (batch,) = load(views, [[(0, 0), (0, 1)]], 0, pin=False)
    assert len(batch.labels) == 0
    assert [each.name for each in batch.unreadable] == ["0.png", "1.png"]


def test_labels_go_with_their_images(folder: ImageDataset, views: TrainingDataset, recipe: Recipe) -> None:
    for batch in loaded(views, recipe):
        mean = batch.pixels.numpy().astype(np.float32).mean((1, 2))
        strongest = mean.argmax(1)  # red 0, green 1, blue 2; the classes are blue, green, red
        assert (2 - strongest == batch.labels.numpy()).all()


@pytest.mark.parametrize("in_memory", [True, False])
def test_gray_images_are_loaded_with_one_channel(
    folder: ImageDataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(stored_images, "MEMORY_BYTES", 1000)
    gray = default_preprocessing(16, 1)
    training = training_dataset(folder.source, folder.train, recipe, gray)
    assert training.in_memory == in_memory
    for batch in loaded(training, recipe):
        assert batch.pixels.shape[1:] == (16, 16, 1)
        assert batch.shifts.shape[1:] == (1,)
    validation = evaluation_dataset(folder.source, folder.val, gray)
    assert {validation[number].pixels.shape for number in range(len(validation))} == {(16, 16, 1)}


def ra_sampler(order: list[int], repetitions: int, replicas: int, rank: int) -> list[int]:
    """Return what ``RASampler`` of torchvision and DeiT gives a process, for an order of the images."""
    samples = math.ceil(len(order) * repetitions / replicas)
    total, selected = samples * replicas, len(order) // 256 * 256 // replicas
    indices = [number for number in order for _ in range(repetitions)]
    indices += indices[: total - len(indices)]
    return indices[rank:total:replicas][:selected]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("repetitions", [1, 3, 4])
def test_repeated_augmentation_shows_each_process_what_torchvisions_sampler_does(size: int, repetitions: int) -> None:
    recipe = Recipe(batch_size=64, repeated_augmentation=repetitions, seed=5).fitted(600)
    batches = epoch_batches(recipe, 2, np.zeros(600, np.int64))
    assert [len(batch) for batch in batches] == [64] * 9  # an epoch has as many steps as without it
    order = epoch_order(5, 2, 600).tolist()
    for rank in range(size):
        ours = [key[1] for batch in batches for key in ProcessGroup(rank=rank, size=size).share(batch)]
        wanted = ra_sampler(order, repetitions, size, rank)
        assert len(wanted) == 512 // size
        assert ours[: len(wanted)] == wanted


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_every_view_of_repeated_augmentation_is_another_one(sampling: str) -> None:
    labels = np.repeat(np.arange(2), (90, 10))
    recipe = Recipe(batch_size=100, repeated_augmentation=3, sampling=sampling).fitted(100)
    (keys,) = epoch_batches(recipe, 1, labels)
    assert len(set(keys)) == len(keys) == 100
    assert [key[1] for key in keys[:3]] == [keys[0][1]] * 3
    if sampling == "uniform":
        assert [(*key, 0)[2] for key in keys[:6]] == [0, 1, 2, 0, 1, 2]
        assert len({key[1] for key in keys}) == 34
    assert epoch_batches(recipe, 1, labels) == [keys]
    assert epoch_batches(recipe, 2, labels) != [keys]


def test_views_of_repeated_augmentation_differ_and_are_the_same_again(views: TrainingDataset, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, epochs=1, warmup_epochs=0, batch_size=4, repeated_augmentation=2)
    first, again = (next(iter(loaded(views, recipe))) for _ in "12")
    assert torch.equal(first.pixels, again.pixels)
    assert first.labels[0] == first.labels[1]
    assert not torch.equal(first.pixels[0], first.pixels[1])
