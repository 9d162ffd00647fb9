"""A selection as parts of a bundle."""

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
from regnet_deploy.selection.expectation import expected_error
from regnet_deploy.selection.selection import SEARCHED, Candidate, Selection
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import PublishedNetwork


def selection_parts(selection: Selection) -> dict[str, Any]:
    """Return the parts that ``select`` writes: architecture, selection, preprocessing, environment."""
    pick = selection.pick
    name = f"RegNet{pick.network.family.upper()}-{_size(pick.macs)}"
    return _parts(
        name,
        pick,
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
    """Return what evidence a selection rests on, as ``evidence``; nothing where there was none."""
    if selection.weighed is None:
        return {}
    return {"evidence": selection.weighed.to_json(selection.budget, selection.pick.reference_macs)}


def measured_part(selection: Selection) -> dict[str, Any]:
    """Return what training the first candidates said, as ``tried``; nothing where none was trained."""
    return {} if selection.measured is None else {"tried": selection.measured.to_json()}


def published_parts(published: PublishedNetwork, candidate: Candidate, budget: Budget) -> dict[str, Any]:
    """Return the parts for a published network."""
    return _parts(
        published.architecture_name,
        candidate,
        budget,
        {
            "considered": 1,
            "reason": f"asked for by name; {published.source}, widths rounded as {published.rounding}",
            "expected_error": expected_error(published.family, float(candidate.reference_macs)).to_json(),
            "runners_up": [],
        },
    )


def trial_parts(store: Path, trial: Trial, outcome: Outcome, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts for a network of a sweep.

    Args:
        store: the sweep's.
        trial: the network.
        outcome: what came of it.
        identity: of the sweep.
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
    return _whole(f"{space}-{trial.number}", described, trial.network, budget, selection)


def trial_reason(store: Path, space: str, trial: Trial, outcome: Outcome) -> str:
    """Say in words why a trial is taken."""
    measured = f"{outcome.error:.2f} % top-1 error after {trial.epochs} epoch{'s' * (trial.epochs > 1)}"
    return f"trial {trial.number} of {store.name} (drawn from {space}): {measured}"


def _parts(name: str, pick: Candidate, budget: Budget, selection: dict[str, Any]) -> dict[str, Any]:
    described = pick.to_json()
    known = {
        "met": {"macs": pick.macs, "parameters": pick.parameters, "activations": pick.activations},
        "reference_macs": pick.reference_macs,
        "score": described["score"],
    }
    return _whole(name, described, pick.network, budget, {**known, **selection})


def _whole(
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
