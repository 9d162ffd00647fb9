"""``regnet-deploy select``: from a budget to a bundle with an architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import DEFAULT_PATH, create_bundle, ensure_creatable
from regnet_deploy.cli.options import RangeParam, json_option
from regnet_deploy.cli.output import bundle_argument_text, print_json, print_message, stdout_console
from regnet_deploy.cli.selection_output import print_candidates, print_selection
from regnet_deploy.cli.try_candidates import check_trying, try_candidates, try_options
from regnet_deploy.errors import UsageError

if TYPE_CHECKING:
    from regnet_deploy.selection.budget import Budget


@click.command()
@click.option("--gflops", "gmacs", type=float, metavar="GMACS", help="Budget: 10^9 multiply-adds an image (MACs).")
@click.option("--published", metavar="NAME", help="Take this published network instead, such as RegNetY-4.0GF.")
@click.option("--trial", metavar="STORE[:N]", help="Take a network of your own sweep instead: its best, or number N.")
@click.option("--family", default="any", show_default=True, help="x, y (with squeeze-and-excitation), or any.")
@click.option("--tolerance", type=float, default=1.0, show_default=True, help="Percent by which MACs may miss.")
@click.option("--resolution", type=int, default=224, show_default=True, help="Pixels a side of the image.")
@click.option("--classes", type=int, default=1000, show_default=True, help="Outputs of the classifier.")
@click.option("--stem-stride", type=click.IntRange(1, 2), help="1 keeps the resolution; default 1 below 96 pixels.")
@click.option("--max-params", type=float, metavar="M", help="Most parameters, in millions.")
@click.option("--max-acts", type=float, metavar="M", help="Most activations at this resolution, in millions.")
@click.option("--depth", type=RangeParam(int), help="Blocks, n or low:high.  [default: 12:28]")
@click.option("--group-width", type=RangeParam(int), help="g, n or low:high.  [default: 1:128; 1:256 above 8 GMACs]")
@click.option("--group-multiple", type=int, default=1, help="Group widths must be multiples of N (8: tensor cores).")
@click.option("--w0", "w_0", type=RangeParam(int), help="w_0, n or low:high.  [default: 8:256; 8:384 above 8 GMACs]")
@click.option("--wa", "w_a", type=RangeParam(float), help="w_a, low:high.  [default: 8:256]")
@click.option("--wm", "w_m", type=RangeParam(float), help="w_m, n or low:high.  [default: 2:3]")
@click.option("--params-bound", type=RangeParam(float), help="a:c for parameters < a + c F million.  [default: 3:5.5]")
@click.option("--acts-bound", type=float, help="c for activations < c sqrt(F) million.  [default: 6.5]")
@click.option("--no-bounds", is_flag=True, help="Lift the bounds on parameters and activations.")
@click.option("--show", type=click.IntRange(1, 1000), default=5, show_default=True, help="Candidates to list.")
@click.option(
    "--evidence",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own sweep (its store, or CSV) ranks, if it predicts errors better. May be given several times.",
)
@try_options
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Which candidates --plot draws of over 5,000; of --try."
)
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the population: .png, .svg or .pdf.")
@click.option("-o", "--output", type=click.Path(), default=DEFAULT_PATH, show_default=True, help="Bundle to write.")
@click.option("--force", is_flag=True, help="Start the bundle anew even if it holds trained weights.")
@json_option
def command(**options: Any) -> None:
    """Pick the best RegNet for a compute budget and start a bundle with it.

    All networks of the paper's constrained space that meet the budget are found and ranked by their likelihood under
    the trends of the published networks. F in the bounds stands for GMACs at 224 pixels. With --evidence the error that
    a regression on your own trained networks predicts ranks them - if, on trials left out, it predicts better than
    those trends do. With --try the first N of the ranking that are not nearly the same network are trained in rounds
    (successive halving): all of them a little, the better third three times as long, and so on; the least error is
    picked.

    \b
    Example:
      regnet-deploy select --gflops 4
      regnet-deploy select --gflops 0.8 --family x --group-multiple 8 --classes 10 -o my-bundle
      regnet-deploy select --gflops 0.4 --family x --evidence RegNetX.sweep
      regnet-deploy select --gflops 0.1 --resolution 112 --try 9 --data my-images
      regnet-deploy select --published RegNetY-4.0GF
      regnet-deploy select --trial AnyNetX_E.sweep
    """
    given = [name for name in ("gmacs", "published", "trial") if options[name] is not None]
    if len(given) > 1:
        raise UsageError("give one of --gflops, --published and --trial: a network taken by name has the MACs it has")
    if not given:
        raise UsageError("give a budget such as --gflops 4, or a published network such as --published RegNetY-4.0GF")
    {"gmacs": _search, "published": _take_published, "trial": _take_trial}[given[0]](options)


def _search(options: dict[str, Any]) -> None:
    from regnet_deploy.selection.bundle_parts import evidence_part, measured_part, selection_parts
    from regnet_deploy.selection.selection import SEARCHED, select

    if options["plot"]:
        from regnet_deploy.plotting import check_plot_path
        from regnet_deploy.selection.plot import plot_selection

        check_plot_path(options["plot"])
    check_trying(options)
    budget = _budget(options, options["gmacs"] * 1e9)
    selection = select(budget, options["evidence"])
    if options["tries"] is not None:
        ensure_creatable(options["output"], replace=options["force"])
        selection = try_candidates(selection, options)
    shown = [selection.candidate(rank) for rank in range(min(options["show"], selection.considered))]
    if options["plot"]:
        plot_selection(selection, options["plot"], seed=options["seed"])
    bundle = create_bundle(options["output"], selection_parts(selection), replace=options["force"])
    if options["plot"]:
        print_message(f"wrote {options['plot']}")
    if options["as_json"]:
        print_json(
            {
                "budget": budget.to_json(),
                "considered": selection.considered,
                "searched": SEARCHED,
                "pick": shown[0].to_json(),
                "runners_up": [candidate.to_json() for candidate in shown[1:]],
                "reason": selection.reason(),
                "expected_error": selection.expectation.to_json(),
                "other_family": None if selection.other_expectation is None else selection.other_expectation.to_json(),
                **evidence_part(selection),
                **measured_part(selection),
                "bundle": str(bundle.path),
            }
        )
    else:
        title = (
            f"{selection.considered:,} candidates with {options['gmacs']:g} GMACs ± {options['tolerance']:g} % "
            f"at {budget.resolution} pixels, {budget.classes:,} classes"
        )
        print_selection(title, selection, shown)
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle_argument_text(bundle.path)} --data DIR")


def _take_published(options: dict[str, Any]) -> None:
    from regnet_deploy.selection.bundle_parts import published_parts
    from regnet_deploy.selection.selection import published_candidate
    from regnet_deploy.space.published import find_published

    _refuse_options_of_a_search({"published", "resolution", "classes", "stem_stride", "output", "force", "as_json"})
    published = find_published(options["published"])
    budget = _budget(options, float(published.macs))
    candidate = published_candidate(published, budget)
    budget = replace(budget, macs=float(candidate.macs), family=published.family)
    bundle = create_bundle(options["output"], published_parts(published, candidate, budget), replace=options["force"])
    if options["as_json"]:
        print_json(
            {
                "budget": budget.to_json(),
                "considered": 1,
                "pick": {"name": published.architecture_name, **candidate.to_json()},
                "runners_up": [],
                "reason": f"asked for by name; {published.source}",
                "bundle": str(bundle.path),
            }
        )
    else:
        print_candidates(
            f"{published.architecture_name} at {budget.resolution} pixels (weights not included)", [candidate]
        )
        stdout_console().print(f"Source: {published.source}; rounding of widths: {published.rounding}.", soft_wrap=True)
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle_argument_text(bundle.path)} --data DIR")


def _take_trial(options: dict[str, Any]) -> None:
    from regnet_deploy.populations.reader import find_trial
    from regnet_deploy.selection.bundle_parts import trial_parts

    _refuse_options_of_a_search({"trial", "output", "force", "as_json"})
    word, _, number = options["trial"].rpartition(":")
    path, wanted = (Path(word), int(number)) if word and number.isdecimal() else (Path(options["trial"]), None)
    trial, outcome, identity = find_trial(path, wanted)
    parts = trial_parts(path, trial, outcome, identity)
    bundle = create_bundle(options["output"], parts, replace=options["force"])
    if options["as_json"]:
        print_json({**parts["architecture"], **parts["selection"], "bundle": str(bundle.path)})
    else:
        stdout_console().print(
            f"{parts['architecture']['name']}: depths {' '.join(map(str, trial.network.depths))}, widths "
            f"{' '.join(map(str, trial.network.widths))}, {trial.macs / 1e6:.4g} MMACs, "
            f"{trial.parameters / 1e6:.3g} M parameters; {parts['selection']['reason']}.",
            soft_wrap=True,
            markup=False,
        )
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle_argument_text(bundle.path)} --data DIR")


def _refuse_options_of_a_search(kept: set[str]) -> None:
    """Refuse what could have no effect on a network that is asked for by name."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in kept:
            raise UsageError(
                f"{parameter.opts[-1]} is for a search: give --gflops instead of the name, or leave it out"
            )


def _budget(options: dict[str, Any], macs: float) -> Budget:
    from regnet_deploy.errors import did_you_mean
    from regnet_deploy.selection.budget import FAMILIES, Budget
    from regnet_deploy.space.enumeration import Bounds

    family = options["family"].lower().removeprefix("regnet").strip("-_ ")
    if family not in FAMILIES:
        raise UsageError(
            f"--family must be one of {', '.join(FAMILIES)}, got {options['family']!r}{did_you_mean(family, FAMILIES)}"
        )
    given = {
        "d": options["depth"],
        "g": options["group_width"],
        "w_0": options["w_0"],
        "w_a": options["w_a"],
        "w_m": options["w_m"],
        "parameters": options["params_bound"],
        "activations": options["acts_bound"],
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if options["no_bounds"]:
        chosen.update(parameters=None, activations=None)
    return Budget(
        macs=macs,
        tolerance=options["tolerance"] / 100,
        family=family,
        resolution=options["resolution"],
        classes=options["classes"],
        max_parameters=None if options["max_params"] is None else options["max_params"] * 1e6,
        max_activations=None if options["max_acts"] is None else options["max_acts"] * 1e6,
        stem_stride=options["stem_stride"],
        bounds=Bounds(g_multiple=options["group_multiple"], **chosen),
    )
