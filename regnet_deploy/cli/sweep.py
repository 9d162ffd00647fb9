"""``regnet-deploy sweep``: a population of networks is drawn from a design space and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regnet_deploy.cli.executors import executor_of
from regnet_deploy.cli.options import RangeParam, json_option
from regnet_deploy.cli.output import TerminalProgress, limit_thread_spinning, print_json, print_message, progress
from regnet_deploy.errors import UsageError, require

#: The band in which the paper designs spaces, million MACs, and the pixels a side that it is about.
PAPER_MMACS, PAPER_RESOLUTION = (360.0, 400.0), 224


@click.command()
@click.option("--space", required=True, metavar="SPACE", help="A name that `spaces` lists, or a .yaml or .py file.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images: DIR/train/<class>/... and DIR/val/<class>/..., or DIR/<class>/... with --val-split.",
)
@click.option("--n", "n", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Networks.")
@click.option(
    "--mmacs",
    type=RangeParam(float),
    help="Band of complexity, million MACs at --resolution, with the classes of the data.  [default: 360:400 at 224]",
)
@click.option("--resolution", type=click.IntRange(8), default=224, show_default=True, help="Pixels a side.")
@click.option("--stem-stride", type=click.IntRange(1, 2), help="[default: 2, and 1 below 96 pixels]")
@click.option("--store", type=click.Path(path_type=Path), metavar="FILE", help="Results.  [default: <space>.sweep]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--training-seed",
    type=click.IntRange(0),
    help="Of first weights, order and augmentation: another one tells what is chance.  [default: that of the draws]",
)
@click.option("--epochs", default=10, show_default=True, help="Passes over the training images.")
@click.option("--batch-size", type=int, help="[default: 128, or a quarter of the training images if fewer]")
@click.option("--lr", default=0.05, show_default=True, help="Learning rate for 128 images; scaled with the batch.")
@click.option("--weight-decay", default=5e-5, show_default=True)
@click.option("--warmup-epochs", type=int, default=0, show_default=True)
@click.option("--crop-area", default=0.08, show_default=True, help="Smallest share of an image in a random crop.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror half of the training images.")
@click.option("--lighting", default=0.1, show_default=True, help="Deviation of the random colour shift; 0: none.")
@click.option("--precise-bn", default=8192, show_default=True, help="Images for batch norm's statistics; 0: none.")
@click.option("--val-split", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Share held out.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a trial.  [default: every core]")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Train several at a time on Ray: on this machine, or on the cluster at ADDRESS (auto, host:port, ray://...).",
)
@click.option("--cpus-per-trial", type=click.FloatRange(0, min_open=True), help="With --ray.  [default: 1]")
@click.option(
    "--gpus-per-trial", type=click.FloatRange(0), help="With --ray; 0.25: four a GPU.  [default: 1 with CUDA]"
)
@click.option("--retry", is_flag=True, help="Train those again that diverged or failed.")
@json_option
def command(
    space: str,
    data: Path,
    n: int,
    mmacs: tuple[float, float] | None,
    resolution: int,
    stem_stride: int | None,
    store: Path | None,
    val_split: float | None,
    device: str,
    precision: str,
    threads: int | None,
    ray: str | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    retry: bool,
    precise_bn: int,
    as_json: bool,
    seed: int,
    training_seed: int | None,
    **recipe: Any,
) -> None:
    """Train a population: networks drawn from SPACE, all with the same recipe.

    The defaults are the paper's regime for designing spaces: 10 epochs, rate 0.05, 360 to 400 MMACs at 224 pixels.
    Every result is in the store as soon as it is there; the same command goes on with what is left, and a larger --n
    adds networks.

    \b
    Example:
      regnet-deploy sweep --space AnyNetX_A --data my-images --n 50 --resolution 64 --mmacs 20:22
      regnet-deploy sweep --space RegNetX --data my-images --n 50 --resolution 64 --mmacs 20:22
      regnet-deploy analyze AnyNetX_A.sweep RegNetX.sweep --html spaces.html
    """
    from regnet_deploy.populations.trials import file_name
    from regnet_deploy.space.sampling import Band
    from regnet_deploy.space.space_file import find_space

    limit_thread_spinning()
    found = find_space(space)
    for module in ("torch", "safetensors", "PIL"):
        require(module, "sweep")
    from regnet_deploy.sweeping.sweep import SweepOptions, sweep
    from regnet_deploy.training.execution import Execution, ExecutionRequest
    from regnet_deploy.training.recipe import Recipe

    if mmacs is None:
        if resolution != PAPER_RESOLUTION:
            raise UsageError(
                f"at {resolution} pixels say which networks to train: --mmacs LOW:HIGH, million MACs (the paper's "
                "360:400 are those of 224 pixels)"
            )
        mmacs = PAPER_MMACS
    band = Band(mmacs[0] * 1e6, mmacs[1] * 1e6, resolution, stem_stride=stem_stride)
    # A cluster may have the GPUs that this machine has not.
    if ray not in (None, "local") and device != "auto":
        execution = Execution(device, precision, channels_last=True)
    else:
        (execution,) = ExecutionRequest(device, precision, channels_last="on").candidates()
    executor = executor_of(ray, cpus_per_trial, gpus_per_trial, execution.device, threads)
    options = SweepOptions(n, seed, val_split, execution, executor, threads, retry)
    path = store or Path(f"{file_name(found.name)}.sweep")
    try:
        with progress() as display:
            result = sweep(
                found,
                band,
                data,
                Recipe(precise_bn_images=precise_bn, seed=seed if training_seed is None else training_seed, **recipe),
                options,
                path,
                TerminalProgress(display),
            )
    except KeyboardInterrupt:
        print_message(f"what was done is in {path}; the same command goes on with the rest")
        raise
    if as_json:
        print_json(
            {
                "store": str(path),
                "space": found.name,
                "planned": result.planned,
                "done": len(result.errors),
                "diverged": result.diverged,
                "failed": result.failed,
                "errors_percent": {str(number): error for number, error in result.errors.items()},
                "messages": {str(number): message for number, message in result.messages.items()},
                "seconds": result.seconds,
            }
        )
    print_message(f"{path}: {result} - next: regnet-deploy analyze {path}")
