"""Augmentation of whole batches on the device, mixup and CutMix: a function of the seed, the epoch and the step alone.

Each image is mixed with the one before it in the batch, whose order is random in every epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from regnet_deploy.training.recipe import Recipe

#: Purpose of the random numbers; those of :mod:`regnet_deploy.training.augmentation` are 1 and 2.
_MIX = 3


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed.

    Attributes:
        share: of each image and its label; the rest is of its neighbor, the image ``distance`` before it.
        box: left, top, right, bottom of the rectangle that is of the neighbor, in pixels; None averages the images.
        distance: from each image to its neighbor: with repeated augmentation, to one that is another image.
    """

    share: float
    box: tuple[int, int, int, int] | None = None
    distance: int = 1

    def neighbors(self, values: Tensor) -> Tensor:
        """Return for each image what its neighbor has, ``(n, ...)``; of few images that is the one before it."""
        # So far, or further, may lead around a small part of a batch to the image itself, which would not be mixed.
        return values.roll(self.distance if self.distance < len(values) else 1, 0)

    def images(self, images: Tensor) -> Tensor:
        """Return mixed images, ``(n, channels, h, w)``."""
        neighbors = self.neighbors(images)
        if self.box is None:
            return neighbors.mul_(1 - self.share).add_(images, alpha=self.share)
        left, top, right, bottom = self.box
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = neighbors[..., top:bottom, left:right]
        return mixed


def draw_mix(recipe: Recipe, at: tuple[int, int], width: int, height: int) -> Mix | None:
    """Return how the batch of an epoch and step, counted from 0, is mixed; None if the recipe mixes no images.

    CutMix's rectangle has the sides of the image times the root of the neighbor's share, and a random center; what is
    outside of the image is cut off, and counts in no share.

    Args:
        recipe: with alpha of mixup and CutMix, and the seed.
        at: epoch and step.
        width: of the images, pixels.
        height: of the images, pixels.
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    rng = np.random.default_rng((recipe.seed, _MIX, *at))
    cut = bool(recipe.cutmix) and (not recipe.mixup or rng.random() < 0.5)
    alpha = recipe.cutmix if cut else recipe.mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share, distance=recipe.repeated_augmentation)
    x, y, half = int(rng.integers(width)), int(rng.integers(height)), 0.5 * math.sqrt(1 - share)
    half_width, half_height = int(half * width), int(half * height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    share = 1 - (right - left) * (bottom - top) / (width * height)
    return Mix(share, (left, top, right, bottom), recipe.repeated_augmentation)
