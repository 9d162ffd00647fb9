"""Records of a training."""

from __future__ import annotations

import math
from typing import Any

from regnet_deploy.bundle.record import Record, default


class UnseenImages(Record, frozen=True, kw_only=True):
    """The images to test on, which no choice saw: neither weights nor epoch nor anything else depends on them.

    Attributes:
        images: number of images.
        split: where they come from, in words.
        held_out: whether they were held out of the training images; else they have a folder of their own.
        digest: sha256 of their content.
        by_class: images of each class, in the order of the labels.
        remarks: why a choice before this training may have seen them, a sentence each.
    """

    images: int
    split: str
    held_out: bool
    digest: str
    by_class: tuple[int, ...]
    remarks: tuple[str, ...] = ()


class TrainingData(Record, frozen=True, kw_only=True):
    """The images of a training.

    Attributes:
        folder: name of the image folder.
        classes: number of classes.
        train_images: number of training images.
        val_images: number of validation images.
        split: where the validation images come from, in words.
        digest: sha256 of the content of all images to train on and validate with.
        rejected: path -> reason, of files that are not usable images.
        unreadable: path -> reason, of files that could no longer be read while training.
        in_memory: whether the decoded images were kept in memory.
        train_by_class: training images of each class, in the order of the labels; empty in older bundles.
        val_by_class: validation images of each class, likewise.
        findings: what is wrong with the images, a sentence each.
        test: the images to test on; None if there are none.
        decoder: name and version of what decoded them; None in older bundles, which decoded every JPEG at full size.
        stored_side: shorter side to which larger training images were shrunk before they were cropped, pixels; None if
            they were not, and in older bundles, which shrunk those in memory to twice the input of the network.
    """

    folder: str
    classes: int
    train_images: int
    val_images: int
    split: str
    digest: str
    rejected: dict[str, str]
    unreadable: dict[str, str] = default({})
    in_memory: bool = default(False)
    train_by_class: tuple[int, ...] = ()
    val_by_class: tuple[int, ...] = ()
    findings: tuple[str, ...] = ()
    test: UnseenImages | None = None
    decoder: str | None = None
    stored_side: int | None = None


class Execution(Record, frozen=True):
    """How a training step is executed.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast; ``fp16`` with scaling of the loss.
        channels_last: whether activations and weights are NHWC in memory.
        compiled: whether the forward pass goes through torch.compile.
        processes: processes that share each step, at the end of the run; None is one.
        sync_bn: True if batch norm in training has the statistics of the images of all processes, None if each process
            has those of its own.
        micro_batch: most images that a process takes through the network at a time; None is its share of a step.
    """

    device: str
    precision: str = default("fp32")
    channels_last: bool = default(False)
    compiled: bool = default(False)
    processes: int | None = None
    sync_bn: bool | None = None
    micro_batch: int | None = None

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        shared = f" in {self.processes} processes" if self.processes else ""
        norm = ", batch norm over all of them" if self.sync_bn else ""
        parts = f", {self.micro_batch} images at a time" if self.micro_batch else ""
        compiled = ", compiled" if self.compiled else ""
        return f"{self.precision}, {layout}{compiled} on {self.device}{shared}{norm}{parts}"


class Autotune(Record, frozen=True, kw_only=True):
    """How training steps are executed, and why.

    Attributes:
        execution: what was chosen.
        step_ms: of bundles of earlier versions, which chose by a trial: median ms of a step of each execution.
        reason: in words.
        threads: CPU threads.
    """

    execution: Execution
    step_ms: dict[str, float]
    reason: str
    threads: int | None = default(None)


#: With a smaller share of waiting, steps take the next batch at once.
WAITING = 0.05


class Epoch(Record, frozen=True, kw_only=True):
    """Metrics of one epoch; top-1 values are shares.

    Those of the validation images are of the weights after the epoch, or if ``averaged`` is True, of their moving
    average.

    Attributes:
        images_per_s: training images per second, with waiting for them.
        loaded_images_per_s: images per second that the loading processes prepare; None in older bundles.
        step_images_per_s: images per second that training steps use without waiting; None likewise.
        waiting: share of the time of the steps in which they waited for images; None likewise.
        val_class_top1: mean over the classes of their top-1 on the validation images; None if the classes have equally
            many, for which it is ``val_top1``, and in older bundles.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_images: int
    images_per_s: float
    seconds: float
    averaged: bool | None = None
    loaded_images_per_s: float | None = None
    step_images_per_s: float | None = None
    waiting: float | None = None
    val_class_top1: float | None = None

    @property
    def speed(self) -> str:
        """Images per second, how fast images are loaded and steps are, and which of the two waits for the other."""
        speed = f"{self.images_per_s:,.0f} images/s"
        if self.loaded_images_per_s is None or self.step_images_per_s is None or self.waiting is None:
            return speed
        limit = f"waits for images {self.waiting:.0%} of the time" if self.waiting >= WAITING else "is the limit"
        loaded, used = f"{self.loaded_images_per_s:,.0f}", f"{self.step_images_per_s:,.0f}"
        return f"{speed} (loading alone {loaded}, the network alone {used}: the network {limit})"


class BestEpoch(Record, frozen=True, kw_only=True):
    """The epoch whose weights the bundle has; 0 is the network of a fine-tuning before its first step.

    Attributes:
        epoch: its number, from 1.
        val_top1: share of the validation images that these weights classify right.
        val_loss: their mean cross-entropy on them.
        val_images: number of validation images.
        averaged: True if they are the moving average of the weights after this epoch, else None.
    """

    epoch: int
    val_top1: float
    val_loss: float
    val_images: int
    averaged: bool | None = None

    @property
    def name(self) -> str:
        """``epoch 3``, or ``epoch 3, averaged``; :attr:`Training.best_name` also says what epoch 0 is."""
        return f"epoch {self.epoch}, averaged" if self.averaged else f"epoch {self.epoch}"


class UnseenAccuracy(Record, frozen=True, kw_only=True):
    """The accuracy of the chosen weights on the images to test on, measured once, after every choice.

    Attributes:
        top1: share of the images that are classified right.
        low: lower end of its 95 % interval (Wilson).
        high: upper end.
        images: number of images that could be read.
    """

    top1: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.top1:.2%} of {self.images:,} test images right (95 % interval {self.low:.2%} to {self.high:.2%})"


#: Largest share of the validation images that a probe may recognize less if they are mirrored.
MIRROR_LOSS = 0.05


class LinearProbe(Record, frozen=True, kw_only=True):
    """A linear classifier of the features of the weights that a fine-tuning started from, which do not change.

    Attributes:
        val_top1: share of the validation images that it classified right.
        val_loss: its mean cross-entropy on them.
        val_images: number of validation images.
        train_images: training images that it was fitted to.
        l2: weight of the squared norm of its weights, for features of deviation 1; None if it was not fitted, because
            the bundle had a head of the same classes, which was evaluated instead.
        seconds: time, with that of the features.
        mirrored_top1: share of the mirrored validation images that it classified right; None if it was not measured.
    """

    val_top1: float
    val_loss: float
    val_images: int
    train_images: int
    l2: float | None
    seconds: float
    mirrored_top1: float | None = None

    @property
    def name(self) -> str:
        """``the linear probe``, or what was evaluated in its place because no head was fitted."""
        return "the network before fine-tuning" if self.l2 is None else "the linear probe"

    @property
    def mirror_safe(self) -> bool:
        """Whether mirrored images were recognized about as well: at most 5 % of the images, or one, less."""
        if self.mirrored_top1 is None:
            return True
        lost = round((self.val_top1 - self.mirrored_top1) * self.val_images)
        return lost <= max(1, MIRROR_LOSS * self.val_images)


class PixelBaseline(Record, frozen=True, kw_only=True):
    """A logistic regression on small pixels, fitted before a training from random weights.

    Attributes:
        val_top1: share of the validation images that it classified right.
        val_images: number of validation images.
        train_images: training images that it was fitted to.
        side: width and height to which images were averaged, pixels.
        tested: images that it was tested on as they are and mirrored: those for validation, and by fits to one half of
            the training images those of the other.
        right: how many of them it classified right.
        mirrored_right: how many if they were mirrored.
        right_once: how many in one of both forms only.
        seconds: time, with that of reading the images.
    """

    val_top1: float
    val_images: int
    train_images: int
    side: int
    tested: int
    right: int
    mirrored_right: int
    right_once: int
    seconds: float

    @property
    def mirror_safe(self) -> bool:
        """Whether mirrored images were recognized about as often.

        They were not if a tenth fewer were, and by three standard deviations of McNemar's test: of the images that are
        recognized in one form only, as many should be in either.
        """
        lost = self.right - self.mirrored_right
        return not (lost > 0.1 * self.right and lost > 3 * math.sqrt(self.right_once))


class RateTrial(Record, frozen=True, kw_only=True):
    """A short training with one learning rate, and what it reached.

    Attributes:
        lr: rate for a batch of 128 images.
        val_loss: mean cross-entropy on the validation images; None if the loss was not finite.
        val_top1: share of them that was classified right; None likewise.
    """

    lr: float
    val_loss: float | None
    val_top1: float | None


class LearningRateProbe(Record, frozen=True, kw_only=True):
    """Trials of learning rates before a training, all from the weights that it starts from.

    Attributes:
        lr: the rate that was chosen, for a batch of 128 images.
        steps: of each trial.
        trials: in the order in which they were made.
        seconds: time of all of them.
    """

    lr: float
    steps: int
    trials: tuple[RateTrial, ...]
    seconds: float

    def __str__(self) -> str:
        """Return it in words."""
        losses = ", ".join(
            f"{trial.lr:g}: {'diverged' if trial.val_loss is None else f'{trial.val_loss:.3f}'}"
            for trial in self.trials
        )
        steps = f"{self.steps:,} step{'s' if self.steps > 1 else ''}"
        kept = "; no other is clearly lower" if self._is_not_the_lowest else ""
        return f"{self.lr:g} for 128 images: val losses after {steps} are {losses}{kept}"

    @property
    def _is_not_the_lowest(self) -> bool:
        """Whether another trial had a lower loss than that of the chosen rate."""
        losses = {trial.lr: trial.val_loss for trial in self.trials if trial.val_loss is not None}
        return self.lr in losses and min(losses.values()) < losses[self.lr]


class Retry(Record, frozen=True, kw_only=True):
    """A return to earlier weights with a lower learning rate, because the run diverged or learned nothing.

    Attributes:
        epoch: the epoch that was under way, from 1.
        lr: rate from then on, for a batch of 128 images.
        reason: in words.
    """

    epoch: int
    lr: float
    reason: str


class Lineage(Record, frozen=True, kw_only=True):
    """What the training started from.

    Attributes:
        start: in words.
        start_sha256: of the weights that it started from; None for random weights.
        versions: of the libraries.
    """

    start: str
    start_sha256: str | None
    versions: dict[str, str]


class Training(Record, frozen=True, kw_only=True):
    """How the weights were trained.

    Attributes:
        recipe: as the version that trained them wrote it.
        recipe_name: of a shipped recipe, or of the file that the recipe was in; None if it has no name.
        data: the images.
        seed: of the recipe.
        device: name of the device.
        execution: of the steps.
        history: metrics by epoch.
        stopped: whether the user ended it before its last epoch.
        early: True if it ended before its last epoch because no more epoch was better, else None.
        pixels: the logistic regression on small pixels; None if there was none.
        retries: where it went back to earlier weights and a lower learning rate.
        best: the epoch of the weights.
        seconds: in all.
        lineage: what it started from.
        probe: the linear probe of a fine-tuning; None if there was none.
        test: accuracy on the images to test on; None if there are none, or if it was not measured.
        lr_probe: the trials of the learning rate; None if there were none.
    """

    recipe: dict[str, Any]
    data: TrainingData
    seed: int
    device: str
    execution: Autotune
    history: tuple[Epoch, ...]
    stopped: bool = default(False)
    best: BestEpoch
    seconds: float
    lineage: Lineage
    probe: LinearProbe | None = None
    test: UnseenAccuracy | None = None
    lr_probe: LearningRateProbe | None = None
    early: bool | None = None
    pixels: PixelBaseline | None = None
    retries: tuple[Retry, ...] | None = None
    recipe_name: str | None = None

    @property
    def best_name(self) -> str:
        """``epoch 3``, or epoch 0 and what it is."""
        return f"epoch 0, {self.probe.name}" if self.probe and not self.best.epoch else self.best.name
