"""The recipe: everything that decides, with the data and the seed, what the weights become.

The defaults are those of the paper's final networks (arXiv 2003.13678, section 5) as pycls writes them down.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from regnet_deploy.errors import UsageError

#: Images for which ``lr`` is stated.
LR_BATCH = 128
DEFAULT_BATCH = 128
DEFAULT_WARMUP_EPOCHS = 5
WARMUP_FACTOR = 0.1
MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9 under a half-period cosine with linear warm-up.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; None until :meth:`fitted` to the data.
        lr: learning rate for a batch of 128 images; it is scaled with the batch.
        weight_decay: of every parameter, batch norm and biases included.
        warmup_epochs: epochs in which the learning rate rises from a tenth; None until fitted.
        crop_area: smallest share of the image's area that a training crop shows; 1 shows the centre as it is.
        flip: mirror half of the training images.
        lighting: standard deviation of the colour shift along ImageNet's principal components; 0 for none.
        label_smoothing: share of the target that goes to all classes alike.
        precise_bn_images: training images from which batch norm's statistics are computed before each evaluation;
            0 keeps the running averages.
        seed: of the first weights, the order of the images and their augmentation.
        fine_tune: start from the bundle's weights, not from the seed's.
    """

    epochs: int = 100
    batch_size: int | None = None
    lr: float = 0.1
    weight_decay: float = 5e-5
    warmup_epochs: int | None = None
    crop_area: float = 0.08
    flip: bool = True
    lighting: float = 0.1
    label_smoothing: float = 0.0
    precise_bn_images: int = 8192
    seed: int = 0
    fine_tune: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            UsageError: with the value and what is allowed.
        """
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
        if not 0 < self.crop_area <= 1:
            raise UsageError(f"the crop area must be above 0 and at most 1, got {self.crop_area}")
        if not (math.isfinite(self.lighting) and self.lighting >= 0):
            raise UsageError(f"the lighting must be 0 or more, got {self.lighting}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"the label smoothing must be 0 or more and below 1, got {self.label_smoothing}")
        if self.precise_bn_images < 0 or self.seed < 0:
            raise UsageError("the seed and the images for precise batch norm must be 0 or more")

    def fitted(self, images: int) -> Recipe:
        """Return the recipe with batch size and warm-up decided for so many training images.

        A batch is never more than a quarter of them, so that an epoch has four steps at least; the warm-up is the
        paper's 5 epochs, or a quarter of a run that is shorter than 20.
        """
        batch = self.batch_size or max(2, min(DEFAULT_BATCH, images // 4))
        warmup = min(DEFAULT_WARMUP_EPOCHS, self.epochs // 4) if self.warmup_epochs is None else self.warmup_epochs
        return replace(self, batch_size=batch, warmup_epochs=warmup)

    @property
    def batch(self) -> int:
        """Batch size of a fitted recipe."""
        if self.batch_size is None:
            raise ValueError("the recipe has not been fitted to its data")
        return self.batch_size

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of epoch 0, 1, ...: set once an epoch, as in pycls."""
        rate = self.lr * self.batch / LR_BATCH * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.warmup_epochs and epoch < self.warmup_epochs:
            rate *= WARMUP_FACTOR + (1 - WARMUP_FACTOR) * epoch / self.warmup_epochs
        return rate

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, with what is the same for every recipe."""
        return {
            **asdict(self),
            "optimizer": "SGD",
            "momentum": MOMENTUM,
            "nesterov": True,
            "schedule": "cosine, half a period, set once an epoch",
            "warmup_factor": WARMUP_FACTOR,
        }
