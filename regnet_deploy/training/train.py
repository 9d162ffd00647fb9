"""Training: from a bundle and a dataset to new weights in the bundle, across any number of interruptions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.bundle.training import Autotune, Epoch, Execution
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT, build_dataset, list_images
from regnet_deploy.images.dataset_summary import dataset_lines, left_out_lines
from regnet_deploy.images.image_check import cache_file, check_images
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.autotune import autotune_execution
from regnet_deploy.training.checkpoint import Checkpoint, drop_checkpoint, load_checkpoint, save_checkpoint
from regnet_deploy.training.commit import commit_training
from regnet_deploy.training.data_loader import (
    TrainingDataset,
    batches_from,
    evaluation_dataset,
    load,
    steps_per_epoch,
    training_dataset,
)
from regnet_deploy.training.execution import (
    ExecutionRequest,
    can_compile,
    default_workers,
    disable_tf32,
    resolve_device,
)
from regnet_deploy.training.loop import DivergenceError, TrainingCallbacks, TrainingRun, fit
from regnet_deploy.training.recipe import DEFAULT_BATCH, Recipe
from regnet_deploy.training.run_directory import (
    MetricsWriter,
    default_directory,
    ensure_free_space,
    open_directory,
    open_tensorboard,
)
from regnet_deploy.training.run_identity import (
    RunIdentity,
    ensure_same_run,
    ensure_trainable,
    identity_differences,
    is_already_trained,
    is_committed,
)
from regnet_deploy.training.trainer import Trainer, make_trainer

#: Seconds between two values of the loss in TensorBoard.
_LOSS_INTERVAL_S = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """How a run is executed; none of this determines the weights, except on a GPU or with another precision.

    Attributes:
        execution: requested device, precision, memory layout and compilation.
        workers: processes that load images; None chooses by device and dataset.
        val_split: share of each class to hold out if the folder has no validation images; None is 0.1.
        run_dir: run directory; None is beside the bundle.
        restart: drop an unfinished run, and train again what is already trained.
        finish: end an unfinished run: its best weights so far are written into the bundle.
        checkpoint_s: seconds between checkpoints.
    """

    execution: ExecutionRequest = field(default_factory=ExecutionRequest)
    workers: int | None = None
    val_split: float | None = None
    run_dir: Path | None = None
    restart: bool = False
    finish: bool = False
    checkpoint_s: float = 30.0


def train(
    bundle_path: str | Path,
    data: str | Path,
    recipe: Recipe,
    options: TrainOptions,
    progress: Progress = NoProgress(),
) -> Bundle:
    """Train the bundle's network on a folder of images and return the bundle with its new weights.

    An interrupted run continues from its last checkpoint. On a CPU its weights are then bit-identical to those of a run
    that was never interrupted.

    Raises:
        BundleError: the bundle is missing, damaged, not writable, or was changed meanwhile.
        DataError: the images cannot be used, or the run directory cannot be written.
        UsageError: options that do not fit the bundle, the images, the device or the unfinished run; or the loss
            diverged.
    """
    if options.finish and options.restart:
        raise UsageError("--finish keeps an unfinished run and --restart drops it: give one of them")
    bundle = open_bundle(bundle_path)
    resolve_device(options.execution.device)
    listing = list_images(data)
    ensure_trainable(bundle, listing, recipe)
    if options.val_split is not None and listing.val is not None:
        raise UsageError(f"{data} has validation images of its own: omit --val-split, or give a folder without them")
    directory = options.run_dir or default_directory(bundle_path)
    with open_directory(directory):
        ensure_free_space(bundle, directory)
        checkpoint = None if options.restart else load_checkpoint(directory)
        checked = check_images(listing.source, cache_file(directory, listing.root), progress)
        val_split = DEFAULT_VAL_SPLIT if options.val_split is None else options.val_split
        dataset = build_dataset(listing, checked, val_split=val_split, seed=recipe.seed)
        identity = RunIdentity(bundle, dataset, recipe.fitted(len(dataset.train)))
        if options.restart:
            drop_checkpoint(directory)  # only now, when it is known that the images can be used
        _describe(identity, recipe, progress)
        if checkpoint and is_committed(checkpoint, identity):
            drop_checkpoint(directory)
            # The start is left out: after the commit the bundle's weights are the new ones.
            if not identity_differences(checkpoint, identity, options.execution, leave_out=("start",)):
                progress.message("this run has ended and its weights are in the bundle: nothing is left to do")
                return bundle
            checkpoint = None
        if checkpoint:
            ensure_same_run(checkpoint, identity, options.execution, directory)
        elif is_already_trained(identity, options.execution) and not options.restart:
            top1 = bundle.training.best.val_top1
            progress.message(f"{bundle.path} is already trained like this ({top1:.2%}): --restart trains it again")
            return bundle
        if options.finish and (checkpoint is None or not checkpoint.best):
            raise UsageError(f"--finish: {directory} has no unfinished run with a completed epoch")
        del checked, listing  # half a gigabyte for ImageNet
        return _run(identity, options, directory, checkpoint, progress)


def _run(
    identity: RunIdentity, options: TrainOptions, directory: Path, checkpoint: Checkpoint | None, progress: Progress
) -> Bundle:
    disable_tf32()
    model = identity.model()
    dataset, recipe, preprocessing = identity.dataset, identity.recipe, identity.preprocessing
    training = training_dataset(dataset.source, dataset.train, recipe, preprocessing, progress)
    validation = evaluation_dataset(dataset.source, dataset.val, preprocessing, progress)

    def trainer_for(execution: Execution) -> Trainer:
        return make_trainer(model, execution, recipe, preprocessing)

    if checkpoint:
        autotune = _resumed_autotune(checkpoint, progress)
    else:
        torch.set_num_threads(available_cores())
        autotune = _autotune(options.execution, trainer_for, training, progress)
    cached = training.subset.cached is not None
    workers = default_workers(autotune.execution.device, cached) if options.workers is None else options.workers
    run = TrainingRun(trainer_for(autotune.execution), training, validation, preprocessing, workers)
    if checkpoint:
        checkpoint.restore(run.trainer)
        run.state, run.best = checkpoint.state, dict(checkpoint.best)
        progress.message(f"resuming at epoch {run.state.epoch + 1} step {run.state.step}")

    def save() -> None:
        trainer = run.trainer
        tensors = trainer.model.state_dict(), trainer.momentum(), run.best
        save_checkpoint(directory, Checkpoint(identity.to_json(), autotune, run.state, *tensors))

    if not checkpoint:
        save()  # so that the choice of execution holds from now on
    if not options.finish:
        with open_tensorboard(directory, run.steps_done) as metrics:
            try:
                fit(run, _callbacks(run, save, metrics, progress, options.checkpoint_s))
            except DivergenceError as error:
                if not run.best:
                    drop_checkpoint(directory)  # a run that continued from it would diverge again
                    raise
                kept = f"the best epoch so far, {run.state.best_epoch}, is kept: --finish writes it into the bundle"
                raise DivergenceError(f"{error}; {kept}, --restart drops it") from None
    bundle = commit_training(identity, run, autotune)
    drop_checkpoint(directory)
    for line in left_out_lines("could not be read any more during training", run.state.unreadable):
        progress.message(line)
    return bundle


def _autotune(
    request: ExecutionRequest,
    trainer_for: Callable[[Execution], Trainer],
    training: TrainingDataset,
    progress: Progress,
) -> Autotune:
    recipe = training.recipe
    batches = load(training, batches_from(recipe, len(training), 0, 0), workers=0, pin=False)
    batch = next((batch for batch in batches if len(batch.labels) > 1), None)
    if batch is None:
        raise DataError(
            f"none of the images in {training.subset.source.root} can be read any more: does it still exist?"
        )
    steps = recipe.epochs * steps_per_epoch(len(training), recipe.batch)
    autotune = autotune_execution(request, trainer_for, batch, steps, progress)
    times = ", ".join(f"{execution} {time_ms:.0f} ms" for execution, time_ms in autotune.step_ms.items())
    progress.message(f"running steps in {autotune.execution}" + (f" (time per step: {times})" if times else ""))
    return autotune.replace(threads=torch.get_num_threads())


def _resumed_autotune(checkpoint: Checkpoint, progress: Progress) -> Autotune:
    """Return the execution of a checkpoint, after checking that it is possible here."""
    if checkpoint.torch != torch.__version__:
        progress.message(
            f"started with PyTorch {checkpoint.torch} and continued with {torch.__version__}: "
            "the weights will not be bit-identical to those of an uninterrupted run"
        )
    if checkpoint.autotune.threads:
        torch.set_num_threads(checkpoint.autotune.threads)  # sums over another number of threads have other last bits
    execution = checkpoint.autotune.execution
    resolve_device(execution.device)
    if execution.compiled and not can_compile(execution.device):
        raise UsageError("the unfinished run is compiled, and there is no compiler on this machine: --restart drops it")
    return checkpoint.autotune


def _callbacks(
    run: TrainingRun, save: Callable[[], None], metrics: MetricsWriter, progress: Progress, checkpoint_s: float
) -> TrainingCallbacks:
    recipe = run.trainer.recipe
    total = recipe.epochs * run.steps_per_epoch
    last_loss_s = -math.inf
    shown_epoch = 0

    def step(loss: float, images_per_s: float) -> None:
        nonlocal last_loss_s, shown_epoch
        state = run.state
        if shown_epoch != state.epoch + 1:
            shown_epoch = state.epoch + 1
            progress.step(f"epoch {shown_epoch}/{recipe.epochs}", total)
        val = f", val top-1 {state.history[-1].val_top1:.1%}" if state.history else ""
        progress.update(run.steps_done, note=f"loss {loss:.3f}{val}, {images_per_s:,.0f} images/s")
        if time.monotonic() - last_loss_s >= _LOSS_INTERVAL_S:
            metrics.scalars({"step/loss": loss}, run.steps_done)
            last_loss_s = time.monotonic()

    def epoch(values: Epoch) -> None:
        best = " *" if run.state.best_epoch == values.epoch else ""
        progress.message(
            f"epoch {values.epoch}/{recipe.epochs}: train loss {values.train_loss:.3f}, "
            f"top-1 {values.train_top1:.1%}; "
            f"val loss {values.val_loss:.3f}, top-1 {values.val_top1:.2%}{best}; "
            f"lr {values.lr:.4g}, {values.images_per_s:,.0f} images/s, {values.seconds:.1f} s"
        )
        scalars = {name: value for name, value in values.to_json().items() if name not in ("epoch", "val_images")}
        metrics.scalars({f"epoch/{name}": value for name, value in scalars.items()}, run.steps_done)

    return TrainingCallbacks(step, epoch, save, checkpoint_s)


def _describe(identity: RunIdentity, recipe: Recipe, progress: Progress) -> None:
    """Report the dataset, what will be removed from the bundle, and the fitted recipe."""
    dataset, classes_before = identity.dataset, identity.bundle.architecture.classes
    for line in dataset_lines(dataset):
        progress.message(line)
    if classes_before != len(dataset.classes):
        progress.message(f"the network gets {len(dataset.classes)} outputs instead of {classes_before}")
    manifest = identity.bundle.manifest
    removed = sorted({*manifest.variants, *(["profile"] if manifest.profile else [])})
    if removed:
        progress.message(
            "these were made with the earlier weights, and are removed at the end of the training: "
            f"{', '.join(removed)}"
        )
    fitted = identity.recipe
    small = recipe.batch_size is None and fitted.batch < DEFAULT_BATCH
    progress.message(
        f"{fitted.epochs} epochs, {fitted.warmup_epochs} of them for warm-up, "
        f"in batches of {fitted.batch}{' (a quarter of the images)' if small else ''}, "
        f"learning rate {fitted.lr:g} for 128 images"
    )
