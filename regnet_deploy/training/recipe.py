"""The training recipe: the hyperparameters that, with the dataset and the seed, determine the weights.

The defaults are those of the paper's final networks (arXiv 2003.13678, section 5) in the configuration of pycls.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types

#: Batch size that ``lr`` refers to.
LR_BATCH = 128
DEFAULT_BATCH = 128
DEFAULT_WARMUP_EPOCHS = 5
WARMUP_FACTOR = 0.1
MOMENTUM = 0.9
#: Fields that the JSON data of a recipe has only where they are not the default: earlier versions had none of them.
_ADDED = (
    "warmup_steps",
    "body_lr",
    "layer_decay",
    "frozen_bn",
    "probe",
    "flip_probe",
    "lr_probe",
    "ema_decay",
    "patience",
)


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9 under a half-period cosine with linear warm-up.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: images per step; None until :meth:`fitted`.
        lr: learning rate for a batch of 128 images; it is scaled with the batch size. With ``body_lr``, of the head.
        weight_decay: of every parameter, including batch norm and biases.
        warmup_epochs: epochs in which the learning rate rises from a tenth; None until fitted.
        warmup_steps: the same in steps; with it, the learning rate changes at every step. None: it changes once an
            epoch, and ``warmup_epochs`` holds.
        crop_area: smallest area of a random crop as a fraction of the image; 1 always takes the center crop.
        flip: mirror half of the training images.
        lighting: standard deviation of the color shift along ImageNet's principal components; 0 disables it. Gray
            images have none.
        label_smoothing: fraction of the target that is distributed over all classes.
        precise_bn_images: training images for the batch norm statistics before each evaluation; 0 uses the running
            averages.
        seed: of the initial weights, the order of the images and their augmentation.
        fine_tune: start from the weights of the bundle instead of random ones.
        body_lr: learning rate of the last stage, as a share of that of the head.
        layer_decay: learning rate of each stage, and of the stem, as a share of that of the stage after it.
        frozen_bn: batch norm uses the statistics of the weights that the run starts from, and does not change them.
        probe: a linear probe initializes the head, unless the bundle's weights have one for these classes; the network
            before its first epoch competes, as epoch 0, for the best.
        flip_probe: with ``probe`` and ``flip``, no image is mirrored if the network with its first head recognizes
            mirrored validation images clearly worse: they are other classes then, as text is, or new to its features.
        lr_probe: short trials decide whether the learning rate is ``lr``, a quarter of it, or four times as much.
        ema_decay: an exponential moving average of the weights, which keeps this share of itself at every step,
            competes with the weights after each epoch; 0: there is none.
        patience: the run ends after so many epochs without a better result; 0: it has all epochs.
    """

    epochs: int = 100
    batch_size: int | None = None
    lr: float = 0.1
    weight_decay: float = 5e-5
    warmup_epochs: int | None = None
    warmup_steps: int | None = None
    crop_area: float = 0.08
    flip: bool = True
    lighting: float = 0.1
    label_smoothing: float = 0.0
    precise_bn_images: int = 8192
    seed: int = 0
    fine_tune: bool = False
    body_lr: float = 1.0
    layer_decay: float = 1.0
    frozen_bn: bool = False
    probe: bool = False
    flip_probe: bool = False
    lr_probe: bool = False
    ema_decay: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: with the value and the allowed range.
        """
        check_field_types(self)
        if self.epochs < 1:
            raise UsageError(f"epochs must be 1 or more, got {self.epochs}")
        if self.batch_size is not None and self.batch_size < 2:
            raise UsageError(f"the batch size must be 2 or more for batch norm, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"the learning rate must be above 0, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"the weight decay must be 0 or more, got {self.weight_decay}")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(f"warm-up epochs must be 0 to {self.epochs - 1}, got {self.warmup_epochs}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise UsageError(f"warm-up steps must be 0 or more, got {self.warmup_steps}")
        if self.warmup_steps is not None and self.warmup_epochs:
            raise UsageError(
                f"the warm-up has {self.warmup_steps} steps or {self.warmup_epochs} epochs: set one of warmup_steps "
                "and warmup_epochs"
            )
        if not 0 < self.crop_area <= 1:
            raise UsageError(f"the crop area must be above 0 and at most 1, got {self.crop_area}")
        if not (math.isfinite(self.lighting) and self.lighting >= 0):
            raise UsageError(f"the lighting must be 0 or more, got {self.lighting}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"the label smoothing must be 0 or more and below 1, got {self.label_smoothing}")
        if self.precise_bn_images < 0:
            raise UsageError(f"the images for precise batch norm must be 0 or more, got {self.precise_bn_images}")
        if not (math.isfinite(self.body_lr) and 0 <= self.body_lr <= 1):
            raise UsageError(f"the share of the body's learning rate must be 0 to 1, got {self.body_lr}")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"the decay of the rate by layer must be above 0 and at most 1, got {self.layer_decay}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"the decay of the average must be 0 or more and below 1, got {self.ema_decay}")
        if self.flip_probe and not (self.probe and self.flip):
            raise UsageError("whether to mirror is tried with the linear probe: set probe and flip, or not flip_probe")
        if self.patience < 0:
            raise UsageError(f"the patience must be 0 or more epochs, got {self.patience}")
        if self.frozen_bn and self.precise_bn_images:
            raise UsageError(
                f"frozen batch norm has no statistics of {self.precise_bn_images} training images: set "
                "precise_bn_images to 0"
            )
        if (self.probe or self.frozen_bn) and not self.fine_tune:
            raise UsageError("a linear probe and frozen batch norm need trained weights: set fine_tune")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed must be 0 to 2^63 - 1, got {self.seed}")

    def fitted(self, images: int) -> Recipe:
        """Return the recipe with batch size and warm-up for this number of training images.

        The default batch size is at most a quarter of the images, so that an epoch has at least four steps; a requested
        one is at most all images, and the learning rate goes with the images that a step has. The default warm-up is
        the paper's 5 epochs, or a quarter of a run of fewer than 20 epochs.

        Raises:
            UsageError: the warm-up would have all steps of the run.
        """
        batch = min(self.batch_size, images) if self.batch_size else max(2, min(DEFAULT_BATCH, images // 4))
        if self.warmup_steps is not None:
            steps = self.epochs * steps_per_epoch(images, batch)
            if self.warmup_steps >= steps:
                raise UsageError(f"warm-up steps must be 0 to {steps - 1} in a run of {steps}, got {self.warmup_steps}")
            return replace(self, batch_size=batch, warmup_epochs=0)
        warmup = min(DEFAULT_WARMUP_EPOCHS, self.epochs // 4) if self.warmup_epochs is None else self.warmup_epochs
        return replace(self, batch_size=batch, warmup_epochs=warmup)

    def for_channels(self, channels: int) -> Recipe:
        """Return the recipe for images of 1 or 3 channels: gray ones have no colors to shift."""
        return self if channels == 3 else replace(self, lighting=0.0)

    def oversized_batch(self, images: int) -> str | None:
        """Return one line if the requested batch is larger than the number of training images, else None."""
        if self.batch_size is None or self.batch_size <= images:
            return None
        rate = "" if self.lr_probe else f", {self.lr * images / LR_BATCH:.4g}"
        return (
            f"--batch-size {self.batch_size} is more than the {images} training images: a step has {images}, and its "
            f"learning rate is that of {images} images{rate}"
        )

    @property
    def batch(self) -> int:
        """Batch size of a fitted recipe."""
        if self.batch_size is None:
            raise ValueError("the recipe is not fitted to a dataset")
        return self.batch_size

    @property
    def peak_rate(self) -> float:
        """Highest learning rate of the cosine, for the batch size."""
        return self.lr * self.batch / LR_BATCH

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Return the learning rate of step 0, 1, ... of epoch 0, 1, ..., where an epoch has so many ``steps``.

        It changes once per epoch, as in pycls, or with ``warmup_steps`` at every step.
        """
        if self.warmup_steps is None:
            return cosine_rate(self.peak_rate, epoch, self.epochs, self.warmup_epochs or 0)
        return cosine_rate(self.peak_rate, epoch * steps + step, self.epochs * steps, self.warmup_steps)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, including what is the same for every recipe."""
        every = "once an epoch" if self.warmup_steps is None else "at every step"
        unused = {name for name in _ADDED if getattr(self, name) == getattr(Recipe, name)}
        return {
            **{name: value for name, value in asdict(self).items() if name not in unused},
            "optimizer": "SGD",
            "momentum": MOMENTUM,
            "nesterov": True,
            "schedule": f"cosine, half a period, set {every}",
            "warmup_factor": WARMUP_FACTOR,
        }


def cosine_rate(peak: float, at: int, total: int, warmup: int) -> float:
    """Return the learning rate at 0, 1, ... of ``total``: half a cosine from ``peak``, with a linear warm-up."""
    rate = peak * 0.5 * (1 + math.cos(math.pi * at / total))
    if at < warmup:
        rate *= WARMUP_FACTOR + (1 - WARMUP_FACTOR) * at / warmup
    return rate


def steps_per_epoch(images: int, batch: int) -> int:
    """Return the number of steps of an epoch: the last, partial batch is skipped unless it is the only one."""
    return max(1, images // batch)
