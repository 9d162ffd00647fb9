"""The option ``--try`` of ``select``, and the options that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from regnet_deploy.cli.options import FiniteFloat, PositiveFloat, Whole, threads_type
from regnet_deploy.cli.output import limit_thread_spinning, terminal_progress
from regnet_deploy.cli.sweep import continued_from, make_executor
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.selection.selection import Selection

F = TypeVar("F", bound=Callable[..., Any])

#: Images of a trial, recipe and execution: the options that require --try.
_OPTIONS = (
    click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="With --try: images, as for `train`."),
    click.option(
        "--epochs", type=Whole(1, 1_000_000), default=10, help="With --try: epochs of the last round.  [default: 10]"
    ),
    click.option(
        "--lr",
        type=PositiveFloat(),
        default=0.05,
        help="With --try: learning rate for a batch of 128 images.  [default: 0.05]",
    ),
    click.option(
        "--batch-size",
        type=Whole(2, 1_000_000),
        help="With --try.  [default: 128, or a quarter of the training images if fewer]",
    ),
    click.option(
        "--crop-area",
        type=FiniteFloat(0, 1, min_open=True),
        default=0.08,
        help="With --try: smallest area of a random crop, as a fraction of the image.  [default: 0.08]",
    ),
    click.option("--flip/--no-flip", default=True, help="With --try: mirror half of the images.  [default: flip]"),
    click.option(
        "--val-split",
        type=FiniteFloat(0, 1, min_open=True, max_open=True),
        help="With --try: fraction of the images that is held out for validation.",
    ),
    click.option(
        "--test-split",
        type=FiniteFloat(0, 1, min_open=True, max_open=True),
        help="With --try: fraction that is held out to test the chosen candidate on, if DIR has no test/.",
    ),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="With --try or a limit of time."
    ),
    click.option(
        "--threads", type=threads_type(), help="With --try or a limit of time: CPU threads.  [default: all cores]"
    ),
    click.option("--retry", is_flag=True, help="With --try: train candidates again that diverged or failed."),
    click.option(
        "--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help="With --try: train on Ray, as `sweep`."
    ),
    click.option(
        "--store", type=click.Path(path_type=Path), help="With --try: file of the results.  [default: BUNDLE.tried]"
    ),
)
_NAMES = (
    "data",
    "epochs",
    "lr",
    "batch_size",
    "crop_area",
    "flip",
    "val_split",
    "test_split",
    "device",
    "threads",
    "retry",
)


def try_options(function: F) -> F:
    """Add ``--try`` and the options that belong to it."""
    count = click.option(
        "--try",
        "tries",
        type=Whole(1, 500),
        metavar="N",
        help="Train the first N candidates that differ in shape, and take the best.",
    )
    for option in reversed((count, *_OPTIONS)):
        function = option(function)
    return function


def check_try_options(options: dict[str, Any], *, by_time: bool = False) -> None:
    """Check the options that belong to ``--try``, and take the number of classes from the data.

    Args:
        options: of the command.
        by_time: whether a limit of time is given, to which ``--device`` and ``--threads`` belong too.

    Raises:
        UsageError: such an option is given without ``--try``, ``--data`` is missing, or ``--classes`` contradicts it.
        DataError: the folder cannot be read.
    """
    context = click.get_current_context()

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if options["tries"] is None:
        for parameter in context.command.params:
            if by_time and parameter.name in ("device", "threads"):
                continue
            if parameter.name in (*_NAMES, "ray", "store") and given(parameter.name):
                raise UsageError(f"{parameter.opts[-1]} requires --try N: add it, or omit {parameter.opts[-1]}")
        return
    if options["data"] is None:
        raise UsageError("--try trains candidates: give a folder of images with --data DIR")
    from regnet_deploy.images.listing import list_images

    with terminal_progress() as progress:
        classes = len(list_images(options["data"], progress=progress).train)
    if given("classes") and options["classes"] != classes:
        raise UsageError(f"--classes is {options['classes']}, but {options['data']} has {classes}: omit --classes")
    options["classes"] = classes


def try_candidates(selection: Selection, options: dict[str, Any]) -> Selection:
    """Train the first candidates, and return the selection ranked by their measured errors."""
    limit_thread_spinning()
    for module in ("torch", "safetensors", "PIL"):
        require(module, "sweep")
    from regnet_deploy.bundle.training import Execution
    from regnet_deploy.sweeping.successive_halving import select_by_training
    from regnet_deploy.sweeping.sweep import SweepOptions
    from regnet_deploy.training.execution import resolve_device
    from regnet_deploy.training.recipe import Recipe

    execution = Execution(resolve_device(options["device"]), channels_last=True)
    recipe = Recipe(**{name: options[name] for name in ("epochs", "lr", "batch_size", "crop_area", "flip", "seed")})
    training = SweepOptions(
        data=options["data"],
        store=options["store"] or Path(f"{options['output']}.tried"),
        recipe=recipe.for_channels(selection.budget.input_channels),
        val_split=options["val_split"],
        execution=execution,
        executor=make_executor(options["ray"], None, None, execution.device, options["threads"]),
        threads=options["threads"],
        retry=options["retry"],
        test_split=options["test_split"],
    )
    with continued_from(training.store), terminal_progress() as progress:
        return select_by_training(selection, options["tries"], training, progress)
