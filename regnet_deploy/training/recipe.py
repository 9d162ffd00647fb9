"""The training recipe: the hyperparameters that, with the dataset and the seed, determine the weights.

The defaults are those of the paper's final networks (arXiv 2003.13678, section 5) in the configuration of pycls.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types
from regnet_deploy.training.recipe_checks import contradictions, range_problems

#: Batch size that ``lr`` refers to.
LR_BATCH = 128
DEFAULT_BATCH = 128
DEFAULT_WARMUP_EPOCHS = 5
WARMUP_FACTOR = 0.1
MOMENTUM = 0.9
#: Share of the epochs in which images grow, and what a smaller side is a multiple of.
_GROWTH = 0.8
_SIDES = 8
#: Values of AdamW beside rate and weight decay.
BETAS = (0.9, 0.999)
#: Names that the JSON data of a recipe has beside its fields; they follow from the optimizer.
OPTIMIZER_CONSTANTS = ("momentum", "nesterov", "betas")
#: Fields that the JSON data of a recipe has only where they are not the default: earlier versions had none of them.
_ADDED = (
    "decay_norms",
    "per_step",
    "step_epochs",
    "step_factor",
    "warmup_steps",
    "alternate_flip",
    "auto_augment",
    "randaugment_ops",
    "randaugment_magnitude",
    "erasing",
    "mixup",
    "cutmix",
    "train_side",
    "first_side",
    "loss",
    "ema_window",
    "body_lr",
    "layer_decay",
    "frozen_bn",
    "probe",
    "flip_probe",
    "lr_probe",
    "ema_decay",
    "patience",
    "pixel_probe",
    "aligned_crop_area",
    "retries",
    "zero_gamma",
    "minutes",
    "steps",
    "class_weights",
    "sampling",
    "stochastic_depth",
    "repeated_augmentation",
)
#: Fields that the JSON data has in words, for every recipe.
_IN_WORDS = ("optimizer", "schedule", "warmup_factor")


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9 under a half-period cosine with linear warm-up, or what its values say.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: images per step; None until :meth:`fitted`.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw`` (betas 0.9 and 0.999).
        lr: learning rate for a batch of 128 images; it is scaled with the batch size. With ``body_lr``, of the head.
        weight_decay: of every parameter, with ``decay_norms`` including batch norm and biases.
        decay_norms: whether the weight decay is also of batch norm and biases.
        schedule: of the learning rate after the warm-up: ``cosine`` (half a period), ``linear`` (to 0) or ``step``
            (times ``step_factor`` after each ``step_epochs``).
        per_step: the learning rate changes at every step, not once an epoch.
        step_epochs: epochs between two steps of the schedule ``step``.
        step_factor: factor of the learning rate at each of them.
        warmup_epochs: epochs in which the learning rate rises from ``warmup_factor``; None until fitted.
        warmup_steps: the same in steps; with it, the learning rate changes at every step. None: ``warmup_epochs``
            holds.
        warmup_factor: share of the learning rate at the start of the warm-up.
        crop_area: smallest area of a random crop as a fraction of the image; 1 always takes the center crop.
        flip: mirror half of the training images.
        alternate_flip: with ``flip``, each image is mirrored in every other epoch, half of them in the first, and
            not at random.
        lighting: standard deviation of the color shift along ImageNet's principal components; 0 disables it. Gray
            images have none.
        auto_augment: ``trivialaugment`` (its wide form: one random operation of random magnitude an image),
            ``randaugment`` or ``none``.
        randaugment_ops: random operations of RandAugment an image.
        randaugment_magnitude: their magnitude, 0 to 30.
        erasing: share of the images of which a random rectangle is erased.
        mixup: alpha of mixup, which averages pairs of images of a batch: of Beta(alpha, alpha) is the share of one;
            0: none.
        cutmix: alpha of CutMix, which puts a rectangle of one image into another, likewise. With both, half of the
            batches have one and half the other.
        train_side: side of the training images, as a share of the side that the network is evaluated and served with.
        first_side: the same in the first epoch; it grows evenly to ``train_side`` in the first 80 % of the epochs.
            None: it is ``train_side`` in all epochs.
        loss: ``cross-entropy``, or ``bce``: binary cross-entropy, summed over the classes.
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
        ema_window: share of the steps of the run that such an average extends over; :meth:`fitted` sets ``ema_decay``
            by it.
        patience: the run ends after so many epochs without a better result; 0: it has all epochs.
        pixel_probe: a logistic regression on small pixels is the baseline; with ``flip_probe`` it decides whether
            images are mirrored.
        aligned_crop_area: with ``pixel_probe``, takes the place of ``crop_area`` if the classifier recognizes mirrored
            images clearly worse: what they show has its place and direction, and must not be cut off; 0: it does not.
        retries: how often a run that diverges, or learns nothing, goes back to its best weights, or to the first ones,
            and continues with a quarter of the learning rate.
        zero_gamma: the last batch norm of each block starts with a scale of 0, so that blocks begin as the identity.
        minutes: time that the epochs and steps were fitted to; None: they were given, or follow from the images.
        steps: steps of the run, of which the last epoch has as many as are left; None: all steps of its epochs.
        class_weights: of the images in the loss: ``none``, ``balanced`` (in proportion to 1 / n, where n is the number
            of training images of the class) or ``square-root`` (to the root of that); their mean over all images is 1.
        sampling: which images an epoch has: ``uniform`` (each once), ``balanced`` (equally many of each class) or
            ``square-root`` (of each class in proportion to the root of n).
        stochastic_depth: share of the images for which the last residual block is left out in training; it rises
            evenly over the blocks from 0 for the first one.
        repeated_augmentation: views of an image that follow each other in an epoch, each augmented in its own way. An
            epoch has as many steps as before, so with n views it has one of n images.
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
    optimizer: str = "sgd"
    decay_norms: bool = True
    schedule: str = "cosine"
    per_step: bool = False
    step_epochs: int = 30
    step_factor: float = 0.1
    warmup_factor: float = WARMUP_FACTOR
    auto_augment: str = "none"
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    loss: str = "cross-entropy"
    alternate_flip: bool = False
    train_side: float = 1.0
    first_side: float | None = None
    ema_window: float = 0.0
    pixel_probe: bool = False
    aligned_crop_area: float = 0.0
    retries: int = 0
    zero_gamma: bool = False
    minutes: float | None = None
    steps: int | None = None
    class_weights: str = "none"
    sampling: str = "uniform"
    stochastic_depth: float = 0.0
    repeated_augmentation: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: with every value that is not allowed, and what is.
        """
        check_field_types(self)
        problems = range_problems(vars(self)) or list(contradictions(self))
        if problems:
            raise UsageError("; ".join(problem.message for problem in problems))

    def fitted(self, images: int) -> Recipe:
        """Return the recipe with batch size and warm-up for this number of training images.

        The default batch size is at most a quarter of the images, so that an epoch has at least four steps; a requested
        one is at most all images, and the learning rate goes with the images that a step has. The default warm-up is
        the paper's 5 epochs, or a quarter of a run of fewer than 20 epochs.

        Raises:
            UsageError: the warm-up would have all steps of the run.
        """
        batch = min(self.batch_size, images) if self.batch_size else max(2, min(DEFAULT_BATCH, images // 4))
        if self.steps is not None:
            epochs = math.ceil(self.steps / steps_per_epoch(images, batch))
            if epochs != self.epochs:
                return replace(self, epochs=epochs).fitted(images)
        steps, average = self.total_steps(steps_per_epoch(images, batch)), self.ema_decay
        if self.ema_window:
            average = round(max(0.0, 1 - 1 / (self.ema_window * steps)), 6)
        fitted = replace(self, batch_size=batch, ema_decay=average, ema_window=0.0)
        if self.warmup_steps is not None:
            if self.warmup_steps >= steps:
                raise UsageError(f"warm-up steps must be 0 to {steps - 1} in a run of {steps}, got {self.warmup_steps}")
            return replace(fitted, warmup_epochs=0)
        warmup = min(DEFAULT_WARMUP_EPOCHS, self.epochs // 4) if self.warmup_epochs is None else self.warmup_epochs
        return replace(fitted, warmup_epochs=warmup)

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
    def balances_classes(self) -> bool:
        """Whether it makes up for classes with few images."""
        return self.class_weights != "none" or self.sampling != "uniform"

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

    def side(self, epoch: int, side: int) -> int:
        """Return the side in pixels of the training images of epoch 0, 1, ...; the network is used with ``side``.

        A smaller side is a multiple of 8.
        """
        share = self.train_side
        if self.first_side is not None and self.epochs > 1:
            grown = min(1.0, epoch / (_GROWTH * (self.epochs - 1)))
            share = self.first_side + (self.train_side - self.first_side) * grown
        return side if share == 1 else max(_SIDES, _SIDES * round(share * side / _SIDES))

    @property
    def changes_at_steps(self) -> bool:
        """Whether the learning rate changes at every step, not once an epoch."""
        return self.per_step or self.warmup_steps is not None

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Return the learning rate of step 0, 1, ... of epoch 0, 1, ..., where an epoch has so many ``steps``.

        It changes once per epoch, as in pycls, or at every step.
        """
        if not self.changes_at_steps:
            step, steps = 0, 1
        at, warmup = epoch * steps + step, (self.warmup_epochs or 0) * steps
        if self.warmup_steps is not None:
            warmup = self.warmup_steps
        if self.schedule == "cosine":
            return cosine_rate(self.peak_rate, at, self.total_steps(steps), warmup, self.warmup_factor)
        if self.schedule == "linear":
            rate = self.peak_rate * (1 - at / self.total_steps(steps))
        else:
            rate = self.peak_rate * self.step_factor ** (epoch // self.step_epochs)
        return rate * _warmup_share(at, warmup, self.warmup_factor)

    def total_steps(self, per_epoch: int) -> int:
        """Return the steps of a run whose epochs have so many: the last epoch may have fewer."""
        return self.epochs * per_epoch if self.steps is None else min(self.steps, self.epochs * per_epoch)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data, including what is the same for every recipe."""
        unused = {name for name in _ADDED if getattr(self, name) == getattr(Recipe, name)} | set(_IN_WORDS)
        sgd = self.optimizer == "sgd"
        optimizer = {"momentum": MOMENTUM, "nesterov": True} if sgd else {"betas": list(BETAS)}
        shape = {
            "cosine": "cosine, half a period",
            "linear": "linear, to 0",
            "step": f"step, times {self.step_factor:g} every {self.step_epochs} epochs",
        }
        return {
            **{name: value for name, value in asdict(self).items() if name not in unused},
            "optimizer": "SGD" if sgd else "AdamW",
            **optimizer,
            "schedule": f"{shape[self.schedule]}, set {'at every step' if self.changes_at_steps else 'once an epoch'}",
            "warmup_factor": self.warmup_factor,
        }


def cosine_rate(peak: float, at: int, total: int, warmup: int, factor: float = WARMUP_FACTOR) -> float:
    """Return the learning rate at 0, 1, ... of ``total``: half a cosine from ``peak``, with a linear warm-up.

    The warm-up starts at a share ``factor`` of the rate.
    """
    return peak * 0.5 * (1 + math.cos(math.pi * at / total)) * _warmup_share(at, warmup, factor)


def _warmup_share(at: int, warmup: int, factor: float) -> float:
    """Return the share of the learning rate at 0, 1, ... of a warm-up, and 1 after it."""
    return factor + (1 - factor) * at / warmup if at < warmup else 1.0


def steps_per_epoch(images: int, batch: int) -> int:
    """Return the number of steps of an epoch: the last, partial batch is skipped unless it is the only one."""
    return max(1, images // batch)


def for_aligned_images(recipe: Recipe) -> Recipe:
    """Return the recipe for images that a classifier recognizes clearly worse if they are mirrored."""
    return replace(
        recipe,
        flip=recipe.flip and not recipe.flip_probe,
        flip_probe=False,
        alternate_flip=recipe.alternate_flip and not recipe.flip_probe,
        crop_area=recipe.aligned_crop_area or recipe.crop_area,
        aligned_crop_area=0.0,
    )
