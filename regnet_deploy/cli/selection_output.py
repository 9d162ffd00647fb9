"""Candidates as a table, and a selection in words, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet_deploy.cli.output import print_table, stdout_console

if TYPE_CHECKING:
    from regnet_deploy.selection.candidate_table import Candidate
    from regnet_deploy.selection.selection import Selection


def print_selection(title: str, selection: Selection, shown: list[Candidate]) -> None:
    """Print the candidates that are shown, and why the first is first."""
    from regnet_deploy.selection.selection import SEARCHED
    from regnet_deploy.space.published import baselines

    print_candidates(title, shown)
    expectation, other = selection.expectation, selection.other_expectation
    lines = [f"Picked 1: {selection.reason()}."]
    if selection.evidence_ranking is not None:
        notes = selection.evidence_ranking.notes(selection.budget, selection.candidates)
        lines += [f"Evidence: {note}." for note in notes]
    if other is not None:
        lines.append(
            f"Family: RegNet{selection.family.upper()}{', the family of the evidence' if selection.evidence_ranking else ''}, "
            f"expected {expectation.top1_error:.1f} % top-1 error "
            f"against {other.top1_error:.1f} % for RegNet{other.family.upper()} at this budget; --family chooses."
        )
    lines.append(f"Searched: {SEARCHED}.")
    lines.append(
        f"Expected of a good network of this budget: {expectation.top1_error:.1f} % top-1 error on "
        f"{expectation.recipe} (± {expectation.leave_one_out_error:.2f}, mean error of such expectations for the "
        f"{len(baselines(selection.family))} published networks, each left out)"
        + (", extrapolated beyond them" if expectation.extrapolated else "")
        + ". Your data will differ."
    )
    for line in lines:
        stdout_console().print(line, soft_wrap=True, markup=False)


def print_candidates(title: str, candidates: list[Candidate]) -> None:
    """Print candidates in the order of their ranks."""
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
