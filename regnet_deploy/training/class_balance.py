"""Balance of the classes: how often the images of each are seen in an epoch, and what they count in the loss.

With p = 0 (as the folder is), 0.5 (``square-root``) and 1 (``balanced``), a class of n images gets a share of an epoch
in proportion to n^(1 - p), or its images get a weight in proportion to n^-p: over many epochs both are the same. If all
classes have equally many images, nothing changes, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.training.recipe import Recipe

#: Names of a recipe -> p.
_POWERS = {"none": 0.0, "uniform": 0.0, "square-root": 0.5, "balanced": 1.0}
#: Purpose of the random numbers, beside those of :mod:`regnet_deploy.training.augmentation`.
_RANKS = 5


def class_weights(recipe: Recipe, counts: Sequence[int]) -> NDArray[np.float32] | None:
    """Return the weight of the images of each class in the loss, ``(classes,)``; None if all are 1.

    Their mean over all images is 1. ``balanced`` weights are those of scikit-learn. A class without images has 0.

    Args:
        recipe: names the weights.
        counts: training images of each class.

    Raises:
        ValueError: the recipe has class weights, and there are no counts.
    """
    if recipe.class_weights != "none" and not len(counts):
        raise ValueError("class weights need the number of training images of each class")
    images, power = np.asarray(counts, np.float64), _POWERS[recipe.class_weights]
    if not power or _equal(images):
        return None
    shares = _shares(images, power)
    weights: NDArray[np.float32] = (shares * images.sum() / np.maximum(images, 1)).astype(np.float32)
    return weights


def uses_in_epoch(recipe: Recipe, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return how often an epoch shows each image, ``(images,)``; None if it shows each once.

    The sum is the number of images. After every number of epochs, a class has been shown as often as its share says,
    and the images of a class equally often, to one or two.

    Args:
        recipe: names the sampling, and has the seed.
        epoch: 0, 1, ...
        labels: class of each image, ``(images,)``.
    """
    power = _POWERS[recipe.sampling]
    counts = np.bincount(labels)
    if not power or _equal(counts):
        return None
    # Images of a class take turns, in a random order that is the same for the whole run.
    drawn = np.random.default_rng((recipe.seed, _RANKS)).permutation(len(labels))
    order = np.lexsort((drawn, labels))
    turns = np.empty_like(order)
    turns[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    ends = np.cumsum(_shares(counts.astype(np.float64), power)) * len(labels)

    def uses_before(epochs: int) -> NDArray[np.int64]:
        shown: NDArray[np.int64] = np.diff(np.rint(ends * epochs), prepend=0).astype(np.int64)
        uses: NDArray[np.int64] = (shown[labels] - turns + counts[labels] - 1) // counts[labels]
        return uses

    return uses_before(epoch + 1) - uses_before(epoch)


def _shares(counts: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """Return the share of each class, ``(classes,)``, in proportion to ``counts ** (1 - power)``."""
    parts: NDArray[np.float64] = np.where(counts > 0, counts ** (1 - power), 0.0)
    parts /= parts.sum()
    return parts


def _equal(counts: NDArray[np.float64] | NDArray[np.int64]) -> bool:
    """Tell whether all classes that have images have equally many."""
    return len(np.unique(counts[counts > 0])) <= 1
