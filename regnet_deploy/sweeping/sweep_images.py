"""The images that all networks of a sweep learn from, decoded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT, ImageDataset, ImageListing, build_dataset, list_images
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.preprocessing import Preprocessing, default_preprocessing
from regnet_deploy.sweeping.reporter import Reporter
from regnet_deploy.training.data_loader import EvaluationDataset, TrainingDataset, evaluation_dataset, training_dataset
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import image_check_cache


@dataclass(frozen=True)
class SweepImages:
    """Images in the form in which networks see them.

    Attributes:
        training: random views of the training images.
        validation: evaluation views of the validation images.
        preprocessing: how large the views are, and their normalisation.
        classes: number of classes.
    """

    training: TrainingDataset
    validation: EvaluationDataset
    preprocessing: Preprocessing
    classes: int


def list_folder(data: Path, val_split: float | None) -> ImageListing:
    """List a folder of images; nothing is opened yet.

    Raises:
        DataError: there is no such folder, or its layout is not that of classes.
        UsageError: a share to hold out, and a folder with validation images of its own.
    """
    listing = list_images(data)
    if val_split is not None and listing.val is not None:
        raise UsageError(f"{data} has validation images of its own: leave --val-split out, or give a folder without")
    if len(listing.train) < 2:
        raise DataError(f"{data} has one class folder, {next(iter(listing.train))}: a classifier needs two or more")
    return replace(listing, root=listing.root.resolve())  # the workers of a cluster may start in another folder


def check_folder(
    listing: ImageListing, val_split: float | None, seed: int, beside: Path, reporter: Reporter
) -> ImageDataset:
    """Check and split a folder of images; what the check said is remembered in the folder of ``beside``.

    Raises:
        DataError: the images cannot be used.
    """
    memory = image_check_cache(beside.parent, listing.root)
    memory = memory.with_name(f".{memory.name}")  # of all sweeps that lie there
    checked = check_images(
        listing.root, listing.paths, memory, lambda done, total: reporter.advance("checking images", done, total)
    )
    share = DEFAULT_VAL_SPLIT if val_split is None else val_split
    return build_dataset(listing, checked, val_split=share, seed=seed)


def load_images(folder: ImageDataset, recipe: Recipe, resolution: int, reporter: Reporter) -> SweepImages:
    """Open a checked folder at a resolution; images are kept in memory where they fit."""

    def advance(done: int, total: int) -> None:
        reporter.advance("loading images", done, total)

    preprocessing = default_preprocessing(resolution)
    training = training_dataset(folder.root, folder.train, recipe, preprocessing, advance)
    validation = evaluation_dataset(folder.root, folder.val, preprocessing, advance)
    return SweepImages(training, validation, preprocessing, len(folder.classes))
