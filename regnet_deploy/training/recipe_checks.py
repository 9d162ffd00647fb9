"""What the values of a recipe may be: ranges of single values, and values that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from regnet_deploy.errors import did_you_mean

if TYPE_CHECKING:
    from regnet_deploy.training.recipe import Recipe

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "step")
LOSSES = ("cross-entropy", "bce")
CLASS_WEIGHTS = ("none", "square-root", "balanced")
SAMPLINGS = ("uniform", "square-root", "balanced")
AUTO_AUGMENTS = ("none", "trivialaugment", "randaugment")
#: Bins of the magnitudes of RandAugment; the highest magnitude is one less.
MAGNITUDES = 31
#: Highest learning rate of AdamW for 128 images: a step changes each weight by about the rate itself.
_ADAMW_LR = 0.05


#: What ultralytics, timm and PyTorch call values of a recipe.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "lr0": "lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "opt": "optimizer",
    "smoothing": "label_smoothing",
    "reprob": "erasing",
    "model_ema_decay": "ema_decay",
    "aa": "auto_augment",
    "hflip": "flip",
    "fliplr": "flip",
    "class_weight": "class_weights",
    "cls_pw": "class_weights",
    "sampler": "sampling",
    "drop_path": "stochastic_depth",
    "drop_path_rate": "stochastic_depth",
    "stochastic_depth_prob": "stochastic_depth",
    "aug_repeats": "repeated_augmentation",
    "ra_reps": "repeated_augmentation",
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean lr?)`` for a value that a recipe does not have, or an empty string."""
    other = _OTHER_NAMES.get(name)
    return f" (did you mean {other}?)" if other in (known := set(known)) else did_you_mean(name, sorted(known))


class Problem(NamedTuple):
    """What is wrong with a recipe, in words, and the names of its values that this is about."""

    names: tuple[str, ...]
    message: str


class _Range(NamedTuple):
    """What a value is, which values are allowed, and whether a value is one of these."""

    what: str
    allowed: str
    holds: Callable[[Any], bool]


def _one_of(what: str, values: tuple[str, ...]) -> _Range:
    return _Range(what, " or ".join((", ".join(values[:-1]), values[-1])), lambda value: value in values)


def _share(what: str) -> _Range:
    return _Range(what, "0 to 1", lambda value: 0 <= value <= 1)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is larger than every float
        return False


def _at_least(what: str, lowest: int, unit: str = "") -> _Range:
    return _Range(what, f"{lowest} or more{unit}", lambda value: lowest <= value and _is_finite(value))


def _side(what: str) -> _Range:
    return _Range(what, "0.25 to 1", lambda value: 0.25 <= value <= 1)


_BELOW_1 = "0 or more and below 1"
_ABOVE_0 = "above 0 and at most 1"
_RANGES = {
    "epochs": _at_least("epochs", 1),
    "batch_size": _at_least("the batch size", 2, " for batch norm"),
    "optimizer": _one_of("the optimizer", OPTIMIZERS),
    "lr": _Range("the learning rate", "above 0", lambda value: value > 0 and _is_finite(value)),
    "weight_decay": _at_least("the weight decay", 0),
    "schedule": _one_of("the schedule", SCHEDULES),
    "step_epochs": _at_least("the epochs between two steps of the schedule", 1),
    "step_factor": _Range("the factor of a step of the schedule", "above 0 and below 1", lambda value: 0 < value < 1),
    "warmup_epochs": _at_least("warm-up epochs", 0),
    "warmup_steps": _at_least("warm-up steps", 0),
    "warmup_factor": _Range("the factor at the start of the warm-up", _ABOVE_0, lambda value: 0 < value <= 1),
    "crop_area": _Range("the crop area", _ABOVE_0, lambda value: 0 < value <= 1),
    "aligned_crop_area": _share("the crop area of aligned images"),
    "lighting": _at_least("the lighting", 0),
    "auto_augment": _one_of("the automatic augmentation", AUTO_AUGMENTS),
    "randaugment_ops": _Range("the operations of RandAugment", "1 to 14", lambda value: 1 <= value <= 14),
    "randaugment_magnitude": _Range(
        "the magnitude of RandAugment", f"0 to {MAGNITUDES - 1}", lambda value: 0 <= value < MAGNITUDES
    ),
    "erasing": _share("the share of images with an erased part"),
    "mixup": _at_least("the alpha of mixup", 0),
    "cutmix": _at_least("the alpha of CutMix", 0),
    "train_side": _side("the side of the training images"),
    "first_side": _side("the side of the first training images"),
    "loss": _one_of("the loss", LOSSES),
    "label_smoothing": _Range("the label smoothing", _BELOW_1, lambda value: 0 <= value < 1),
    "precise_bn_images": _at_least("the images for precise batch norm", 0),
    "body_lr": _share("the share of the body's learning rate"),
    "layer_decay": _Range("the decay of the rate by layer", _ABOVE_0, lambda value: 0 < value <= 1),
    "ema_decay": _Range("the decay of the average", _BELOW_1, lambda value: 0 <= value < 1),
    "ema_window": _share("the window of the average"),
    "patience": _at_least("the patience", 0, " epochs"),
    "retries": _at_least("the retries", 0),
    "minutes": _Range("the minutes", "above 0", lambda value: value > 0 and _is_finite(value)),
    "steps": _at_least("steps", 1),
    "class_weights": _one_of("the class weights", CLASS_WEIGHTS),
    "sampling": _one_of("the sampling", SAMPLINGS),
    "repeated_augmentation": _Range("the views of repeated augmentation", "1 to 100", lambda value: 1 <= value <= 100),
    "stochastic_depth": _Range("the stochastic depth", _BELOW_1, lambda value: 0 <= value < 1),
    "seed": _Range("the seed", "0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
}


def range_problems(values: dict[str, Any]) -> list[Problem]:
    """Return the values, of the right types, that are out of their ranges; None is in every range."""
    problems = []
    for name, value in values.items():
        if name in _RANGES and value is not None and not _RANGES[name].holds(value):
            problems.append(
                Problem((name,), f"{_RANGES[name].what} must be {_RANGES[name].allowed}, got {value!s:.60}")
            )
    return problems


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Yield what contradicts itself in a recipe whose values are in their ranges."""
    if recipe.warmup_epochs is not None and recipe.warmup_epochs >= recipe.epochs:
        allowed = f"warm-up epochs must be 0 to {recipe.epochs - 1}, got {recipe.warmup_epochs}"
        yield Problem(("warmup_epochs", "epochs"), allowed)
    if recipe.warmup_steps is not None and recipe.warmup_epochs:
        yield Problem(
            ("warmup_steps", "warmup_epochs"),
            f"the warm-up has {recipe.warmup_steps} steps or {recipe.warmup_epochs} epochs: set one of warmup_steps "
            "and warmup_epochs",
        )
    most = _ADAMW_LR / 4 if recipe.lr_probe else _ADAMW_LR  # trials have up to four times the rate
    if recipe.optimizer == "adamw" and recipe.lr > most:
        yield Problem(
            ("optimizer", "lr", "lr_probe") if recipe.lr_probe else ("optimizer", "lr"),
            f"the learning rate of AdamW must be {most:g} or less{' with lr_probe' if recipe.lr_probe else ''}, got "
            f"{recipe.lr:g}: a step changes each weight by about the rate; 0.001 is usual",
        )
    if recipe.first_side is not None and recipe.first_side > recipe.train_side:
        yield Problem(
            ("first_side", "train_side"),
            f"images grow from first_side {recipe.first_side:g} to train_side {recipe.train_side:g}: the first must "
            "not be the larger one",
        )
    if recipe.alternate_flip and not recipe.flip:
        yield Problem(
            ("alternate_flip", "flip"), "alternate_flip says when images are mirrored: set flip, or not alternate_flip"
        )
    if recipe.class_weights != "none" and recipe.sampling != "uniform":
        yield Problem(
            ("class_weights", "sampling"),
            f"{recipe.class_weights} class_weights and {recipe.sampling} sampling both make up for few images of a "
            "class: set one of them",
        )
    if recipe.ema_window and recipe.ema_decay:
        yield Problem(
            ("ema_window", "ema_decay"),
            f"the average has a window of {recipe.ema_window:g} of the run or a decay of {recipe.ema_decay:g}: set one "
            "of ema_window and ema_decay",
        )
    if recipe.flip_probe and not (recipe.flip and (recipe.probe or recipe.pixel_probe)):
        yield Problem(
            ("flip_probe", "probe", "pixel_probe", "flip"),
            "whether to mirror is tried with a linear probe: set flip and probe or pixel_probe, or not flip_probe",
        )
    if recipe.aligned_crop_area and not recipe.pixel_probe:
        yield Problem(
            ("aligned_crop_area", "pixel_probe"),
            "whether images are aligned is tried with the classifier of pixels: set pixel_probe, or not "
            "aligned_crop_area",
        )
    if recipe.pixel_probe and recipe.fine_tune:
        yield Problem(
            ("pixel_probe", "fine_tune"),
            "the baseline of fine-tuning is the linear probe of features: set probe, or not pixel_probe",
        )
    if recipe.frozen_bn and recipe.precise_bn_images:
        yield Problem(
            ("frozen_bn", "precise_bn_images"),
            f"frozen batch norm has no statistics of {recipe.precise_bn_images} training images: set "
            "precise_bn_images to 0",
        )
    if (recipe.probe or recipe.frozen_bn) and not recipe.fine_tune:
        yield Problem(
            ("probe", "frozen_bn", "fine_tune"),
            "a linear probe and frozen batch norm need trained weights: set fine_tune",
        )
