"""``regnet-deploy train``: trains the network of a bundle on a folder of images."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import click

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    PositiveFloat,
    Whole,
    bundle_argument,
    json_option,
    ray_option,
    seed_type,
    threads_type,
)
from regnet_deploy.cli.output import (
    limit_thread_spinning,
    print_json,
    print_message,
    terminal_progress,
)
from regnet_deploy.errors import UsageError, require
from regnet_deploy.images.remote_files import as_written
from regnet_deploy.progress import NoProgress, Progress

_SWITCH = click.Choice(["auto", "on", "off"])


@click.command()
@bundle_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images: DIR/train/<class>/... and DIR/val/<class>/..., or DIR/<class>/... (see --val-split). Of "
    "DIR/test/<class>/... see --test-split. Also a CSV file, tar shards or Parquet. Required, except with --finish.",
)
@click.option(
    "--val-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Share of each class held out for validation, if DIR has no val/.  [default: 0.1]",
)
@click.option(
    "--test-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Share of each class held out to test on, if DIR has no test/. The chosen weights are measured on test images "
    "at the end; nothing is chosen by them.",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE.yaml",
    help="Recipe of `regnet-deploy recipes`, or of a file. Other options win over it.  [default: auto]",
)
@click.option(
    "--epochs",
    type=Whole(1, 1_000_000),
    help="Passes over the training images.  [default: 100, and 2,000 steps at least]",
)
@click.option("--steps", type=Whole(1, 1_000_000_000), help="Steps in all, in place of --epochs.")
@click.option(
    "--minutes",
    type=FiniteFloat(0, 1e6, min_open=True),
    help="Time of the command, in place of --epochs: as many steps as fit, by the speed that is measured first.",
)
@click.option(
    "--batch-size",
    type=Whole(2, 1_000_000),
    help="Images in a step.  [default: 32, 64 from 20,000 images on, 128 from 100,000 on; at most a quarter of them]",
)
@click.option(
    "--lr",
    type=PositiveFloat(),
    help="Learning rate for 128 images; scaled with the batch.  [default: 0.4, 0.283 or 0.2, by batch size]",
)
@click.option("--weight-decay", type=FiniteFloat(0, 1e9), help="Weight decay.  [default: 5e-5, of weights only]")
@click.option(
    "--crop-area",
    type=FiniteFloat(0, 1, min_open=True),
    help="Smallest area of a random crop, as a fraction of the image; 1: no random crops.  [default: 0.5, or "
    "0.7 if mirrored images are other classes; less in long runs]",
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror half of the training images at random.  [default: if a first classifier recognizes mirrored images]",
)
@click.option("--lighting", type=FiniteFloat(0, 1e9), help="Deviation of the random color shift.  [default: 0.1]")
@click.option(
    "--warmup-epochs",
    type=Whole(0, 1_000_000),
    help="Epochs with a rising learning rate.  [default: a tenth of the steps]",
)
@click.option(
    "--label-smoothing",
    type=FiniteFloat(0, 1, max_open=True),
    help="Share of the target that is spread over all classes.  [default: 0]",
)
@click.option(
    "--precise-bn",
    "precise_bn_images",
    type=Whole(0, 1_000_000_000),
    help="Training images for the batch norm statistics of each evaluation.  [default: 0, running averages]",
)
@click.option(
    "--seed",
    type=seed_type(),
    help="Seed of initial weights, held-out images, order and augmentation.  [default: 0]",
)
@click.option(
    "--fine-tune/--from-scratch",
    default=None,
    help="Start from the weights of the bundle, or from random ones.  [default: fine-tune imported weights, and those "
    "of other classes]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: fp32 on a CPU, bf16 on a GPU that has it. fp16, for GPUs without bf16, scales the loss. Another "
    "precision gives other weights.",
)
@click.option("--channels-last", type=_SWITCH, default="auto", show_default=True, help="Memory layout NHWC.  auto: on.")
@click.option(
    "--compile",
    "compiled",
    type=_SWITCH,
    default="auto",
    show_default=True,
    help="torch.compile; auto: on CUDA for 10,000 steps or more.",
)
@click.option(
    "--threads",
    type=threads_type(),
    help="CPU threads; with --ray, CPUs of each worker.  [default: all that it may use]",
)
@click.option(
    "--micro-batch",
    type=Whole(4, 1_000_000),
    help="Images taken through the network at a time, to use less memory: a step adds up their gradients. Batch norm "
    "has the statistics of so many.  [default: the whole batch]",
)
@click.option(
    "--sync-bn",
    is_flag=True,
    help="Of several processes (torchrun): batch norm with the statistics of all their images.",
)
@click.option(
    "--workers",
    type=Whole(0, 256),
    help="Processes that load images.  [default: up to 8 with CUDA, 0 or 1 on the CPU]",
)
@click.option(
    "--cache",
    default="auto",
    show_default=True,
    metavar="auto|off|DIR",
    help="Where decoded training images are stored: in memory, or if they are too many in a file of the run directory; "
    "nowhere; or in a file of DIR. The weights do not depend on it.",
)
@ray_option("Train in several processes (Ray Train)")
@click.option(
    "--ray-workers",
    type=Whole(1, 100_000),
    help="With --ray: number of these processes.  [default: one for each GPU, or without GPUs for each machine]",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Folder for checkpoint, earlier weights and TensorBoard files.  [default: BUNDLE.training]",
)
@click.option(
    "--track",
    type=click.Choice(["tensorboard", "mlflow", "wandb"]),
    multiple=True,
    help="Where the run is shown while it trains (may be repeated); nothing is sent anywhere without it.  [default: "
    "tensorboard, into the run directory]",
)
@click.option(
    "--checkpoint-seconds", type=FiniteFloat(0, 1e9), default=30.0, show_default=True, help="Time between checkpoints."
)
@click.option(
    "--restart", is_flag=True, help="Discard an unfinished run, or train a trained network again from the start."
)
@click.option(
    "--finish",
    is_flag=True,
    help="End an unfinished run: write its best weights so far into the bundle. No other option is needed.",
)
@json_option
def command(
    bundle_path: str,
    data: Path | None,
    val_split: float | None,
    test_split: float | None,
    device: str,
    precision: str,
    channels_last: str,
    compiled: str,
    threads: int | None,
    micro_batch: int | None,
    sync_bn: bool,
    workers: int | None,
    cache: str,
    ray: str | None,
    ray_workers: int | None,
    run_dir: Path | None,
    checkpoint_seconds: float,
    restart: bool,
    finish: bool,
    track: tuple[str, ...],
    as_json: bool,
    recipe_name: str | None,
    **recipe: Any,
) -> None:
    """Train the network of BUNDLE on a folder of images.

    The recipe follows from the images and the length of the run, and from a logistic regression on small pixels, which
    is the baseline and says whether images can be mirrored (docs/training.md). Imported weights, and weights of other
    classes, are fine-tuned: a linear probe of their features is the baseline and the first head, and epochs, rates and
    crops have other defaults (docs/fine-tuning.md). After an interruption, the same command continues from the last
    checkpoint. It writes the best weights into the bundle, with labels and metrics. Earlier weights are kept, unless
    the new ones are better. The run directory beside the bundle has them, the checkpoint and the TensorBoard files.

    \b
    Example:
      regnet-deploy select --gflops 0.4 --classes 10
      regnet-deploy train --data my-images --minutes 10
      tensorboard --logdir regnet-bundle.training
    """
    from regnet_deploy.images.listing import list_images
    from regnet_deploy.training.recipe_file import load_recipe

    limit_thread_spinning()
    if data is None and not finish:
        raise UsageError("give a folder of images with --data DIR")
    if ray_workers is not None and ray is None:
        raise UsageError("--ray-workers requires --ray: torchrun has --nproc-per-node")
    lengths = [f"--{name}" for name in ("epochs", "steps", "minutes") if recipe[name] is not None]
    if len(lengths) > 1:
        raise UsageError(f"{' and '.join(lengths)} say how long the run is: give one of them")
    # What is wrong is reported before torch is imported, which takes seconds.
    open_bundle(bundle_path)
    given = {name: value for name, value in recipe.items() if value is not None}
    named = None if recipe_name is None else load_recipe(recipe_name).with_values(given)
    if data is not None and "://" not in str(data) and not data.exists():
        list_images(data)  # raises
    for module in ("torch", "safetensors", "PIL"):
        require(module, "train")
    from regnet_deploy.report.card import baseline
    from regnet_deploy.tracking.trackers import DEFAULT_TRACKERS
    from regnet_deploy.training.commit import training_summary
    from regnet_deploy.training.distributed import is_first_process
    from regnet_deploy.training.execution import ExecutionRequest
    from regnet_deploy.training.ray_workers import RayWorkers
    from regnet_deploy.training.train import TrainOptions, train

    execution = ExecutionRequest(device, precision, channels_last, compiled, threads, sync_bn, micro_batch)
    options = TrainOptions(
        execution,
        workers,
        val_split,
        run_dir,
        restart,
        finish,
        checkpoint_seconds,
        test_split,
        cache,
        track=track or DEFAULT_TRACKERS,
        ray=None if ray is None else RayWorkers(ray, ray_workers),
    )
    with contextlib.ExitStack() as display:
        progress: Progress = NoProgress()
        if is_first_process():
            progress = display.enter_context(terminal_progress())
        bundle = train(bundle_path, data, named or given, options, progress)
    if not is_first_process():
        return
    training = bundle.training
    compared, following = baseline(bundle), f"regnet-deploy export{bundle.argument}"
    if compared and compared.verdict:
        print_message(f"always answering {compared.label} gives {compared.top1:.2%}, and {compared.verdict}")
        following = "train longer (--minutes) or on more images"
        if data is not None:
            following = f"regnet-deploy check {shlex.quote(as_written(str(data)))}, and {following}"
    if as_json:
        shown = None if compared is None else dataclasses.asdict(compared)
        print_json({"bundle": str(bundle.path), **training_summary(training), "baseline": shown})
        return
    best = training.best
    print_message(
        f"{bundle.path}: weights of {training.best_name}, {best.val_top1:.2%} of {best.val_images:,} validation images "
        f"right; {f'{training.test}; ' if training.test else ''}{training.data.train_images:,} images, "
        f"{training.seconds:.0f} s - "
        f"next: {following}"
    )
