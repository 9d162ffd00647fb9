"""Builds the bundle parts that ``select`` writes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy import __version__
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.populations.store import Outcome, Trial
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.candidate_table import Candidate
from regnet_deploy.selection.selection import SEARCHED, Selection
from regnet_deploy.selection.trends import expected_error
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import PublishedNetwork


def selection_parts(selection: Selection) -> dict[str, Any]:
    """Return the parts of a selection: architecture, selection, preprocessing, environment."""
    best = selection.best
    return _parts(
        f"RegNet{best.network.family.upper()}-{_size(best.macs)}",
        best,
        selection.budget,
        {
            "considered": selection.considered,
            "searched": SEARCHED,
            "reason": selection.reason(),
            "expected_error": selection.expectation.to_json(),
            "runners_up": [selection.candidate(i).to_json() for i in range(1, min(5, selection.considered))],
            **evidence_part(selection),
            **measured_part(selection),
        },
    )


def evidence_part(selection: Selection) -> dict[str, Any]:
    """Return the key ``evidence`` of a selection that uses evidence, else nothing."""
    if selection.evidence_ranking is None:
        return {}
    return {"evidence": selection.evidence_ranking.to_json(selection.budget, selection.candidates)}


def measured_part(selection: Selection) -> dict[str, Any]:
    """Return the key ``tried`` of a selection with trained candidates, else nothing."""
    return {} if selection.measured_ranking is None else {"tried": selection.measured_ranking.to_json()}


def published_parts(published: PublishedNetwork, candidate: Candidate, budget: Budget) -> dict[str, Any]:
    """Return the parts of a published network."""
    return _parts(
        published.architecture_name,
        candidate,
        budget,
        {
            "considered": 1,
            "reason": f"requested by name; {published.source}, widths rounded as {published.rounding}",
            "expected_error": expected_error(published.family, float(candidate.reference_macs)).to_json(),
            "runners_up": [],
        },
    )


def trial_parts(store: Path, trial: Trial, outcome: Outcome, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a network from a sweep.

    Args:
        store: path of the store of the sweep.
        trial: the trial of the network.
        outcome: its outcome.
        identity: identity of the sweep.
    """
    resolution, classes = identity["resolution"], identity["data"]["classes"]
    budget = Budget(
        macs=float(trial.macs),
        resolution=resolution,
        classes=classes,
        stem_stride=trial.network.stem_stride,
    )
    space = identity.get("space", {}).get("name", store.stem)
    drawn = {name: trial.drawn.get(name) for name in ("w_0", "w_a", "w_m")}
    ratios, groups = set(trial.network.bottlenecks), set(trial.network.group_widths)
    described = {
        "family": trial.network.family,
        "d": sum(trial.network.depths),
        **drawn,
        "b": trial.drawn.get("b", ratios.pop() if len(ratios) == 1 else None),
        "g": trial.drawn.get("g", groups.pop() if len(groups) == 1 else None),
    }
    met = {"macs": trial.macs, "parameters": trial.parameters, "activations": trial.activations}
    selection = {
        "considered": 1,
        "met": met,
        "reason": trial_reason(store, space, trial, outcome),
        "trial": {"store": store.name, "number": trial.number, "error_percent": outcome.error, "epochs": trial.epochs},
        "runners_up": [],
    }
    return _bundle_parts(f"{space}-{trial.number}", described, trial.network, budget, selection)


def trial_reason(store: Path, space: str, trial: Trial, outcome: Outcome) -> str:
    """Return the reason for the selection of a trial."""
    measured = f"{outcome.error:.2f} % top-1 error after {trial.epochs} epoch{'s' * (trial.epochs > 1)}"
    return f"trial {trial.number} of {store.name} (drawn from {space}): {measured}"


def _parts(name: str, candidate: Candidate, budget: Budget, selection: dict[str, Any]) -> dict[str, Any]:
    described = candidate.to_json()
    known = {
        "met": {"macs": candidate.macs, "parameters": candidate.parameters, "activations": candidate.activations},
        "reference_macs": candidate.reference_macs,
        "score": described["score"],
    }
    return _bundle_parts(name, described, candidate.network, budget, {**known, **selection})


def _bundle_parts(
    name: str, described: Mapping[str, Any], network: Network, budget: Budget, selection: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "architecture": {
            "name": name,
            **{key: described[key] for key in ("family", "d", "w_0", "w_a", "w_m", "b", "g")},
            **network.to_json(),
            "classes": budget.classes,
            "resolution": budget.resolution,
        },
        "selection": {"budget": budget.to_json(), **selection},
        "preprocessing": default_preprocessing(budget.resolution).to_json(),
        "environment": {
            "select": {
                "regnet_deploy": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        },
    }


def _size(macs: int) -> str:
    return f"{macs / 1e9:.1f}GF" if macs >= 1e9 else f"{macs / 1e6:.0f}MF"
