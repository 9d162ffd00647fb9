"""Augmentation of training images: a function of the seed, the epoch and the number of the image alone.

Where an epoch shows an image several times, it is also a function of how often it has shown it before. Therefore a run
does not depend on the number of loading processes, or on where it was interrupted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.decode import Scaled
from regnet_deploy.images.preprocessing import pixels_of
from regnet_deploy.training.auto_augment import auto_augment
from regnet_deploy.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

ASPECT = (3 / 4, 4 / 3)
TRIES = 10
#: Share of the area, and height by width, of an erased rectangle.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
#: Principal components of the colors of ImageNet's training images, RGB in 0..1 (as in fb.resnet.torch and pycls).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]  # rows: R, G, B
)
#: Purpose of the random numbers; separates the streams of one seed.
_ORDER, _VIEW, _FLIP = 1, 2, 4  # 3 mixes batches, 5 samples by class

Box = tuple[float, float, float, float]


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """Return the order of the images in an epoch: a permutation, ``(images,)``."""
    order: NDArray[np.int64] = np.random.default_rng((seed, _ORDER, epoch)).permutation(images)
    return order


def augment(
    image: Image | Scaled, key: tuple[int, ...], recipe: Recipe, preprocessing: Preprocessing
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a random view of an image, and a random color shift, which a gray image does not have.

    The view is a random crop, changed by the automatic augmentation of the recipe, mirrored, and with a rectangle
    erased.

    Args:
        image: decoded, upright, perhaps at a reduced size.
        key: epoch and number of the image, and if the epoch has shown it before, how often.
        recipe: the augmentation and the seed.
        preprocessing: size of the crop, and normalization.

    Returns:
        Pixels, ``(side, side, channels)``, and the color shift to add after normalization, ``(channels,)``.
    """
    source = image if isinstance(image, Scaled) else Scaled(image, image.size)
    rng = _view_stream(key, recipe)
    box = source.box(*random_box(*source.size, recipe.crop_area, rng))
    side = recipe.side(key[0], preprocessing.crop)
    view = source.image.resize((side, side), _bilinear(), box=box)
    if recipe.auto_augment != "none":
        view = auto_augment(view, recipe, rng)
    pixels = pixels_of(view)
    if recipe.flip and (_turn(key, recipe) if recipe.alternate_flip else rng.random() < 0.5):
        pixels = pixels[:, ::-1]
    if recipe.erasing and rng.random() < recipe.erasing:
        pixels = erased(pixels, preprocessing, rng)
    if preprocessing.channels == 1:
        return np.ascontiguousarray(pixels), np.zeros(1, np.float32)
    shift = _EIGENVECTORS @ (rng.normal(0.0, 1.0, 3) * recipe.lighting * _EIGENVALUES) / np.asarray(preprocessing.std)
    return np.ascontiguousarray(pixels), shift.astype(np.float32)


def erased(pixels: NDArray[np.uint8], preprocessing: Preprocessing, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return pixels ``(h, w, channels)`` with a random rectangle in the mean color, 0 after normalization.

    Random erasing (arXiv 1708.04896): 2 to 33 % of the area, sides in a ratio of 0.3 to 3.3. If ten random rectangles
    do not fit, nothing is erased.
    """
    height, width = pixels.shape[:2]
    for _ in range(TRIES):
        area = rng.uniform(*ERASED_AREA) * height * width
        ratio = math.exp(rng.uniform(*np.log(ERASED_RATIO)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            changed = pixels.copy()
            changed[top : top + h, left : left + w] = np.rint(np.multiply(preprocessing.mean, 255)).astype(np.uint8)
            return changed
    return pixels


def enough_to_crop(
    width: int, height: int, key: tuple[int, ...], recipe: Recipe, preprocessing: Preprocessing
) -> tuple[int, int]:
    """Return the width and height of an image at which its crop (see :func:`augment`) has as many pixels as it needs.

    At a smaller size, the crop would have to be enlarged.
    """
    left, top, right, bottom = random_box(width, height, recipe.crop_area, _view_stream(key, recipe))
    side = recipe.side(key[0], preprocessing.crop)
    return math.ceil(width * side / (right - left)), math.ceil(height * side / (bottom - top))


def _turn(key: tuple[int, ...], recipe: Recipe) -> bool:
    """Tell whether an image is mirrored in an epoch, if it is in every other one: half of the images in the first.

    If an epoch shows it several times, it is mirrored in every other one of them.
    """
    epoch, number, *again = key
    return bool((np.random.default_rng((recipe.seed, _FLIP, number)).integers(2) + epoch + sum(again)) % 2)


def _view_stream(key: tuple[int, ...], recipe: Recipe) -> np.random.Generator:
    """Return the random numbers of a view, of which the first are those of its box."""
    return np.random.default_rng((recipe.seed, _VIEW, *key))


def random_box(width: int, height: int, smallest: float, rng: np.random.Generator) -> Box:
    """Return left, top, right, bottom of a crop of random area and aspect ratio, in fractions of pixels.

    If ten random crops do not fit into the image, it is the largest centered square.
    """
    for _ in range(TRIES):
        area = rng.uniform(smallest, 1.0) * width * height
        aspect = rng.uniform(*ASPECT)
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if rng.random() < 0.5:
            w, h = h, w
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _bilinear() -> int:
    from PIL.Image import Resampling

    return Resampling.BILINEAR
