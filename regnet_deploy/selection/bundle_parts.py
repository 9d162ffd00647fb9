"""Builds the manifest of a new bundle: the parts that ``select`` writes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy import __version__
from regnet_deploy.bundle import manifest
from regnet_deploy.bundle.manifest import Architecture, Manifest, SelectionBudget, SourceTrial
from regnet_deploy.bundle.measurements import CostRecord
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.populations.store import Trial, TrialOutcome
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import Candidate
from regnet_deploy.selection.selection import Selection, budget_expectation
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import PublishedNetwork


def selection_parts(selection: Selection) -> Manifest:
    """Return the parts of a selection: architecture, selection, preprocessing, environment."""
    best = selection.best
    return _parts(
        _candidate_architecture(f"RegNet{best.network.family.upper()}-{_size(best.macs)}", best, selection.budget),
        selection.budget,
        manifest.SelectionRecord(
            **_candidate_selection(best, selection.budget),
            considered=selection.considered,
            searched=selection.searched,
            reason=selection.reason(),
            expected_error=selection.expectation,
            runners_up=tuple(selection.candidate(i).to_json() for i in range(1, min(5, selection.considered))),
            **ranking_json(selection),
        ),
    )


def ranking_json(selection: Selection) -> dict[str, Any]:
    """Return ``evidence``, ``tried`` and ``timed`` of a selection that is ranked by evidence, training or time."""
    data: dict[str, Any] = {}
    if selection.evidence_ranking is not None:
        data["evidence"] = selection.evidence_ranking.to_json(selection.budget, selection.candidates)
    if selection.measured_ranking is not None:
        data["tried"] = selection.measured_ranking.to_json()
    if selection.timed_ranking is not None:
        data["timed"] = selection.timed_ranking.to_json()
    return data


def published_parts(published: PublishedNetwork, candidate: Candidate, budget: Budget) -> Manifest:
    """Return the parts of a published network."""
    return _parts(
        _candidate_architecture(published.architecture_name, candidate, budget),
        budget,
        manifest.SelectionRecord(
            **_candidate_selection(candidate, budget),
            considered=1,
            reason=f"requested by name; {published.source}, widths rounded as {published.rounding}",
            expected_error=budget_expectation(budget, published.family, float(candidate.reference_macs)),
        ),
    )


def trial_parts(store: Path, trial: Trial, outcome: TrialOutcome, identity: Mapping[str, Any]) -> Manifest:
    """Return the parts of a network from a sweep.

    Args:
        store: path of the store of the sweep.
        trial: the trial of the network.
        outcome: its outcome.
        identity: identity of the sweep.
    """
    network = trial.network
    budget = Budget(
        macs=float(trial.macs),
        resolution=identity["resolution"],
        classes=identity["data"]["classes"],
        stem_stride=network.stem_stride,
        input_channels=network.input_channels,
    )
    space = identity.get("space", {}).get("name", store.stem)
    ratios, groups = set(network.bottlenecks), set(network.group_widths)
    generated = {name: trial.drawn.get(name) for name in ("w_0", "w_a", "w_m")}
    generated["b"] = trial.drawn.get("b", ratios.pop() if len(ratios) == 1 else None)
    generated["g"] = trial.drawn.get("g", groups.pop() if len(groups) == 1 else None)
    error = f"{outcome.error:.2f} % top-1 error after {trial.epochs} epoch{'s' * (trial.epochs > 1)}"
    return _parts(
        _architecture(f"{space}-{trial.number}", network, budget, generated),
        budget,
        manifest.SelectionRecord(
            budget=SelectionBudget(**budget.to_json()),
            met=CostRecord(macs=trial.macs, parameters=trial.parameters, activations=trial.activations),
            considered=1,
            reason=f"trial {trial.number} of {store.name} (drawn from {space}): {error}",
            trial=SourceTrial(store=store.name, number=trial.number, error_percent=outcome.error, epochs=trial.epochs),
        ),
    )


def _candidate_architecture(name: str, candidate: Candidate, budget: Budget) -> Architecture:
    data = candidate.to_json()
    return _architecture(name, candidate.network, budget, {key: data[key] for key in ("w_0", "w_a", "w_m", "b", "g")})


def _architecture(name: str, network: Network, budget: Budget, generated: Mapping[str, Any]) -> Architecture:
    return Architecture.of(network, name=name, classes=budget.classes, resolution=budget.resolution, **generated)


def _candidate_selection(candidate: Candidate, budget: Budget) -> dict[str, Any]:
    return {
        "budget": SelectionBudget(**budget.to_json()),
        "met": CostRecord(macs=candidate.macs, parameters=candidate.parameters, activations=candidate.activations),
        "reference_macs": candidate.reference_macs,
        "score": None if candidate.score is None else round(candidate.score, 4),
    }


def _parts(architecture: Architecture, budget: Budget, selection: manifest.SelectionRecord) -> Manifest:
    environment = {
        "regnet_deploy": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Manifest(
        architecture=architecture,
        selection=selection,
        preprocessing=default_preprocessing(budget.resolution, budget.input_channels),
        environment={"select": environment},
    )


def _size(macs: int) -> str:
    return f"{macs / 1e9:.1f}GF" if macs >= 1e9 else f"{macs / 1e6:.0f}MF"
