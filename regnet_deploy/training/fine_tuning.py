"""Whether a run starts from the weights of the bundle, and the recipe that follows from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.training.auto_recipe import RETRIES, scratch_recipe
from regnet_deploy.training.recipe import Recipe, steps_per_epoch
from regnet_deploy.training.recipe_checks import suggestion

#: Learning rate for a batch of 128 images, the same for all layers: the linear probe has trained the head already.
LR = 0.02
#: Smallest area of a random crop.
CROP_AREA = 0.35
#: Largest batch size.
BATCH = 32
#: Below this batch size, and with few images, the statistics of batch norm stay those of the weights that the run
#: starts from: the probe is fitted to features that they make, and with others its accuracy is lost in the first steps.
SMALLEST_NORM_BATCH = 16
#: Steps of a run on few images (BiT's rule); the number of images above which they grow with its power.
STEPS = 500
_FEW_IMAGES, _POWER = 2000, 0.8
_FEWEST_EPOCHS = 3
#: Shares of the steps: for warm-up, and that of the window of the moving average.
WARMUP = 0.1
AVERAGE = 0.3
#: Share of the epochs after which a run ends if none of them was better, and the fewest.
PATIENCE = 0.4
_FEWEST_WAITED = 5


def recipe_of(given: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these values, and else the defaults for random weights.

    Raises:
        UsageError: a name is not that of a value of a recipe, or a value is not possible.
    """
    known = {field.name for field in fields(Recipe)}
    unknown = [f"{name}{suggestion(name, known)}" for name in sorted(set(given) - known)]
    if unknown:
        raise UsageError(f"a recipe has no {', '.join(unknown)}: see regnet_deploy.Recipe for its values")
    return Recipe(**given)


def starting_recipe(
    given: Recipe | Mapping[str, Any], bundle: Bundle, classes: tuple[str, ...], counts: Sequence[int]
) -> Recipe:
    """Return the recipe of a run, not fitted yet.

    The weights of the bundle are fine-tuned if they are imported, if they are of other classes than the images, or if
    they were fine-tuned before. ``fine_tune`` in ``given`` decides otherwise.

    Args:
        given: a complete recipe, which is returned as it is; or the values that are not to be the defaults.
        bundle: whose network is trained.
        classes: of the images.
        counts: number of training images of each class.
    """
    if isinstance(given, Recipe):
        return given
    wanted = given.get("fine_tune")
    if wanted or (wanted is None and is_transfer(bundle, classes)):
        return fine_tuning_recipe(given, sum(counts))
    recipe_of(given)  # a wrong name is reported
    return scratch_recipe(given, sum(counts), counts)


def is_transfer(bundle: Bundle, classes: tuple[str, ...]) -> bool:
    """Tell whether the bundle has weights that are to be fine-tuned for these classes rather than trained anew."""
    manifest = bundle.manifest
    if not bundle.is_trained:
        return False
    fine_tuned = manifest.training is not None and bool(manifest.training.recipe.get("probe"))
    return manifest.imported is not None or fine_tuned or manifest.labels != classes


def fine_tuning_recipe(given: Mapping[str, Any], images: int) -> Recipe:
    """Return the recipe that fine-tunes weights on so many images: the values of ``given``, and else the defaults.

    Batches have up to 32 images. The number of epochs is that of about 500 steps, or on n > 2,000 images of
    500 (n / 2000)^0.8 steps. The learning rate changes at every step, and short trials choose it unless it is given.
    """
    named = {name: value for name, value in given.items() if value is not None}
    batch = min(named.get("batch_size", max(2, min(BATCH, images // 4))), images)
    of_epoch = steps_per_epoch(images, batch)
    wanted = STEPS * max(1.0, images / _FEW_IMAGES) ** _POWER
    warmup = named.pop("warmup_epochs", None)
    epochs = named.get("epochs", max(_FEWEST_EPOCHS, (warmup or 0) + 1, round(wanted / of_epoch)))
    steps = named.get("steps", epochs * of_epoch)
    epochs = -(-steps // of_epoch)
    small = batch < SMALLEST_NORM_BATCH or images <= _FEW_IMAGES
    frozen = named.get("frozen_bn", small and "precise_bn_images" not in named)
    defaults: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch,
        "lr": LR,
        "warmup_steps": round(WARMUP * steps) if warmup is None else warmup * of_epoch,
        "crop_area": CROP_AREA,
        "frozen_bn": frozen,
        "probe": True,
        "flip_probe": "flip" not in named and named.get("probe", True),
        "lr_probe": "lr" not in named,
        "ema_decay": round(max(0.0, 1 - 1 / (AVERAGE * steps)), 6),
        "retries": RETRIES,
        "patience": max(_FEWEST_WAITED, round(PATIENCE * epochs)),
    }
    if frozen:
        defaults["precise_bn_images"] = 0
    if named.get("ema_window"):
        del defaults["ema_decay"]
    return recipe_of({**defaults, **named, "epochs": epochs, "fine_tune": True})
