"""Training: from a bundle and a dataset to new weights in the bundle, across any number of interruptions."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.field_types import check_field_types
from regnet_deploy.images.dataset import DEFAULT_VAL_SPLIT, build_dataset
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.images.hold_out import ensure_shares
from regnet_deploy.images.image_check import cache_file, check_images, shared_cache
from regnet_deploy.images.listing import ensure_no_split_twice, list_images
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.tracking.trackers import DEFAULT_TRACKERS, ensure_installed, ensure_known, open_trackers
from regnet_deploy.training.checkpoint import (
    Checkpoint,
    RunDescription,
    drop_checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from regnet_deploy.training.chosen_weights import validation_answers
from regnet_deploy.training.commit import commit_training, describe_run, sample_images
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, evaluation_dataset, training_dataset
from regnet_deploy.training.distributed import ProcessGroup, ensure_shared, process_group
from regnet_deploy.training.execution import ExecutionRequest, default_workers, disable_tf32, resolve_device
from regnet_deploy.training.execution_choice import choose_execution, resumed_execution
from regnet_deploy.training.final_test import final_test
from regnet_deploy.training.fine_tuning import recipe_of, starting_recipe
from regnet_deploy.training.finish import finish_training
from regnet_deploy.training.interruption import Interrupted, nothing_begun, stop_signals
from regnet_deploy.training.loop import fit
from regnet_deploy.training.ray_workers import RayWorkers
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_file import NamedRecipe, name_and_values
from regnet_deploy.training.run import DivergenceError, TrainingRun, weights_of
from regnet_deploy.training.run_callbacks import quiet_callbacks, run_callbacks
from regnet_deploy.training.run_directory import (
    default_directory,
    ensure_free_space,
    ensure_usable,
    new_run_name,
    open_directory,
)
from regnet_deploy.training.run_identity import (
    RunIdentity,
    ensure_same_run,
    ensure_trainable,
    identity_differences,
    is_already_trained,
    is_committed,
)
from regnet_deploy.training.run_messages import (
    describe_recipe,
    describe_start,
    early_line,
    interruption_line,
    stopping_line,
)
from regnet_deploy.training.stochastic_depth import ensure_residual
from regnet_deploy.training.stored_images import ImageStore, image_store
from regnet_deploy.training.time_budget import Plan, planned_steps, steps_that_fit, with_steps
from regnet_deploy.training.tracked_run import final_values, tracked_run
from regnet_deploy.training.trainer import Trainer, make_trainer


@dataclass(frozen=True)
class TrainOptions:
    """How a run is executed; of this only ``execution`` and the splits determine the weights.

    Attributes:
        execution: requested device, precision, memory layout, compilation and CPU threads.
        workers: processes that load images; None chooses by device and dataset.
        val_split: share of each class to hold out if the folder has no validation images; None is 0.1.
        run_dir: run directory; None is beside the bundle.
        restart: drop an unfinished run, and train again what is already trained.
        finish: end an unfinished run: its best weights so far are written into the bundle. All other options but
            ``run_dir`` and ``track``, the recipe and the images are not looked at.
        checkpoint_s: seconds between checkpoints.
        test_split: share of each class to hold out to test the chosen weights on, if the folder has no such images.
        cache: where decoded training images are stored: ``auto`` is memory, else the run directory, where they fit;
            ``off`` is nowhere; else a folder. The weights do not depend on it.
        track: trackers that the run is shown in: ``tensorboard``, ``mlflow``, ``wandb``.
        ray: workers on Ray that train in place of this process.
    """

    execution: ExecutionRequest = field(default_factory=ExecutionRequest)
    workers: int | None = None
    val_split: float | None = None
    run_dir: Path | None = None
    restart: bool = False
    finish: bool = False
    checkpoint_s: float = 30.0
    test_split: float | None = None
    cache: str = "auto"
    track: tuple[str, ...] = DEFAULT_TRACKERS
    ray: RayWorkers | None = None

    def __post_init__(self) -> None:
        """Check the types, the shares and the names of trackers.

        Raises:
            UsageError: a value has another type, the shares leave nothing to train on, or a tracker does not exist.
        """
        check_field_types(self)
        ensure_known(self.track)
        ensure_shares(self.val_split, self.test_split)


def train(
    bundle_path: str | Path,
    data: str | Path | None,
    recipe: Recipe | Mapping[str, Any] | NamedRecipe,
    options: TrainOptions,
    progress: Progress = NoProgress(),
    join: Callable[[str], contextlib.AbstractContextManager[ProcessGroup]] = process_group,
) -> Bundle:
    """Train the bundle's network on a folder of images and return the bundle with its new weights.

    An interrupted run continues from its last checkpoint. On a CPU its weights are then bit-identical to those of a run
    that was never interrupted. SIGINT and SIGTERM end a run within seconds, with a checkpoint, by KeyboardInterrupt.

    Args:
        bundle_path: folder of the bundle.
        data: folder of images; None with ``finish``.
        recipe: what, with the images, determines the weights; or a recipe of a file. Of a mapping, values not given are
            the defaults for random weights or for fine-tuning; ``fine_tune`` decides, or else what the bundle has.
        options: how the run is executed.
        progress: receives the progress.
        join: joins the processes of a launcher.

    Raises:
        BundleError: the bundle is missing, damaged, not writable, or was changed meanwhile.
        DataError: the images cannot be used, or the run directory cannot be written.
        UsageError: options that do not fit the bundle, the images, the device or the unfinished run; or the loss
            diverged.
        MissingExtra: a tracker is not installed.
    """
    begun = time.perf_counter()
    ensure_installed(options.track)
    if options.finish and options.restart:
        raise UsageError("--finish keeps an unfinished run and --restart drops it: give one of them")
    if options.finish:
        with process_group("cpu") as group:
            return group.first(lambda: finish_training(bundle_path, options.run_dir, progress, data, options.track))
    if data is None:
        raise UsageError("give a folder of images with --data DIR")
    if options.ray:
        return options.ray(bundle_path, data, recipe, options, progress)
    with (
        join(resolve_device(options.execution.device)) as group,
        contextlib.ExitStack() as directory_lock,
        contextlib.ExitStack() as before,
    ):
        contexts = directory_lock, before
        prepared = group.first(lambda: _prepare(bundle_path, data, recipe, options, progress, group, contexts, begun))
        if isinstance(prepared, Bundle):
            return prepared
        return _run(prepared, options, progress if group.is_first else NoProgress(), group, begin=before.close)


@dataclass(frozen=True)
class _Prepared:
    """A run that can begin or continue.

    Attributes:
        identity: what determines its weights.
        model: the network with the weights that it starts from.
        plan: how it gets its length.
        shares: of each class that are held out for validation, and to test on.
        directory: the run directory.
        store: where decoded training images may be stored.
        checkpoint: of the run; None if it begins.
    """

    identity: RunIdentity
    model: nn.Module
    plan: Plan
    shares: tuple[float, float | None]
    directory: Path
    store: ImageStore
    checkpoint: Checkpoint | None


def _prepare(
    bundle_path: str | Path,
    data: str | Path,
    recipe: Recipe | Mapping[str, Any] | NamedRecipe,
    options: TrainOptions,
    progress: Progress,
    group: ProcessGroup,
    contexts: tuple[contextlib.ExitStack, contextlib.ExitStack],
    begun: float,
) -> _Prepared | Bundle:
    """Check images and options, and return the run; the bundle, if nothing is left to train.

    ``begun`` is when the command began. The run directory is locked while the first of the contexts is open. While
    the second is open, an interruption says that nothing has begun.
    """
    name, recipe = name_and_values(recipe)
    if name:
        progress.message(f"recipe {name}")
    given = recipe if isinstance(recipe, Recipe) else recipe_of(recipe)
    bundle = open_bundle(bundle_path)
    if isinstance(recipe, Mapping) and recipe.get("lighting") and bundle.preprocessing.channels == 1:
        raise UsageError(f"--lighting {recipe['lighting']:g} shifts colors, and the network takes gray images: omit it")
    directory = options.run_dir or default_directory(bundle_path)
    try:
        listing = list_images(data, test=True, progress=progress)
    except DataError as error:
        if options.restart or not has_checkpoint(directory):
            raise
        raise DataError(f"{error}; the unfinished run in {directory} can be ended without it: --finish") from None
    ensure_trainable(bundle, listing, given.fine_tune)
    ensure_no_split_twice(listing, options.val_split, options.test_split)
    ensure_usable(directory, bundle.path, data)
    store = image_store(options.cache, directory, (bundle.path, Path(data)))
    contexts[0].enter_context(open_directory(directory))
    contexts[1].enter_context(nothing_begun())
    ensure_free_space(bundle, directory)
    checkpoint = None if options.restart else load_checkpoint(directory)
    cache = cache_file(directory, listing.root)
    checked = check_images(listing.source, cache, progress, also=[shared_cache(listing.root)])
    val_split = DEFAULT_VAL_SPLIT if options.val_split is None else options.val_split
    shares = (val_split, options.test_split)
    dataset = build_dataset(listing, checked, val_split=val_split, test_split=options.test_split, seed=given.seed)

    planned = partial(_planned, recipe, bundle, dataset.classes, dataset.counts(dataset.train))
    before_this = checkpoint.identity["recipe"] if checkpoint else None
    if before_this is None and bundle.manifest.training and not options.restart:
        before_this = bundle.manifest.training.recipe
    identity = RunIdentity(bundle, dataset, planned(planned_steps(given, before_this)))
    ensure_shared(identity.recipe.batch, group, options.execution.sync_bn)
    ensure_residual(identity.recipe, bundle.architecture.network.block != "v")
    if options.restart:
        drop_checkpoint(directory)  # only now, when it is known that the images can be used
    if checkpoint and is_committed(checkpoint, bundle):
        drop_checkpoint(directory)
        # The start is left out: after the commit the bundle's weights are the new ones.
        if not identity_differences(checkpoint, identity, options.execution, leave_out=("start",)):
            progress.message("this run has ended and its weights are in the bundle: nothing is left to do")
            return bundle
        checkpoint = None
    if checkpoint:
        named = None if isinstance(recipe, Recipe) else recipe.keys()
        ensure_same_run(checkpoint, identity, options.execution, directory, named)
    elif is_already_trained(identity, options.execution) and not options.restart:
        top1 = bundle.training.best.val_top1
        progress.message(f"{bundle.path} is already trained like this ({top1:.2%}): --restart trains it again")
        if dataset.test and (bundle.training.data.test is None or bundle.training.test is None):
            progress.message(
                f"regnet-deploy evaluate{bundle.argument} --data {shlex.quote(str(data))} --split test measures it "
                "on the test images"
            )
        return bundle
    describe_start(identity, progress)
    del checked, listing  # half a gigabyte for ImageNet
    return _Prepared(
        identity, identity.model(), Plan(planned, given, begun, name), shares, directory, store, checkpoint
    )


def _planned(
    recipe: Recipe | Mapping[str, Any],
    bundle: Bundle,
    classes: tuple[str, ...],
    counts: tuple[int, ...],
    steps: int | None,
) -> Recipe:
    """Return the fitted recipe of a run of so many steps; None is as many as its epochs have."""
    start = starting_recipe(recipe if steps is None else with_steps(recipe, steps), bundle, classes, counts)
    return start.for_channels(bundle.preprocessing.channels).fitted(sum(counts))


def _run(
    prepared: _Prepared, options: TrainOptions, progress: Progress, group: ProcessGroup, begin: Callable[[], None]
) -> Bundle:
    disable_tf32()
    identity, model, plan = prepared.identity, prepared.model, prepared.plan
    checkpoint, directory = prepared.checkpoint, prepared.directory
    dataset, recipe, preprocessing = identity.dataset, identity.recipe, identity.preprocessing
    training = training_dataset(dataset.source, dataset.train, recipe, preprocessing, progress, prepared.store)
    validation = evaluation_dataset(dataset.source, dataset.val, preprocessing, progress)
    counts = training.class_counts(len(dataset.classes))

    def trainer_for(execution: Execution) -> Trainer:
        return make_trainer(model, execution, recipe, preprocessing, class_counts=counts)

    def begun() -> tuple[RunDescription, Mapping[str, Tensor]]:
        run_name, shares = new_run_name(directory), prepared.shares
        described = describe_run(identity, autotune.execution, training, run_name, shares, plan.recipe_name)
        return described, sample_images(dataset, preprocessing, recipe.seed)

    if checkpoint:
        describe_recipe(identity, plan.given, progress)
        autotune, samples = resumed_execution(checkpoint, progress, group), checkpoint.samples
        description = checkpoint.description.replace(root=str(dataset.source.root))  # it may have been moved
    else:
        torch.set_num_threads(options.execution.threads or group.cores)
        autotune = group.first(lambda: choose_execution(options.execution, trainer_for, training, progress, group))
        if recipe.minutes is not None:
            end = plan.begun + 60 * recipe.minutes
            left = group.first(lambda: end - time.perf_counter())
            measured = make_trainer(model, autotune.execution, recipe, preprocessing, group, counts)
            workers = _workers(options, autotune, training.in_memory, group)
            fitted = steps_that_fit(measured, training, validation, workers, left, group)
            del measured  # a whole network with its optimizer
            recipe = plan.recipe(fitted.steps)
            identity, training.recipe = replace(identity, recipe=recipe), recipe
            progress.message(f"{recipe.minutes:g} minutes: {fitted}")
        describe_recipe(identity, plan.given, progress)
        description, samples = group.first(begun)
    workers = _workers(options, autotune, training.in_memory, group)
    unaugmented = None
    if recipe.pixel_probe or (recipe.probe and not identity.has_head):
        unaugmented = EvaluationDataset(ImageSubset(dataset.source, dataset.train), preprocessing)
    trainer = make_trainer(model, autotune.execution, recipe, preprocessing, group, counts)
    run = TrainingRun(trainer, training, validation, preprocessing, workers, unaugmented, group=group)
    if recipe.retries:
        run.initial = weights_of(model)
    if checkpoint:
        checkpoint.restore(run.trainer)
        run.state, run.best, run.start = checkpoint.state, dict(checkpoint.best), dict(checkpoint.start)
        progress.message(f"resuming at {checkpoint.position}")

    def snapshot() -> Checkpoint:
        trainer = run.trainer
        tensors = trainer.model.state_dict(), trainer.optimizer_state(), run.best, samples
        average = trainer.average.state_dict() if trainer.average else {}
        scaling = trainer.scaling.state() if trainer.scaling else {}
        return Checkpoint(identity.to_json(), description, autotune, run.state, *tensors, average, run.start, scaling)

    def save() -> None:
        save_checkpoint(directory, snapshot())

    if not checkpoint:
        group.first(save)  # so that the choice of execution holds from now on
    begin()
    tracked = tracked_run(identity.bundle, snapshot(), directory)
    with open_trackers(options.track if group.is_first else (), tracked, progress) as trackers:
        with stop_signals(group.size > 1, lambda by: progress.message(stopping_line(by)), group.stopping) as signalled:
            callbacks = quiet_callbacks(group.agreed(signalled), group.heard(signalled))
            if group.is_first:
                callbacks = run_callbacks(run, save, trackers, progress, options.checkpoint_s, callbacks)
            try:
                fit(run, callbacks)
                device, tested = autotune.execution.device, None
                answers = group.first(lambda: validation_answers(snapshot(), dataset, device, progress, signalled))
                if dataset.test:
                    tested = group.first(lambda: final_test(snapshot(), dataset, device, progress, signalled))
                    trackers.scalars({"test/top1": tested.accuracy.top1}, run.steps_done)
            except DivergenceError as error:
                if not run.best:
                    group.first(lambda: drop_checkpoint(directory))  # a run that continued from it would diverge again
                    raise
                best = run.state.best_epoch
                first = run.state.probe.name if run.state.probe else "the first head"
                which = f"the best epoch so far, {best}, is" if best else f"{first} is"
                kept = f"{which} kept: --finish writes it into the bundle"
                raise DivergenceError(f"{error}; {kept}, --restart drops it") from None
            except Interrupted:
                said = group.first(lambda: interruption_line(snapshot()))  # the first one has written the checkpoint
                raise KeyboardInterrupt(said) from None
        bundle = group.first(lambda: commit_training(identity.bundle, snapshot(), directory, progress, tested, answers))
        trackers.result(final_values(bundle))
    if group.is_first:
        drop_checkpoint(directory)
    if bundle.training.early:
        progress.message(early_line(recipe.patience, bundle.training.best_name))
    for line in left_out_lines("could not be read any more during training", bundle.training.data.unreadable):
        progress.message(line)
    return bundle


def _workers(options: TrainOptions, autotune: Autotune, in_memory: bool, group: ProcessGroup) -> int:
    """Return the number of processes that load images for this process."""
    usual = min(group.cores, default_workers(autotune.execution.device, in_memory))
    return usual if options.workers is None else options.workers
