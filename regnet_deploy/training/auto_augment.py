"""TrivialAugment (wide, arXiv 2103.10158) and RandAugment (arXiv 1909.13719), as torchvision has them, with Pillow.

torchvision itself is not used: its wheels are each for one build of PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_checks import MAGNITUDES

if TYPE_CHECKING:
    from PIL.Image import Image


class Operation(NamedTuple):
    """An operation: its largest magnitude, and whether its sign is random. Without a magnitude it is None."""

    name: str
    largest: float | None = None
    signed: bool = False


#: Pixels of a side for which RandAugment's shifts are given: they are shares of the image.
_SHIFT = 150 / 331
_GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_COLOR = ("Brightness", "Color", "Contrast", "Sharpness")


def operations(recipe: Recipe, width: int, height: int) -> tuple[Operation, ...]:
    """Return the operations of the automatic augmentation of a recipe, for images of this size in pixels."""
    wide = recipe.auto_augment == "trivialaugment"
    geometry = (0.99, 0.99, 32.0, 32.0, 135.0) if wide else (0.3, 0.3, _SHIFT * width, _SHIFT * height, 30.0)
    return (
        Operation("Identity"),
        *(Operation(name, largest, True) for name, largest in zip(_GEOMETRY, geometry, strict=True)),
        *(Operation(name, 0.99 if wide else 0.9, True) for name in _COLOR),
        Operation("Posterize", 6.0 if wide else 4.0),
        Operation("Solarize", 255.0),
        Operation("AutoContrast"),
        Operation("Equalize"),
    )


def auto_augment(image: Image, recipe: Recipe, rng: np.random.Generator) -> Image:
    """Return an image after the random operations of the recipe: one of TrivialAugment, or those of RandAugment.

    Args:
        image: RGB or gray, at the size that the network gets.
        recipe: names the augmentation.
        rng: of the epoch and the image.
    """
    choices = operations(recipe, image.width, image.height)
    wide = recipe.auto_augment == "trivialaugment"
    for _ in range(1 if wide else recipe.randaugment_ops):
        operation = choices[int(rng.integers(len(choices)))]
        level = int(rng.integers(MAGNITUDES)) if wide else recipe.randaugment_magnitude
        sign = -1.0 if operation.signed and rng.random() < 0.5 else 1.0
        magnitude = sign * (operation.largest or 0.0) * level / (MAGNITUDES - 1)
        image = apply(image, operation.name, magnitude)
    return image


def apply(image: Image, name: str, magnitude: float) -> Image:
    """Return an image after one operation; what comes in from outside of it is black.

    Args:
        image: RGB or gray.
        name: of the operation.
        magnitude: shear as a tangent, shift in pixels, rotation in degrees, change of a color factor, bits that are
            lost, or 255 minus the lowest value that is inverted.
    """
    from PIL import ImageEnhance, ImageOps
    from PIL.Image import Resampling, Transform

    matrices = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -int(magnitude), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(magnitude)),
    }
    if name in matrices:
        return image.transform(image.size, Transform.AFFINE, matrices[name], Resampling.BILINEAR)
    if name == "Rotate":
        return image.rotate(magnitude, Resampling.BILINEAR)
    if name in _COLOR:
        changed: Image = getattr(ImageEnhance, name)(image).enhance(1 + magnitude)
        return changed
    if name == "Posterize":
        return ImageOps.posterize(image, 8 - round(magnitude))
    if name == "Solarize":
        return ImageOps.solarize(image, 255 - magnitude)  # type: ignore[arg-type]  # compares values with it
    if name == "AutoContrast":
        return ImageOps.autocontrast(image)
    return ImageOps.equalize(image) if name == "Equalize" else image
