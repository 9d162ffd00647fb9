"""``regnet-deploy tune-training``: searches learning rate, weight decay and augmentation for a network and a folder."""

from __future__ import annotations

import contextlib
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    Whole,
    bundle_argument,
    json_option,
    ray_options,
    seed_type,
    threads_type,
)
from regnet_deploy.cli.output import limit_thread_spinning, print_json, print_message, print_table, terminal_progress
from regnet_deploy.cli.sweep import continued_from, make_executor
from regnet_deploy.errors import UsageError, require
from regnet_deploy.images.remote_files import as_written
from regnet_deploy.output_file import check_output_file, write_output_file

if TYPE_CHECKING:
    from regnet_deploy.sweeping.recipe_search import RecipeSearch, TriedRecipe

#: Suffixes of recipe files.
_YAML = (".yaml", ".yml")


@click.command()
@bundle_argument
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images, as for `train`. Recipes are compared on the validation images; the test images are for the figure "
    "at the end.",
)
@click.option("--trials", type=Whole(2, 10_000), default=9, show_default=True, help="Number of recipes.")
@click.option(
    "--vary",
    multiple=True,
    metavar="NAME=RANGE",
    help="Value of the recipe to search in LOW:HIGH, LOW:HIGH:log or A,B,... (may be repeated).  [default: lr around "
    "that of `train`, weight_decay, crop_area, label_smoothing]",
)
@click.option(
    "--space", type=click.Path(path_type=Path), metavar="FILE", help="The same as YAML, a line `NAME: RANGE` each."
)
@click.option(
    "--epochs", type=Whole(1, 1_000_000), help="Epochs of the last round.  [default: those that `train` would have]"
)
@click.option("--seed", type=seed_type(), default=0, show_default=True, help="Seed of the draws and of all trainings.")
@click.option(
    "--fine-tune/--from-scratch",
    default=None,
    help="Start from the weights of the bundle, or from random ones.  [default: as `train`]",
)
@click.option(
    "--val-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Share of each class held out for validation, if DIR has no val/.  [default: 0.1]",
)
@click.option(
    "--test-split",
    type=FiniteFloat(0, 1, min_open=True, max_open=True),
    help="Share of each class held out to test on, if DIR has no test/.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--threads", type=threads_type(), help="CPU threads of a training.  [default: all cores]")
@ray_options
@click.option("--retry", is_flag=True, help="Train recipes again that diverged or failed.")
@click.option(
    "--store", type=click.Path(path_type=Path), metavar="FILE", help="File of the results.  [default: BUNDLE.tuning]"
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recipe file to write, .yaml, for `train --recipe`.  [default: BUNDLE.recipe.yaml]",
)
@json_option
def command(bundle_path: str, **options: Any) -> None:
    """Search the recipe with which the network of BUNDLE is trained best on a folder of images.

    The first recipe is the one that `train` would use. All of them are trained for a few epochs, the best third for
    three times as many, and so on: successive halving, or with --ray its asynchronous form, ASHA. The best one is
    written as a recipe file; the bundle is not changed. Each result is stored at once, in a file like that of `sweep`:
    after an interruption, the same command continues.

    \b
    Example:
      regnet-deploy tune-training --data my-images
      regnet-deploy tune-training --data my-images --trials 27 --ray
      regnet-deploy tune-training --data my-images \\
        --vary lr=0.02:0.8:log --vary label_smoothing=0,0.1
      regnet-deploy train --data my-images --recipe regnet-bundle.recipe.yaml
    """
    limit_thread_spinning()
    bundle = open_bundle(bundle_path)
    named = f"{bundle_path}".rstrip("/")
    output = options["output"] or Path(f"{named}.recipe.yaml")
    check_output_file(output, _YAML, "a recipe")
    for module in ("torch", "safetensors", "PIL", "yaml"):
        require(module, "sweep")
    from regnet_deploy.bundle.training import Execution
    from regnet_deploy.sweeping.asha import load_ray_tune
    from regnet_deploy.sweeping.recipe_search import search_recipe
    from regnet_deploy.sweeping.recipe_space import parse_space, read_space
    from regnet_deploy.sweeping.sweep import SweepOptions
    from regnet_deploy.training.execution import ExecutionRequest
    from regnet_deploy.training.recipe import Recipe

    space = None if options["space"] is None else read_space(options["space"])
    if options["vary"]:
        space = {**(space or {}), **parse_space(_named(options["vary"]))}
    ray, device, precision = options["ray"], options["device"], options["precision"]
    if ray not in (None, "local") and device != "auto":  # a cluster may have GPUs even if this machine has none
        execution = Execution(device, precision, channels_last=True)
    else:
        execution = ExecutionRequest(device, precision, compiled="off").execution()
    if ray is not None:
        load_ray_tune()
    executor = make_executor(
        ray, options["cpus_per_trial"], options["gpus_per_trial"], execution.device, options["threads"]
    )
    given = {name: options[name] for name in ("epochs", "seed", "fine_tune") if options[name] is not None}
    training = SweepOptions(
        data=options["data"],
        store=options["store"] or Path(f"{named}.tuning"),
        recipe=Recipe(),
        val_split=options["val_split"],
        execution=execution,
        executor=executor,
        threads=options["threads"],
        retry=options["retry"],
        test_split=options["test_split"],
    )
    with continued_from(training.store), terminal_progress() as progress:
        found = search_recipe(bundle, given, space, options["trials"], training, progress, seed=options["seed"])
    write_output_file(output, _recipe_file(found, options["data"], options).encode())
    _print(found, bundle, training.store, output, options)


def _named(vary: tuple[str, ...]) -> dict[str, str]:
    """Return the ranges of ``NAME=RANGE`` by name.

    Raises:
        UsageError: a text has another form, or a name is there twice.
    """
    named: dict[str, str] = {}
    for text in vary:
        name, separator, values = text.partition("=")
        if not (name and separator and values):
            raise UsageError(f"--vary {text!r:.60}: give NAME=RANGE, such as lr=0.02:0.8:log")
        if name in named:
            raise UsageError(f"--vary names {name} twice: give one range for it")
        named[name] = values
    return named


def _recipe_file(found: RecipeSearch, data: Path, options: dict[str, Any]) -> str:
    """Return the YAML of the best recipe: values that were searched or given; rules decide all others, as before."""
    values = dict(found.best_values)
    values |= {name: options[name] for name in ("epochs", "fine_tune") if options[name] is not None}
    best, count = found.tried[0], len(found.tried)
    measured = f"{100 - best.error:.2f} % top-1 on the validation images, by which it was chosen"
    if best.test:
        measured += f"; an error of {best.test}"
    content = {
        "description": f"The best of {count} recipes for {data.absolute().name}. Found by tune-training.",
        "measured": measured,
        "rule": "fine-tune" if found.base.fine_tune else "auto",
        "values": values,
    }
    dumped: str = require("yaml", "sweep").safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return dumped


def _print(found: RecipeSearch, bundle: Bundle, store: Path, output: Path, options: dict[str, Any]) -> None:
    best = found.tried[0]
    if options["as_json"]:
        print_json(
            {
                "store": str(store),
                "recipe": str(output),
                "best": found.best_values,
                "tried": [_json(each) for each in found.tried],
            }
        )
    else:
        names = list(found.space)
        rows = [
            (
                f"{place}" if each.values else f"{place} (as train)",
                *(f"{each.values.get(name, getattr(found.base, name))}" for name in names),
                f"{max(each.errors, default=0)}",
                "-" if math.isinf(each.error) else f"{each.error:.2f}",
            )
            for place, each in enumerate(found.tried, start=1)
        ]
        print_table("", ("recipe", *names, "epochs", "val top-1 error (%)"), rows)
    if best.test:
        print_message(f"the best recipe: {best.test}")
    elif not found.unseen:
        print_message(
            "the error of the best recipe is too low, as it was chosen on these images: there are no test images "
            "(test/ or --test-split)"
        )
    with contextlib.suppress(ValueError):
        output = output.relative_to(Path.cwd())
    data, recipe = shlex.quote(as_written(str(options["data"]))), shlex.quote(str(output))
    print_message(f"wrote {output} - next: regnet-deploy train{bundle.argument} --data {data} --recipe {recipe}")


def _json(tried: TriedRecipe) -> dict[str, Any]:
    return {
        "values": dict(tried.values),
        "errors_percent": {str(epochs): error for epochs, error in tried.errors.items()},
        "test": None
        if tried.test is None
        else {
            "error_percent": tried.test.error,
            "low": tried.test.low,
            "high": tried.test.high,
            "images": tried.test.images,
        },
    }
