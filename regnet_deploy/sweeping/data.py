"""The images that all networks of a sweep learn from, decoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.check import check_images
from regnet_deploy.images.folder import DEFAULT_VAL_SPLIT, ImageFolder, assemble, list_images
from regnet_deploy.images.preprocess import Preprocessing, default_preprocessing
from regnet_deploy.sweeping.reporter import Reporter
from regnet_deploy.training.data import EvaluationViews, RandomViews, open_evaluation, open_training
from regnet_deploy.training.recipe import Recipe


@dataclass(frozen=True)
class SweepImages:
    """Images in the form in which networks see them.

    Attributes:
        training: random views of the training images.
        validation: evaluation views of the validation images.
        preprocessing: how large the views are, and their normalisation.
        classes: number of classes.
    """

    training: RandomViews
    validation: EvaluationViews
    preprocessing: Preprocessing
    classes: int


def check_folder(data: Path, val_split: float | None, seed: int, memory: Path, reporter: Reporter) -> ImageFolder:
    """List, check and split a folder of images; ``memory`` is the file in which the check is remembered.

    Raises:
        DataError: the images cannot be used.
        UsageError: a share to hold out, and a folder with validation images of its own.
    """
    listing = list_images(data)
    if val_split is not None and listing.val is not None:
        raise UsageError(f"{data} has validation images of its own: leave --val-split out, or give a folder without")
    if len(listing.train) < 2:
        raise DataError(f"{data} has one class folder, {next(iter(listing.train))}: a classifier needs two or more")
    checked = check_images(
        listing.root, listing.paths, memory, lambda done, total: reporter.advance("checking images", done, total)
    )
    share = DEFAULT_VAL_SPLIT if val_split is None else val_split
    return assemble(listing, checked, val_split=share, seed=seed)


def load_images(folder: ImageFolder, recipe: Recipe, resolution: int, reporter: Reporter) -> SweepImages:
    """Open a checked folder at a resolution; images are kept in memory where they fit."""

    def advance(done: int, total: int) -> None:
        reporter.advance("loading images", done, total)

    preprocessing = default_preprocessing(resolution)
    training = open_training(folder.root, folder.train, recipe, preprocessing, advance)
    validation = open_evaluation(folder.root, folder.val, preprocessing, advance)
    return SweepImages(training, validation, preprocessing, len(folder.classes))
