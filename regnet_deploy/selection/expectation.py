"""What error to expect of a RegNet of a size, on ImageNet, by the published networks: never a promise for other data.

The top-1 error (percent) of a family is modelled as floor + scale F^-power with F the GMACs at 224 pixels, fitted by
least squares to the 12 networks of the paper (100 epochs, no enhancements; errors of the pycls model zoo). Its
uncertainty is the mean absolute error with which the fit to the other 11 predicts the one left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from regnet_deploy.space.published import PublishedNetwork, baselines

RECIPE = "ImageNet-1k, the paper's recipe: 100 epochs of SGD, no enhancements, 224 pixels"


@dataclass(frozen=True)
class ErrorCurve:
    """floor + scale F^-power, in percent; ``lowest`` and ``highest`` are the MACs it was fitted between."""

    floor: float
    scale: float
    power: float
    lowest: int
    highest: int

    def at(self, macs: float) -> float:
        """Return the expected top-1 error, percent, at these MACs (at 224 pixels)."""
        return float(self.floor + self.scale * (macs / 1e9) ** -self.power)


@dataclass(frozen=True)
class Expectation:
    """Expected ImageNet top-1 error (percent) of a budget, and how far off such expectations were."""

    family: str
    top1_error: float
    leave_one_out_error: float
    reference_gmacs: float
    extrapolated: bool
    recipe: str = RECIPE

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def fit_error(networks: Sequence[PublishedNetwork]) -> ErrorCurve:
    """Fit the curve; the power is found on a grid of 0.01, the rest follows by linear least squares."""
    known = [(p.macs, p.top1_error) for p in networks if p.top1_error is not None]
    macs = np.array([m for m, _ in known], dtype=np.float64)
    errors = np.array([e for _, e in known], dtype=np.float64)
    best: tuple[float, ErrorCurve] | None = None
    for power in np.arange(5, 150) / 100:
        design = np.stack([np.ones_like(macs), (macs / 1e9) ** -power], axis=1)
        (floor, scale), *_ = np.linalg.lstsq(design, errors, rcond=None)
        misfit = float(((design @ (floor, scale) - errors) ** 2).sum())
        if best is None or misfit < best[0]:
            curve = ErrorCurve(float(floor), float(scale), float(power), int(macs.min()), int(macs.max()))
            best = misfit, curve
    assert best is not None  # the grid is not empty
    return best[1]


def leave_one_out_errors(networks: Sequence[PublishedNetwork]) -> list[float]:
    """Return, for each network, the error predicted by the others minus its own, in percentage points."""
    misses = []
    for left_out in networks:
        if left_out.top1_error is not None:
            curve = fit_error([p for p in networks if p is not left_out])
            misses.append(curve.at(left_out.macs) - left_out.top1_error)
    return misses


def expected_error(family: str, reference_macs: float) -> Expectation:
    """Return what to expect of ``family`` (``x`` or ``y``) with these MACs at 224 pixels."""
    networks = baselines(family)
    curve = fit_error(networks)
    misses = leave_one_out_errors(networks)
    return Expectation(
        family=family,
        top1_error=round(curve.at(reference_macs), 2),
        leave_one_out_error=round(float(np.mean(np.abs(misses))), 2),
        reference_gmacs=reference_macs / 1e9,
        extrapolated=not 0.95 * curve.lowest <= reference_macs <= 1.05 * curve.highest,
    )
