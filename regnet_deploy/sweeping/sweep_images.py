"""The images that all networks of a sweep are trained on, decoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT, ImageDataset, build_dataset
from regnet_deploy.images.dataset_summary import dataset_lines
from regnet_deploy.images.hold_out import ensure_shares
from regnet_deploy.images.image_check import cache_file, check_images, shared_cache
from regnet_deploy.images.listing import ImageListing, ensure_no_split_twice, ensure_several_classes, list_images
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.data_loader import (
    EvaluationDataset,
    ImageSubset,
    TrainingDataset,
    evaluation_dataset,
    training_dataset,
)
from regnet_deploy.training.recipe import Recipe


@dataclass(frozen=True)
class SweepImages:
    """The images of a sweep, ready for training.

    Attributes:
        training: random crops of the training images.
        validation: the validation images.
        preprocessing: input size and normalization.
        classes: number of classes.
        test: images to test the best epoch of each network on; None if that is not reported.
        test_digest: sha256 of them; empty likewise.
        start: weights that every training starts from, by name; those that are missing are random.
        unaugmented: the training images as they are evaluated, if a linear probe is to initialize the head.
    """

    training: TrainingDataset
    validation: EvaluationDataset
    preprocessing: Preprocessing
    classes: int
    test: EvaluationDataset | None = None
    test_digest: str = ""
    start: Mapping[str, Tensor] = field(default_factory=dict)
    unaugmented: EvaluationDataset | None = None


def list_folder(
    data: Path,
    val_split: float | None,
    test_split: float | None = None,
    *,
    test: bool = False,
    progress: Progress = NoProgress(),
) -> ImageListing:
    """List a folder or table of images without opening them.

    Args:
        data: the folder.
        val_split: share to hold out for validation; None is the default.
        test_split: share to hold out to test on; None is none.
        test: whether images of the folder to test on are wanted.
        progress: receives what takes long.

    Raises:
        DataError: the folder does not exist, or does not contain class folders.
        UsageError: a share is given, but the folder has such images of its own; or both leave nothing to train on.
    """
    ensure_shares(val_split, test_split)
    listing = list_images(data, test=test or test_split is not None, progress=progress)
    ensure_no_split_twice(listing, val_split, test_split)
    ensure_several_classes(listing)
    return listing


def check_folder(
    listing: ImageListing,
    val_split: float | None,
    seed: int,
    store: Path,
    progress: Progress,
    test_split: float | None = None,
) -> ImageDataset:
    """Check the images of a folder and split them; the results of the check are cached beside the store.

    Raises:
        DataError: the images cannot be used.
    """
    cache = cache_file(store.parent, listing.root)
    cache = cache.with_name(f".{cache.name}")  # shared by all sweeps in the folder
    checked = check_images(listing.source, cache, progress, also=[shared_cache(listing.root)])
    share = DEFAULT_VAL_SPLIT if val_split is None else val_split
    return build_dataset(listing, checked, val_split=share, test_split=test_split, seed=seed)


def load_images(
    folder: ImageDataset,
    recipe: Recipe,
    resolution: int,
    progress: Progress,
    *,
    channels: int = 3,
    test: bool = False,
    preprocessing: Preprocessing | None = None,
) -> SweepImages:
    """Report a checked folder, and open it at a resolution; the images are kept in memory if they fit.

    Args:
        folder: the images.
        recipe: how they are augmented.
        resolution: pixels.
        progress: receives what is to be said of them.
        channels: 3 for RGB, 1 for gray.
        test: whether images to test on, if there are some, are opened too.
        preprocessing: of the networks; None is the default one for ``resolution`` and ``channels``.
    """
    for line in dataset_lines(folder):
        progress.message(line)
    preprocessing = preprocessing or default_preprocessing(resolution, channels)
    training = training_dataset(folder.source, folder.train, recipe, preprocessing, progress)
    validation = evaluation_dataset(folder.source, folder.val, preprocessing, progress)
    tested = EvaluationDataset(ImageSubset(folder.source, folder.test), preprocessing) if test and folder.test else None
    digest = folder.test_digest if tested else ""
    return SweepImages(training, validation, preprocessing, len(folder.classes), tested, digest)
