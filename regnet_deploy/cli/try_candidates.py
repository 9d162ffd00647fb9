"""``select --try``: the first candidates are trained, and the best by measured error is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from regnet_deploy.cli.executors import executor_of
from regnet_deploy.cli.output import TerminalProgress, limit_thread_spinning, print_message, progress
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.selection.selection import Selection

F = TypeVar("F", bound=Callable[..., Any])

#: Options that mean nothing without --try.
_OF_TRYING = (
    "data",
    "epochs",
    "lr",
    "batch_size",
    "crop_area",
    "flip",
    "val_split",
    "device",
    "threads",
    "retry",
    "ray",
    "tried",
)


def try_options(function: F) -> F:
    """Add ``--try`` and what belongs to it."""
    options = [
        click.option(
            "--try",
            "tries",
            type=click.IntRange(1, 500),
            metavar="N",
            help="Train the first N that differ; take the best.",
        ),
        click.option(
            "--data", type=click.Path(path_type=Path), metavar="DIR", help="With --try: images, as of `train`."
        ),
        click.option(
            "--epochs", type=click.IntRange(1), default=10, help="With --try: of the last round.  [default: 10]"
        ),
        click.option("--lr", type=float, default=0.05, help="With --try: rate for 128 images.  [default: 0.05]"),
        click.option("--batch-size", type=int, help="With --try.  [default: 128, or a quarter of the training images]"),
        click.option(
            "--crop-area", type=float, default=0.08, help="With --try: least share in a crop.  [default: 0.08]"
        ),
        click.option("--flip/--no-flip", default=True, help="With --try: mirror half of the images.  [default: flip]"),
        click.option("--val-split", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="With --try."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="With --try."),
        click.option("--threads", type=click.IntRange(1), help="With --try: of a trial.  [default: every core]"),
        click.option("--retry", is_flag=True, help="With --try: train those again that diverged or failed."),
        click.option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help="With --try: on Ray."),
        click.option("--store", "tried", type=click.Path(path_type=Path), help="With --try.  [default: BUNDLE.tried]"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def check_trying(options: dict[str, Any]) -> None:
    """Refuse what does not go together, and learn the number of classes from the data.

    Raises:
        UsageError: options of --try without it, no data, or another number of classes than the data have.
        DataError: the data cannot be read.
    """
    context = click.get_current_context()

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if options["tries"] is None:
        for parameter in context.command.params:
            if parameter.name in _OF_TRYING and given(parameter.name):
                raise UsageError(f"{parameter.opts[-1]} belongs to --try N: give both, or leave it out")
        return
    if options["data"] is None:
        raise UsageError("--try trains candidates: name a folder of images with --data DIR")
    from regnet_deploy.images.dataset import list_images

    classes = len(list_images(options["data"]).train)
    if given("classes") and options["classes"] != classes:
        raise UsageError(f"--classes {options['classes']}, and {options['data']} has {classes}: leave --classes out")
    options["classes"] = classes


def try_candidates(selection: Selection, options: dict[str, Any]) -> Selection:
    """Train the first candidates with successive halving and return the selection in the order of their errors."""
    limit_thread_spinning()
    for module in ("torch", "safetensors", "PIL"):
        require(module, "sweep")
    from regnet_deploy.selection.selection import diverse_ranks, ranked_by_measurement
    from regnet_deploy.sweeping.successive_halving import successive_halving
    from regnet_deploy.sweeping.sweep import SweepOptions
    from regnet_deploy.training.execution import Execution, resolve_device
    from regnet_deploy.training.recipe import Recipe

    recipe = Recipe(**{name: options[name] for name in ("epochs", "lr", "batch_size", "crop_area", "flip", "seed")})
    execution = Execution(resolve_device(options["device"]), channels_last=True)
    executor = executor_of(options["ray"], None, None, execution.device, options["threads"])
    trying = SweepOptions(
        options["tries"],
        val_split=options["val_split"],
        execution=execution,
        executor=executor,
        threads=options["threads"],
        retry=options["retry"],
    )
    ranks = diverse_ranks(selection, options["tries"])
    networks = [selection.candidate(rank).network for rank in ranks]
    path = options["tried"] or Path(f"{options['output']}.tried")
    try:
        with progress() as display:
            tried = successive_halving(
                networks,
                options["data"],
                options["resolution"],
                recipe,
                trying,
                path,
                TerminalProgress(display),
            )
    except KeyboardInterrupt:
        print_message(f"what was trained is in {path}; the same command goes on with the rest")
        raise
    order, errors = [ranks[each.candidate] for each in tried], [each.errors for each in tried]
    return ranked_by_measurement(selection, order, errors, str(options["data"]))
