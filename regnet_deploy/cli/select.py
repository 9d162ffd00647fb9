"""``regnet-deploy select``: selects a network for a compute budget and creates a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.api.bundles import create_bundle, select, select_published
from regnet_deploy.bundle import DEFAULT_PATH, ensure_creatable
from regnet_deploy.cli.budget_options import budget_of
from regnet_deploy.cli.options import FiniteFloat, PositiveFloat, RangeParam, Scaled, Whole, json_option, seed_type
from regnet_deploy.cli.output import print_json, print_message, print_table, print_text
from regnet_deploy.cli.timed_selection import chooses_by_time, print_timed, select_timed, timed_options
from regnet_deploy.cli.try_candidates import check_try_options, try_candidates, try_options
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.bundle.manifest import ExpectedError
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.candidate_table import Candidate
    from regnet_deploy.selection.selection import Selection


@click.command()
@click.option(
    "--gflops",
    "gmacs",
    type=Scaled("G", "MACs"),
    metavar="GMACS",
    help="Budget: 10^9 multiply-adds (MACs) per image; 400M is 0.4.",
)
@click.option("--published", metavar="NAME", help="Take a published network instead, such as RegNetY-4.0GF.")
@click.option(
    "--weights",
    metavar="FILE",
    help="With --published: import these weights of it, as `regnet-deploy import` does.",
)
@click.option(
    "--trial", metavar="STORE[:N]", help="Take a network of a sweep instead: the best one, or the one with number N."
)
@click.option("--family", default="any", show_default=True, help="x, y (with squeeze-and-excitation), or any.")
@click.option(
    "--tolerance",
    type=FiniteFloat(0, 50, min_open=True),
    default=1.0,
    show_default=True,
    help="Accepted deviation from the budget, percent.",
)
@click.option(
    "--resolution", type=Whole(16, 2048), default=224, show_default=True, help="Width and height of the image, pixels."
)
@click.option("--classes", type=Whole(1, 1_000_000), default=1000, show_default=True, help="Number of classes.")
@click.option(
    "--stem-stride",
    type=Whole(1, 2),
    help="Stride of the first convolution.  [default: 1 below 96 pixels, else 2]",
)
@click.option(
    "--channels",
    "input_channels",
    type=click.Choice(["1", "3"]),
    default="3",
    show_default=True,
    help="Channels of the images: 3 is RGB, 1 is gray.",
)
@click.option(
    "--max-params", type=Scaled("M", "parameters"), metavar="M", help="Maximum number of parameters, millions."
)
@click.option(
    "--max-acts",
    type=Scaled("M", "activations"),
    metavar="M",
    help="Maximum number of activations at this resolution, millions.",
)
@click.option("--depth", type=RangeParam(int), help="Number of blocks, n or low:high.  [default: 12:28]")
@click.option("--group-width", type=RangeParam(int), help="g, n or low:high.  [default: 1:128; 1:256 above 8 GMACs]")
@click.option(
    "--group-multiple", type=Whole(1, 4096), default=1, help="Group widths are multiples of N (8 for tensor cores)."
)
@click.option("--w0", "w_0", type=RangeParam(int), help="w_0, n or low:high.  [default: 8:256; 8:384 above 8 GMACs]")
@click.option("--wa", "w_a", type=RangeParam(float), help="w_a, low:high.  [default: 8:256]")
@click.option("--wm", "w_m", type=RangeParam(float), help="w_m, n or low:high.  [default: 2:3]")
@click.option(
    "--params-bound", type=RangeParam(float), help="a:c for parameters < a + c F, millions.  [default: 3:5.5]"
)
@click.option("--acts-bound", type=PositiveFloat(), help="c for activations < c sqrt(F), millions.  [default: 6.5]")
@click.option("--no-bounds", is_flag=True, help="Remove the bounds on parameters and activations.")
@click.option("--show", type=Whole(1, 1000), default=5, show_default=True, help="Number of candidates to list.")
@click.option(
    "--evidence",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rank by a sweep of your own (store or CSV) if it predicts errors better. Repeatable.",
)
@timed_options
@try_options
@click.option("--seed", type=seed_type(), default=0, help="Seed of --try, and of the sample that --plot draws.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Plot the candidates: .png, .svg or .pdf.")
@click.option("-o", "--output", type=click.Path(), default=DEFAULT_PATH, show_default=True, help="Bundle to write.")
@click.option("--force", is_flag=True, help="Replace the bundle even if it holds trained weights.")
@json_option
def command(**options: Any) -> None:
    """Select the best RegNet for a compute budget, and create a bundle with it.

    The command finds all networks of the paper's constrained space that meet the budget, and ranks them by their
    likelihood under the trends of the published networks. F in the bounds is the number of GMACs at 224 pixels.

    With --evidence, a regression on your own trained networks ranks the candidates by predicted error, if it predicts
    trials that were left out of the fit better than the trends do.

    With --try, the first N candidates that differ in shape are trained in rounds (successive halving): all of them for
    a few epochs, the best third for three times as many, and so on. The candidate with the lowest error is selected.

    With --latency-ms, --p99-ms, --throughput or --like, the time on this machine decides: a latency model, for which a
    few networks are measured once, makes a shortlist, and the shortlist is measured. --gflops is the maximum then.

    \b
    Example:
      regnet-deploy select --gflops 4
      regnet-deploy select --latency-ms 5
      regnet-deploy select --like RegNetY-400MF --runtime openvino
      regnet-deploy select --gflops 0.8 --family x --group-multiple 8 -o mine
      regnet-deploy select --gflops 0.4 --family x --evidence RegNetX.sweep
      regnet-deploy select --gflops 0.1 --resolution 112 --try 9 --data my-images
      regnet-deploy select --published RegNetY-4.0GF
      regnet-deploy select --published regnet_y_400mf --weights mine.pth
      regnet-deploy select --trial AnyNetX_E.sweep
    """
    by_time = chooses_by_time(options)
    given = [name for name in ("gmacs", "published", "trial") if options[name] is not None]
    if by_time and given in ([], ["gmacs"]):
        given = ["gmacs"]
    elif by_time:
        raise UsageError(f"a limit of time searches a network, and --{given[0]} names one: give one of them")
    if options["weights"] is not None and given != ["published"]:
        raise UsageError("--weights needs --published NAME, the network of the weights; `import` finds it out itself")
    if len(given) > 1:
        raise UsageError("give one of --gflops, --published and --trial: a network taken by name has its own MACs")
    if not given:
        raise UsageError(
            "give a budget such as --gflops 4 or --latency-ms 5, or a network such as --published RegNetY-4.0GF"
        )
    options["input_channels"] = int(options["input_channels"])
    {"gmacs": _search, "published": _take_published, "trial": _take_trial}[given[0]](options)


def _search(options: dict[str, Any]) -> None:
    from regnet_deploy.selection.bundle_parts import ranking_json

    if options["plot"]:
        from regnet_deploy.plotting import check_plot_path
        from regnet_deploy.selection.plot import plot_selection

        check_plot_path(options["plot"])
    by_time = chooses_by_time(options)
    check_try_options(options, by_time=by_time)
    budget = budget_of(options, 1e9 if options["gmacs"] is None else options["gmacs"] * 1e9)
    if by_time:
        ensure_creatable(options["output"], replace=options["force"])
        selection = select_timed(options, budget)
        budget = selection.budget
    else:
        selection = select(budget, evidence=options["evidence"])
    if options["tries"] is not None:
        ensure_creatable(options["output"], replace=options["force"])
        selection = try_candidates(selection, options)
    shown = [selection.candidate(rank) for rank in range(min(options["show"], selection.considered))]
    if options["plot"]:
        plot_selection(selection, options["plot"], seed=options["seed"])
    bundle = create_bundle(options["output"], selection, replace_existing=options["force"])
    if options["plot"]:
        print_message(f"wrote {options['plot']}")
    if options["as_json"]:
        print_json(
            {
                "budget": budget.to_json(),
                "considered": selection.considered,
                "searched": selection.searched,
                "pick": shown[0].to_json(),
                "runners_up": [candidate.to_json() for candidate in shown[1:]],
                "reason": selection.reason(),
                "expected_error": _json_or_none(selection.expectation),
                "other_family": _json_or_none(selection.other_expectation),
                **ranking_json(selection),
                "bundle": str(bundle.path),
            }
        )
    elif selection.timed_ranking is not None:
        print_timed(selection.timed_ranking, options["show"])
        print_text(f"Selected candidate 1: {selection.reason()}.")
        print_text(_expectation_line(selection))
    else:
        title = (
            f"{selection.considered:,} candidates with {options['gmacs']:g} GMACs ± {options['tolerance']:g} % "
            f"at {budget.resolution} pixels{_gray(budget)}, {budget.classes:,} classes"
        )
        _print_selection(title, selection, shown)
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle.argument} --data DIR")


def _take_published(options: dict[str, Any]) -> None:
    _check_no_search_options(
        {"published", "weights", "resolution", "classes", "stem_stride", "input_channels", "output", "force", "as_json"}
    )
    if options["weights"] is not None:
        _import_published(options)
        return
    selection = select_published(
        options["published"],
        resolution=options["resolution"],
        classes=options["classes"],
        stem_stride=options["stem_stride"],
        input_channels=options["input_channels"],
    )
    published, candidate, budget = selection.published, selection.best, selection.budget
    bundle = create_bundle(options["output"], selection, replace_existing=options["force"])
    if options["as_json"]:
        print_json(
            {
                "budget": budget.to_json(),
                "considered": 1,
                "pick": {"name": published.architecture_name, **candidate.to_json()},
                "runners_up": [],
                "reason": f"requested by name; {published.source}",
                "bundle": str(bundle.path),
            }
        )
    else:
        _print_candidates(
            f"{published.architecture_name} at {budget.resolution} pixels{_gray(budget)} (weights not included)",
            [candidate],
        )
        print_text(f"Source: {published.source}; widths rounded as {published.rounding}.")
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle.argument} --data DIR")


def _import_published(options: dict[str, Any]) -> None:
    from regnet_deploy.cli.import_ import import_named
    from regnet_deploy.space.published import find_published

    require("torch", "train")
    find_published(options["published"])  # a wrong name is reported before a download
    source = click.get_current_context().get_parameter_source
    if source("classes") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--classes is the number of outputs of the weights: omit it with --weights")
    if source("input_channels") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--channels is that of the first convolution of the weights: omit it with --weights")
    given = source("resolution") is click.core.ParameterSource.COMMANDLINE
    chosen = {
        "network": options["published"],
        "resolution": options["resolution"] if given else None,
        "stem_stride": options["stem_stride"] or 2,
    }
    import_named(options["weights"], options["output"], options["force"], options["as_json"], chosen)


def _take_trial(options: dict[str, Any]) -> None:
    from regnet_deploy.bundle import create_bundle as create_from_parts
    from regnet_deploy.populations.reader import find_trial
    from regnet_deploy.selection.bundle_parts import trial_parts

    _check_no_search_options({"trial", "output", "force", "as_json"})
    file, _, digits = options["trial"].rpartition(":")
    path, number = (Path(file), int(digits)) if file and digits.isdecimal() else (Path(options["trial"]), None)
    trial, outcome, identity = find_trial(path, number)
    parts = trial_parts(path, trial, outcome, identity)
    bundle = create_from_parts(options["output"], parts, replace=options["force"])
    if options["as_json"]:
        print_json({**bundle.architecture.to_json(), **bundle.selection.to_json(), "bundle": str(bundle.path)})
    else:
        print_text(
            f"{bundle.architecture.name}: depths {' '.join(map(str, trial.network.depths))}, widths "
            f"{' '.join(map(str, trial.network.widths))}, {trial.macs / 1e6:.4g} MMACs, "
            f"{trial.parameters / 1e6:.3g} M parameters; {bundle.selection.reason}."
        )
    print_message(f"wrote {bundle.path} - next: regnet-deploy train{bundle.argument} --data DIR")


def _check_no_search_options(kept: set[str]) -> None:
    """Raise if an option is given that has no effect on a network taken by name."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name not in kept:
            raise UsageError(f"{parameter.opts[-1]} applies to a search: give --gflops instead of the name, or omit it")


def _print_selection(title: str, selection: Selection, shown: list[Candidate]) -> None:
    """Print candidates, why the first is the best, and the error to expect."""
    _print_candidates(title, shown)
    lines = [f"Selected candidate 1: {selection.reason()}."]
    if selection.evidence_ranking is not None:
        notes = selection.evidence_ranking.notes(selection.budget, selection.candidates)
        lines += [f"Evidence: {note}." for note in notes]
    lines += [*_family_lines(selection), f"Search: {selection.searched}.", _expectation_line(selection)]
    for line in lines:
        print_text(line)


def _family_lines(selection: Selection) -> list[str]:
    """Return why the family was selected, where the budget does not name it."""
    expectation, other = selection.expectation, selection.other_expectation
    chosen, rest = f"RegNet{selection.family.upper()}", f"RegNet{'XY'.replace(selection.family.upper(), '')}"
    if selection.budget.family != "any":
        return []
    if selection.evidence_ranking:
        chosen += ", the family of the evidence"
    if expectation is None or other is None:
        why = f"which has the lower errors of the published networks at 224 pixels; the other is {rest}"
        return [f"Family: {chosen}{'' if selection.evidence_ranking else ', ' + why}; --family sets the family."]
    return [
        f"Family: {chosen}, expected top-1 error {expectation.top1_error:.1f} % at this budget; {rest} "
        f"{other.top1_error:.1f} %; --family sets the family."
    ]


def _expectation_line(selection: Selection) -> str:
    """Return the error to expect on ImageNet, or why none is stated."""
    from regnet_deploy.space.published import baselines

    expectation, budget = selection.expectation, selection.budget
    if expectation is None:
        reference_gmacs = selection.best.reference_macs / 1e9
        return (
            f"Expected error: not known at {budget.resolution} pixels{_gray(budget)} with a stem of stride "
            f"{budget.stride}. The published errors were measured on RGB images at 224 pixels, where this network has "
            f"{reference_gmacs:.3g} GMACs."
        )
    outside = ", extrapolated beyond the published networks" if expectation.extrapolated else ""
    return (
        f"Expected error: {expectation.top1_error:.1f} % top-1 on {expectation.recipe} "
        f"(± {expectation.leave_one_out_error:.2f}, the mean error of this prediction for each of the "
        f"{len(baselines(selection.family))} published networks when it is left out{outside}). "
        "Errors on your data will differ."
    )


def _gray(budget: Budget) -> str:
    return " of gray images" if budget.input_channels == 1 else ""


def _json_or_none(expected: ExpectedError | None) -> dict[str, Any] | None:
    return None if expected is None else expected.to_json()


def _print_candidates(title: str, candidates: list[Candidate]) -> None:
    """Print candidates as a table, in the order of their ranks."""
    predicted = any(candidate.predicted_error is not None for candidate in candidates)
    measured = any(candidate.measured_error is not None for candidate in candidates)
    rows = []
    for rank, candidate in enumerate(candidates, start=1):
        network, described = candidate.network, candidate.to_json()
        rows.append(
            (
                str(rank),
                f"RegNet{network.family.upper()}",
                f"{candidate.macs / 1e9:.4g}",
                f"{candidate.parameters / 1e6:.2f}",
                f"{candidate.activations / 1e6:.2f}",
                *("-" if described[key] is None else f"{described[key]:g}" for key in ("d", "w_0", "w_a", "w_m", "g")),
                " ".join(map(str, network.depths)),
                " ".join(map(str, network.widths)),
                "-" if candidate.score is None else f"{candidate.score:.2f}",
                *([f"{candidate.predicted_error:.2f}"] if predicted else []),
                *(["-" if candidate.measured_error is None else f"{candidate.measured_error:.2f}"] if measured else []),
            )
        )
    columns = ["", "family", "GMACs", "params M", "acts M", "d", "w_0", "w_a", "w_m", "g", "depths", "widths", "score"]
    columns += ["error %"] if predicted else []
    columns += ["measured %"] if measured else []
    print_table(title, columns, rows, left=2)
