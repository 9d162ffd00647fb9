"""What a run says of itself before its first epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regnet_deploy.bundle.training import Epoch, LearningRateProbe, LinearProbe, PixelBaseline, Retry
from regnet_deploy.images.dataset_summary import dataset_lines
from regnet_deploy.progress import Progress
from regnet_deploy.training.checkpoint import Checkpoint, RunState
from regnet_deploy.training.fine_tuning import is_transfer
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_identity import RunIdentity, seen_before, validated_before

#: Minutes from which on a run that nobody gave a time is called long.
LONG_MIN = 10


def describe_start(identity: RunIdentity, progress: Progress) -> None:
    """Report the dataset, and what will be removed from the bundle."""
    dataset, classes_before = identity.dataset, identity.bundle.architecture.classes
    for line in (*dataset_lines(dataset), *validated_before(identity), *seen_before(identity)):
        progress.message(line)
    _describe_weights(identity, progress)
    if classes_before != len(dataset.classes):
        progress.message(f"the network gets {len(dataset.classes)} outputs instead of {classes_before}")
    manifest = identity.bundle.manifest
    removed = sorted({*manifest.variants, *(["profile"] if manifest.profile else [])})
    if removed:
        progress.message(
            "these were made with the earlier weights, and are removed at the end of the training: "
            f"{', '.join(removed)}"
        )


def describe_recipe(identity: RunIdentity, recipe: Recipe, progress: Progress) -> None:
    """Report the fitted recipe; ``recipe`` has the values that the user gave."""
    fitted, dataset = identity.recipe, identity.dataset
    oversized = replace(fitted, batch_size=recipe.batch_size).oversized_batch(len(dataset.train))
    if oversized:
        progress.message(oversized)
    small = recipe.batch_size is None and fitted.batch == len(dataset.train) // 4
    warmup = f"{fitted.warmup_epochs} for warm-up"
    if fitted.warmup_steps is not None:
        warmup = f"{fitted.warmup_steps} step{'' if fitted.warmup_steps == 1 else 's'} for warm-up"
    length = ""
    if fitted.steps:
        length = f" ({fitted.steps:,} step{'' if fitted.steps == 1 else 's'})"
    if fitted.balances_classes:
        progress.message(balance_line(fitted, dataset.counts(dataset.train)))
    progress.message(
        f"{fitted.epochs} epoch{'s' if fitted.epochs > 1 else ''}"
        f"{length}, {warmup}, "
        f"in batches of {fitted.batch}{' (a quarter of the images)' if small else ''}, "
        f"learning rate {fitted.lr:g} for 128 images"
        + (", or a quarter or four times that, as trials decide" if fitted.lr_probe else "")
        + (f", {fitted.body_lr:g} of it for all but the head" if fitted.body_lr != 1 else "")
        + (f", {fitted.layer_decay:g} of it from each stage to the one before" if fitted.layer_decay != 1 else "")
        + (", batch norm statistics frozen" if fitted.frozen_bn else "")
    )


def balance_line(recipe: Recipe, counts: Sequence[int]) -> str:
    """Return one line on how small classes are made up for; ``counts`` are the training images of each class."""
    present = [count for count in counts if count]
    sizes = f"classes have {min(present):,} to {max(present):,} training images: "
    if min(present) == max(present):
        return f"all classes have {present[0]:,} training images: nothing has to be balanced"
    if recipe.sampling != "uniform":
        share = "in proportion to the root of that" if recipe.sampling == "square-root" else "equally often"
        return f"{sizes}an epoch shows each class {share}, small ones several times (sampling: {recipe.sampling})"
    root = "the root of " if recipe.class_weights == "square-root" else ""
    return (
        f"{sizes}each image counts in the loss in inverse proportion to {root}that (class_weights: "
        f"{recipe.class_weights})"
    )


def _describe_weights(identity: RunIdentity, progress: Progress) -> None:
    """Say whether the bundle's weights are fine-tuned, where it has weights to be."""
    bundle, classes = identity.bundle, identity.dataset.classes
    if not (identity.recipe.fine_tune or is_transfer(bundle, classes)):
        return
    origin = bundle.manifest.imported
    weights = "weights of the bundle"
    if origin:
        weights = f"weights {'fine-tuned from' if bundle.manifest.training else 'imported from'} {origin.file}"
    if not identity.recipe.fine_tune:
        progress.message(f"training from scratch: the {weights} are not used")
    elif identity.has_head:
        progress.message(f"fine-tuning the {weights}; --from-scratch starts from random ones")
    else:
        progress.message(
            f"fine-tuning the {weights} with a new head for {len(classes)} classes; --from-scratch starts from random "
            "ones"
        )


def probe_line(probe: LinearProbe | None) -> str:
    """Return one line on the linear probe; None is one that would take too long."""
    if probe is None:
        return "no linear probe: with so many classes and features it would take too long; the head starts at random"
    right = f"{probe.val_top1:.2%} of {probe.val_images:,} validation images right"
    if probe.l2 is None:
        line = f"before fine-tuning: {right}"
    else:
        line = (
            f"linear probe, the baseline: {right} ({probe.train_images:,} training images, L2 {probe.l2:g}, "
            f"{probe.seconds:.1f} s)"
        )
    if probe.mirrored_top1 is None:
        return line
    decided = "images are mirrored at random" if probe.mirror_safe else "no image is mirrored, as with --no-flip"
    return f"{line}; {probe.mirrored_top1:.2%} if mirrored: {decided}"


def pixels_line(pixels: PixelBaseline | None, recipe: Recipe) -> str:
    """Return one line on the logistic regression on small pixels; None is one that would take too long."""
    if pixels is None:
        return "no logistic regression on pixels to compare with: with so many classes it would take too long"
    line = (
        f"logistic regression on {pixels.side} x {pixels.side} pixels, the baseline: {pixels.val_top1:.2%} of "
        f"{pixels.val_images:,} validation images right ({pixels.seconds:.1f} s)"
    )
    if not recipe.flip_probe:
        return line
    mirrored = (
        f"of {pixels.tested:,} images that it was not fitted to it recognizes {pixels.right:,}, and "
        f"{pixels.mirrored_right:,} if they are mirrored"
    )
    decided = "images are mirrored at random" if pixels.mirror_safe else "no image is mirrored, as with --no-flip"
    if recipe.aligned_crop_area:
        area = recipe.crop_area if pixels.mirror_safe else recipe.aligned_crop_area
        decided += f", and crops have {area:.0%} of an image or more"
    return f"{line}; {mirrored}: {decided}"


def retry_line(retry: Retry) -> str:
    """Return one line on a return to earlier weights."""
    return (
        f"epoch {retry.epoch}: {retry.reason}: back to the best weights so far, or to the first ones, with learning "
        f"rate {retry.lr:g} for 128 images"
    )


def lr_probe_line(probe: LearningRateProbe) -> str:
    """Return one line on the trials of the learning rate."""
    return f"learning rate {probe} ({probe.seconds:.1f} s)"


def epoch_line(values: Epoch, epochs: int, state: RunState) -> str:
    """Return one line on an epoch; ``*`` is at the best result so far."""
    best = " *" if state.best_epoch == values.epoch else ""
    of_classes = "" if values.val_class_top1 is None else f" (mean over classes {values.val_class_top1:.2%})"
    of_average = "val loss (averaged weights)" if values.averaged else "val loss"
    return (
        f"epoch {values.epoch}/{epochs}: train loss {values.train_loss:.3f}, top-1 {values.train_top1:.1%}; "
        f"{of_average} {values.val_loss:.3f}, top-1 {values.val_top1:.2%}{of_classes}{best}; "
        f"lr {values.lr:.4g}, {values.speed}, {values.seconds:.1f} s"
    )


def length_line(state: RunState, epochs: int, minutes: float | None) -> str | None:
    """Return one line on how long a run takes, after its first epoch; None if it is not long, or was asked for."""
    left = (epochs - 1) * state.history[0].seconds / 60
    if minutes is not None or left < LONG_MIN:
        return None
    shown = f"{left / 60:.1f} hours" if left >= 120 else f"{left:.0f} minutes"
    return (
        f"all {epochs} epochs will take about {shown} more: `--minutes 10 --restart` fits the run into a time, and "
        "after Ctrl-C `--finish` keeps the best weights so far"
    )


def early_line(patience: int, best: str) -> str:
    """Return one line on a run that has ended before its last epoch; ``best`` names its best one."""
    which = "the epoch after it was not" if patience == 1 else f"none of the {patience} epochs after it was"
    return f"ended early: the best is {best}, and {which} better"


def stopping_line(name: str) -> str:
    """Return what is said when the signal of this name arrives."""
    return f"{name}: a checkpoint is written, and the training ends"


def interruption_line(checkpoint: Checkpoint) -> str:
    """Return what the user can do with a run that a signal has ended."""
    best = checkpoint.state.best
    end = f", and --finish writes its best weights so far ({best.val_top1:.2%}) into the bundle" if best else ""
    return (
        f"a checkpoint is written and the bundle is unchanged: the same command continues at {checkpoint.position}{end}"
    )
