"""The recipe for training from random weights: a function of the images and of the length of the run.

What they reach beside other programs is measured by `benchmarks/training.py`: docs/training-benchmark.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regnet_deploy.training.recipe import LR_BATCH, Recipe, steps_per_epoch

#: Epochs, unless there are so few images that these are fewer steps than STEPS.
EPOCHS, STEPS = 100, 2000
#: Fewest images -> batch size: few images need small batches for enough steps; large ones are faster.
BATCHES = ((100_000, 128), (20_000, 64), (0, 32))
#: Learning rate of a step of 32 images: that of smaller batches goes with their size, of larger ones with its root.
STEP_RATE, STEP_BATCH = 0.1, 32
#: Shares of the steps: for warm-up, and that of the window of the moving average.
WARMUP, AVERAGE = 0.1, 0.1
#: Fewest images that the run sees, in all epochs -> smallest area of a random crop; and of images with a direction, as
#: letters have, which small crops cut off. A short run needs easy images.
CROP_AREAS = ((100_000_000, 0.08), (20_000_000, 0.25), (100_000, 0.35), (0, 0.5))
ALIGNED_CROP_AREAS = ((100_000, 0.5), (0, 0.7))
WEIGHT_DECAY = 5e-5
#: Epochs after which a run of the default length ends if none of them was better. One that was asked for a length has
#: all of it: the last epochs, with the lowest rates, are often the best.
PATIENCE = 40
RETRIES = 3
#: From so many training images of the largest class for each of the smallest on, small classes are seen more often.
UNEQUAL = 10


def scratch_recipe(given: Mapping[str, Any], images: int, counts: Sequence[int] = ()) -> Recipe:
    """Return the recipe that trains random weights on so many images: the values of ``given``, and else the defaults.

    Args:
        given: values that the user gave, by their names in :class:`Recipe`.
        images: number of training images.
        counts: those of each class; none: they are taken to be equal.

    Raises:
        UsageError: a value is not possible.
    """
    named = {name: value for name, value in given.items() if value is not None}
    batch = min(named.get("batch_size", max(2, min(_of_images(BATCHES, images), images // 4))), images)
    of_epoch = steps_per_epoch(images, batch)
    warmup_epochs = named.pop("warmup_epochs", None)
    epochs = named.get("epochs", max(EPOCHS, -(-STEPS // of_epoch)))
    steps = named.get("steps", epochs * of_epoch)
    rate = STEP_RATE * (batch / STEP_BATCH) ** (0.5 if batch > STEP_BATCH else 1.0)
    pixels = named.get("pixel_probe", True)
    aligned = _of_images(ALIGNED_CROP_AREAS, steps * batch) if pixels and "crop_area" not in named else 0.0
    defaults: dict[str, Any] = {
        "batch_size": batch,
        "lr": float(f"{rate * LR_BATCH / batch:.3g}"),
        "weight_decay": WEIGHT_DECAY,
        "decay_norms": False,
        "warmup_steps": min(steps - 1, round(WARMUP * steps)) if warmup_epochs is None else warmup_epochs * of_epoch,
        "crop_area": _of_images(CROP_AREAS, steps * batch),
        "aligned_crop_area": aligned,
        "pixel_probe": pixels,
        "flip_probe": pixels and "flip" not in named,
        "precise_bn_images": 0,
        "ema_decay": round(max(0.0, 1 - 1 / max(1.0, AVERAGE * steps)), 6),
        "patience": 0 if named.keys() & {"epochs", "steps"} else max(PATIENCE, round(PATIENCE / EPOCHS * epochs)),
        "retries": RETRIES,
        "zero_gamma": True,
    }
    present = [count for count in counts if count]
    if present and max(present) >= UNEQUAL * min(present) and "class_weights" not in named:
        defaults["sampling"] = "square-root"
    if named.get("ema_window"):
        del defaults["ema_decay"]
    return Recipe(**{**defaults, **named, "epochs": -(-steps // of_epoch), "fine_tune": False})


def _of_images(table: tuple[tuple[int, Any], ...], images: int) -> Any:
    """Return the value of the first row whose number of images is not more than ``images``."""
    return next(value for fewest, value in table if images >= fewest)
