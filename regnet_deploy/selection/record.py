"""A selection as parts of a bundle."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from typing import Any

import numpy as np

from regnet_deploy import __version__
from regnet_deploy.images.preprocess import default_preprocessing
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.choice import SEARCHED, Candidate, Selection
from regnet_deploy.selection.expectation import expect
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
            "expected_error": expect(published.family, float(candidate.reference_macs)).to_json(),
            "runners_up": [],
        },
    )


def _parts(name: str, pick: Candidate, budget: Budget, selection: dict[str, Any]) -> dict[str, Any]:
    described = pick.to_json()
    return {
        "architecture": {
            "name": name,
            **{key: described[key] for key in ("family", "d", "w_0", "w_a", "w_m", "b", "g")},
            **pick.network.to_json(),
            "classes": budget.classes,
            "resolution": budget.resolution,
        },
        "selection": {
            "budget": budget.to_json(),
            "met": {"macs": pick.macs, "parameters": pick.parameters, "activations": pick.activations},
            "reference_macs": pick.reference_macs,
            "score": described["score"],
            **selection,
        },
        "preprocessing": default_preprocessing(budget.resolution).to_json(),
        "environment": {
            "select": {
                "regnet_deploy": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
        },
    }


def _size(macs: int) -> str:
    return f"{macs / 1e9:.1f}GF" if macs >= 1e9 else f"{macs / 1e6:.0f}MF"
