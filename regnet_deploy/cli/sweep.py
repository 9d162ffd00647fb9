"""``regnet-deploy sweep``: draws networks from a design space and trains them."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import (
    FiniteFloat,
    RangeParam,
    Whole,
    json_option,
    ray_options,
    recipe_options,
    scaled_number,
    seed_type,
    threads_type,
)
from regnet_deploy.cli.output import limit_thread_spinning, print_json, print_message, terminal_progress
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.sweeping.sweep import Executor

#: The band of complexity in which the paper designs spaces, million MACs, and its resolution in pixels.
PAPER_MMACS, PAPER_RESOLUTION = (360.0, 400.0), 224
#: Options that are fields of the recipe.
_RECIPE = ("epochs", "batch_size", "lr", "weight_decay", "warmup_epochs", "crop_area", "flip", "lighting")


@click.command()
@click.option(
    "--space", required=True, metavar="SPACE", help="Name of a space that `spaces` lists, or a .yaml or .py file."
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images: DIR/train/<class>/... and DIR/val/<class>/..., or DIR/<class>/... with --val-split. "
    "Also a CSV file, tar shards or Parquet, as for `train`.",
)
@click.option("--n", "n", type=Whole(1, 100_000), default=100, show_default=True, help="Number of networks.")
@click.option(
    "--mmacs",
    type=RangeParam(partial(scaled_number, prefix="M", quantity="MACs")),
    help="Range of complexity, million MACs at --resolution.  [default: 360:400 at 224 pixels]",
)
@click.option("--resolution", type=Whole(8, 2048), default=224, show_default=True, help="Width and height, pixels.")
@click.option(
    "--stem-stride",
    type=Whole(1, 2),
    help="Stride of the first convolution.  [default: 1 below 96 pixels, else 2]",
)
@click.option(
    "--store", type=click.Path(path_type=Path), metavar="FILE", help="File of the results.  [default: <space>.sweep]"
)
@click.option("--seed", type=seed_type(), default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--training-seed",
    type=seed_type(),
    help="Seed of initial weights, order and augmentation.  [default: --seed]",
)
@click.option(
    "--epochs", type=Whole(1, 1_000_000), default=10, show_default=True, help="Passes over the training images."
)
@click.option(
    "--batch-size", type=Whole(2, 1_000_000), help="[default: 128, or a quarter of the training images if fewer]"
)
@recipe_options(lr=0.05)
@click.option("--warmup-epochs", type=Whole(0, 1_000_000), default=0, show_default=True)
@click.option(
    "--precise-bn",
    type=Whole(0, 1_000_000_000),
    default=8192,
    show_default=True,
    help="Images for the batch norm statistics after each epoch; 0 disables it.",
)
@click.option(
    "--val-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Fraction of the images that is held out for validation.",
)
@click.option(
    "--test-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Fraction that is held out for a test with `train --test-split`: a sweep does not train or evaluate on it.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--threads", type=threads_type(), help="CPU threads of a trial.  [default: all cores]")
@ray_options
@click.option("--retry", is_flag=True, help="Train networks again that diverged or failed.")
@json_option
def command(**options: Any) -> None:
    """Draw networks from SPACE and train all of them with the same recipe.

    The defaults are those of the paper for the design of spaces: 10 epochs, learning rate 0.05, 360 to 400 MMACs at 224
    pixels. Each result is stored immediately. After an interruption, the same command continues; a larger --n adds
    networks.

    \b
    Example:
      regnet-deploy sweep --space AnyNetX_A --data my-images --mmacs 360:400
      regnet-deploy sweep --space RegNetX --data my-images --mmacs 360:400
      regnet-deploy analyze AnyNetX_A.sweep RegNetX.sweep --html spaces.html
    """
    from regnet_deploy.populations.trials import file_name
    from regnet_deploy.space.sampling import Band
    from regnet_deploy.space.space_file import find_space

    limit_thread_spinning()
    space = find_space(options["space"])
    for module in ("torch", "safetensors", "PIL"):
        require(module, "sweep")
    from regnet_deploy.bundle.training import Execution
    from regnet_deploy.sweeping.sweep import SweepOptions, sweep
    from regnet_deploy.training.execution import ExecutionRequest
    from regnet_deploy.training.recipe import Recipe

    lowest, highest = _mmacs(options)
    band = Band(lowest * 1e6, highest * 1e6, options["resolution"], stem_stride=options["stem_stride"])
    ray, device, precision = options["ray"], options["device"], options["precision"]
    # A cluster may have GPUs even if this machine has none.
    if ray not in (None, "local") and device != "auto":
        execution = Execution(device, precision, channels_last=True)
    else:
        execution = ExecutionRequest(device, precision, compiled="off").execution()
    recipe = Recipe(
        precise_bn_images=options["precise_bn"],
        seed=options["seed"] if options["training_seed"] is None else options["training_seed"],
        **{name: options[name] for name in _RECIPE},
    )
    training = SweepOptions(
        data=options["data"],
        store=options["store"] or Path(f"{file_name(space.name)}.sweep"),
        recipe=recipe,
        val_split=options["val_split"],
        execution=execution,
        executor=make_executor(
            ray, options["cpus_per_trial"], options["gpus_per_trial"], execution.device, options["threads"]
        ),
        threads=options["threads"],
        retry=options["retry"],
        test_split=options["test_split"],
    )
    with continued_from(training.store), terminal_progress() as progress:
        result = sweep(space, band, options["n"], training, progress, seed=options["seed"])
    if options["as_json"]:
        print_json(
            {
                "store": str(training.store),
                "space": space.name,
                "planned": result.planned,
                "done": len(result.errors),
                "diverged": result.diverged,
                "failed": result.failed,
                "errors_percent": {str(number): error for number, error in result.errors.items()},
                "messages": {str(number): message for number, message in result.messages.items()},
                "seconds": result.seconds,
            }
        )
    print_message(f"{training.store}: {result} - next: regnet-deploy analyze {shlex.quote(str(training.store))}")


def _mmacs(options: dict[str, Any]) -> tuple[float, float]:
    """Return the range of complexity, million MACs.

    Raises:
        UsageError: it is not given, and the default does not apply to the resolution.
    """
    if options["mmacs"] is not None:
        lowest, highest = options["mmacs"]
        return lowest, highest
    if options["resolution"] != PAPER_RESOLUTION:
        raise UsageError(
            f"--resolution {options['resolution']} requires --mmacs LOW:HIGH, million MACs (the default 360:400 is for "
            "224 pixels)"
        )
    return PAPER_MMACS


@contextlib.contextmanager
def continued_from(store: Path) -> Iterator[None]:
    """Say, where the context is interrupted, that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"completed trials are in {store}: the same command continues") from None


def make_executor(
    ray: str | None, cpus: float | None, gpus: float | None, device: str, threads: int | None
) -> Executor:
    """Return the executor of the trials: Ray at an address, or this process where ``ray`` is None.

    Raises:
        UsageError: the options contradict each other.
        MissingExtra: Ray is not installed.
    """
    if ray is None:
        from regnet_deploy.sweeping.trial import run_locally

        for name, value in (("--cpus-per-trial", cpus), ("--gpus-per-trial", gpus)):
            if value is not None:
                raise UsageError(f"{name} requires --ray: without it, trials run one after the other in this process")
        return run_locally
    require("ray", "ray")
    if threads is not None:
        raise UsageError("with --ray, a trial has as many threads as CPUs: give --cpus-per-trial instead of --threads")
    from regnet_deploy.sweeping.ray_executor import RayExecutor

    if gpus and device != "cuda":
        raise UsageError(f"--gpus-per-trial {gpus:g} requires --device cuda, but the device is {device}")
    return RayExecutor(ray, cpus or 1.0, (1.0 if device == "cuda" else 0.0) if gpus is None else gpus)
