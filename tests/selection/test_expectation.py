"""Expected errors are those of the published networks, with their leave-one-out error."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.selection.expectation import expected_error, fit_error, leave_one_out_errors
from regnet_deploy.space.published import baselines


@pytest.mark.parametrize("family", ["x", "y"])
def test_the_curve_falls_towards_its_floor(family):
    curve = fit_error(baselines(family))
    errors = [curve.at(f * 1e9) for f in (0.2, 0.8, 4, 32)]
    assert errors == sorted(errors, reverse=True)
    assert 15 < curve.floor < errors[-1]


@pytest.mark.parametrize("family", ["x", "y"])
def test_left_out_errors_are_small_and_reported(family):
    misses = np.abs(leave_one_out_errors(baselines(family)))
    assert len(misses) == 12
    assert misses.mean() < 0.25
    assert expected_error(family, 4e9).leave_one_out_error == pytest.approx(misses.mean(), abs=0.005)


def test_beyond_the_published_sizes_is_called_extrapolated():
    assert not expected_error("x", 4e9).extrapolated
    assert not expected_error("y", 32.2e9).extrapolated
    assert expected_error("x", 100e9).extrapolated
    assert expected_error("x", 0.05e9).extrapolated
