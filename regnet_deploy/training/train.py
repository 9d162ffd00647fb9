"""Training from a bundle and a folder of images to new weights in the bundle, however often it is interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT, build_dataset, list_images
from regnet_deploy.images.image_check import cache_file, check_images
from regnet_deploy.progress import Progress
from regnet_deploy.training.autotune import Autotune, autotune_execution
from regnet_deploy.training.checkpoint import (
    Checkpoint,
    drop_checkpoint,
    load_checkpoint,
    make_checkpoint,
    restore,
    save_checkpoint,
)
from regnet_deploy.training.commit import commit_training, training_part
from regnet_deploy.training.data_loader import (
    TrainingDataset,
    batches_from,
    evaluation_dataset,
    load,
    steps_per_epoch,
    training_dataset,
)
from regnet_deploy.training.execution import (
    Execution,
    ExecutionRequest,
    can_compile,
    default_workers,
    disable_tf32,
    resolve_device,
)
from regnet_deploy.training.loop import DivergenceError, Run, TrainingCallbacks, fit
from regnet_deploy.training.recipe import DEFAULT_BATCH, Recipe
from regnet_deploy.training.run_directory import default_directory, ensure_free_space, open_directory
from regnet_deploy.training.run_identity import (
    RunIdentity,
    ensure_fits,
    ensure_same,
    identity_differences,
    is_already_trained,
    is_committed,
    make_run_identity,
)
from regnet_deploy.training.tensorboard import MetricsWriter, open_tensorboard
from regnet_deploy.training.trainer import Trainer, make_trainer

#: Names of files that are told; all of them are in the bundle.
_NAMED = 10
#: Seconds between two values of the loss in TensorBoard.
_LOSS_EVERY_S = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """What does not decide the weights, but how they are come by.

    Attributes:
        wanted: device, precision, memory layout and compilation, as far as the user says.
        workers: processes that load images; None leaves it to device and data.
        val_split: share of each class to hold out where the folder has no validation images; None is 0.1.
        run_dir: run directory; None is the bundle's sibling.
        restart: drop an unfinished run, and train anew what is trained already.
        finish: end an unfinished run: its best weights so far become the bundle's.
        checkpoint_s: seconds between checkpoints.
    """

    wanted: ExecutionRequest = field(default_factory=ExecutionRequest)
    workers: int | None = None
    val_split: float | None = None
    run_dir: Path | None = None
    restart: bool = False
    finish: bool = False
    checkpoint_s: float = 30.0


def train(
    bundle_path: str | Path, data: str | Path, recipe: Recipe, options: TrainOptions, progress: Progress
) -> Bundle:
    """Train the bundle's network on a folder of images and return the bundle with its new weights.

    A run that was interrupted goes on where its last checkpoint stands; on a CPU its weights become, to the bit, those
    of a run that never stopped.

    Raises:
        BundleError: the bundle is missing, damaged, not writable, or was changed meanwhile.
        DataError: the images cannot be used, or the run directory cannot be written.
        UsageError: options that do not fit bundle, data, device or the unfinished run; or the loss diverged.
    """
    if options.finish and options.restart:
        raise UsageError("--finish keeps an unfinished run and --restart drops it: give one of them")
    bundle = open_bundle(bundle_path)
    resolve_device(options.wanted.device)
    listing = list_images(data)
    ensure_fits(bundle, listing, recipe)
    if options.val_split is not None and listing.val is not None:
        raise UsageError(f"{data} has validation images of its own: leave --val-split out, or give a folder without")
    directory = options.run_dir or default_directory(bundle_path)
    with open_directory(directory):
        ensure_free_space(bundle, directory)
        checkpoint = None if options.restart else load_checkpoint(directory)
        checked = check_images(listing.source, cache_file(directory, listing.root), progress)
        share = DEFAULT_VAL_SPLIT if options.val_split is None else options.val_split
        folder = build_dataset(listing, checked, val_split=share, seed=recipe.seed)
        job = make_run_identity(bundle, folder, recipe)
        if options.restart:
            drop_checkpoint(directory)  # not before it is known that there is something to train on
        _tell_data(job, recipe, progress)
        if checkpoint and is_committed(checkpoint, job):
            drop_checkpoint(directory)
            if not identity_differences(
                checkpoint, job, options.wanted, leave_out=("start",)
            ):  # those are the new weights now
                progress.message("this run had ended and its weights are in the bundle: nothing is left to do")
                return bundle
            checkpoint = None
        if checkpoint:
            ensure_same(checkpoint, job, options.wanted, directory)
        elif is_already_trained(job, options.wanted) and not options.restart:
            top1 = bundle.part("training")["best"]["val_top1"]
            progress.message(f"{bundle.path} is trained like this already ({top1:.2%}): --restart trains it anew")
            return bundle
        if options.finish and (checkpoint is None or not checkpoint.best):
            raise UsageError(f"--finish: there is no unfinished run in {directory} with an epoch done")
        del checked, listing  # of an ImageNet they are half a gigabyte
        return _run(job, options, directory, checkpoint, progress)


def _run(
    job: RunIdentity, options: TrainOptions, directory: Path, checkpoint: Checkpoint | None, progress: Progress
) -> Bundle:
    disable_tf32()
    model = job.model()
    folder, recipe, preprocessing = job.folder, job.recipe, job.preprocessing

    training = training_dataset(folder.source, folder.train, recipe, preprocessing, progress)
    validation = evaluation_dataset(folder.source, folder.val, preprocessing, progress)

    def make(execution: Execution) -> Trainer:
        return make_trainer(model, execution, recipe, preprocessing)

    if checkpoint:
        choice = _resumed_choice(checkpoint, progress)
    else:
        torch.set_num_threads(available_cores())
        chosen = _choose(options.wanted, make, training, progress)
        choice = replace(chosen, threads=torch.get_num_threads())
    device = choice.execution.device
    workers = (
        default_workers(device, training.subset.cached is not None) if options.workers is None else options.workers
    )
    run = Run(make(choice.execution), training, validation, preprocessing, workers)
    if checkpoint:
        restore(checkpoint, run.learner)
        run.progress, run.best = checkpoint.progress, dict(checkpoint.best)
        progress.message(f"resuming at epoch {run.progress.epoch + 1} step {run.progress.step}")

    def save() -> None:
        save_checkpoint(directory, make_checkpoint(job.identity(), choice, run.progress, run.learner, run.best))

    if not checkpoint:
        save()  # so that the choice holds from now on
    if not options.finish:
        with open_tensorboard(directory, run.steps_done) as metrics:
            try:
                fit(run, _listener(run, save, metrics, progress, options.checkpoint_s))
            except DivergenceError as error:
                if not run.best:
                    drop_checkpoint(directory)  # to go on from it would diverge again
                    raise
                kept = f"the best epoch so far, {run.progress.best_epoch}, is kept: --finish puts it into the bundle"
                raise DivergenceError(f"{error}; {kept}, --restart drops it") from None
    bundle = commit_training(
        job.bundle, job.architecture, folder, run, training_part(folder, run, choice, job.start_sha256)
    )
    drop_checkpoint(directory)
    _name("could not be read any more while training", run.progress.unreadable, progress)
    return bundle


def _choose(
    wanted: ExecutionRequest, make: Callable[[Execution], Trainer], training: TrainingDataset, progress: Progress
) -> Autotune:
    recipe = training.recipe
    batches = load(training, batches_from(recipe, len(training), 0, 0), workers=0, pin=False)
    batch = next((batch for batch in batches if len(batch.labels) > 1), None)
    if batch is None:
        raise DataError(f"none of the images in {training.subset.source.root} can be read any more: is it still there?")
    steps = recipe.epochs * steps_per_epoch(len(training), recipe.batch)
    choice = autotune_execution(wanted, make, batch, steps, progress.message)
    times = ", ".join(f"{way} {time_ms:.0f} ms" for way, time_ms in choice.step_ms.items())
    progress.message(f"running steps in {choice.execution}" + (f" (tried: {times} a step)" if times else ""))
    return choice


def _resumed_choice(checkpoint: Checkpoint, progress: Progress) -> Autotune:
    if checkpoint.torch != torch.__version__:
        progress.message(
            f"begun with PyTorch {checkpoint.torch} and going on with {torch.__version__}: "
            "the weights will not be those of one run, bit for bit"
        )
    if checkpoint.choice.threads:
        torch.set_num_threads(checkpoint.choice.threads)
    execution = checkpoint.choice.execution
    resolve_device(execution.device)
    if execution.compiled and not can_compile(execution.device):
        raise UsageError("the unfinished run is compiled, and there is no compiler here any more: --restart drops it")
    return checkpoint.choice


def _listener(
    run: Run, save: Callable[[], None], metrics: MetricsWriter, progress: Progress, checkpoint_s: float
) -> TrainingCallbacks:
    recipe = run.learner.recipe
    total = recipe.epochs * run.steps_per_epoch
    last_loss_s = -math.inf
    shown = 0

    def show_epoch() -> None:
        nonlocal shown
        if shown != run.progress.epoch + 1:
            shown = run.progress.epoch + 1
            progress.step(f"epoch {shown}/{recipe.epochs}", total)

    def step(loss: float, images_per_s: float) -> None:
        nonlocal last_loss_s
        history = run.progress.history
        val = f", val top-1 {history[-1]['val_top1']:.1%}" if history else ""
        note = f"loss {loss:.3f}{val}, {images_per_s:,.0f} images/s"
        show_epoch()
        progress.update(run.steps_done, note=note)
        if time.monotonic() - last_loss_s >= _LOSS_EVERY_S:
            metrics.scalars({"step/loss": loss}, run.steps_done)
            last_loss_s = time.monotonic()

    def epoch(values: dict[str, Any]) -> None:
        best = " *" if run.progress.best_epoch == values["epoch"] else ""
        progress.message(
            f"epoch {values['epoch']}/{recipe.epochs}: train loss {values['train_loss']:.3f}, "
            f"top-1 {values['train_top1']:.1%}; "
            f"val loss {values['val_loss']:.3f}, top-1 {values['val_top1']:.2%}{best}; "
            f"lr {values['lr']:.4g}, {values['images_per_s']:,.0f} images/s, {values['seconds']:.1f} s"
        )
        scalars = {name: value for name, value in values.items() if name not in ("epoch", "val_images")}
        metrics.scalars({f"epoch/{name}": value for name, value in scalars.items()}, run.steps_done)

    return TrainingCallbacks(step, epoch, save, checkpoint_s)


def _tell_data(job: RunIdentity, asked: Recipe, progress: Progress) -> None:
    folder, before = job.folder, job.bundle.part("architecture")["classes"]
    progress.message(
        f"{len(folder.train):,} images to train on, {len(folder.val):,} to validate with ({folder.split}), "
        f"{len(folder.classes)} classes"
    )
    if folder.classes_without_val:
        names = folder.classes_without_val
        progress.message(f"{len(names)} classes have no validation image: {', '.join(names[:_NAMED])}")
    _name("left out", folder.rejected, progress)
    if before != len(folder.classes):
        progress.message(f"the network gets {len(folder.classes)} outputs in place of {before}")
    going = sorted({*job.bundle.parts.get("variants", {}), *(["profile"] if "profile" in job.bundle else [])})
    if going:
        progress.message(
            f"measured or exported with the earlier weights, and gone when this is done: {', '.join(going)}"
        )
    small = asked.batch_size is None and job.recipe.batch < DEFAULT_BATCH
    progress.message(
        f"{job.recipe.epochs} epochs, {job.recipe.warmup_epochs} of them to warm up, "
        f"in batches of {job.recipe.batch}{' (a quarter of the images)' if small else ''}, "
        f"learning rate {job.recipe.lr:g} for 128 images"
    )


def _name(what: str, files: Mapping[str, str], progress: Progress) -> None:
    if files:
        progress.message(f"{len(files):,} {'file' if len(files) == 1 else 'files'} {what}:")
        for path, reason in list(files.items())[:_NAMED]:
            progress.message(f"  {path}: {reason}")
        if len(files) > _NAMED:
            progress.message(f"  and {len(files) - _NAMED} more, all named in the bundle's training part")
