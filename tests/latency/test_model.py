"""The latency model: non-negative costs of the work of operators, with errors of networks left out."""

import numpy as np
import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.latency.model import fit_latency_model
from regnet_deploy.latency.operators import COLUMNS, network_work
from regnet_deploy.space.published import baselines

NETWORKS = [each.network for family in "xy" for each in baselines(family)]
WORK = network_work(NETWORKS, 224, 1000, 1)


def times_of(**costs: float) -> np.ndarray:
    return sum(cost * WORK[:, list(COLUMNS).index(name)] for name, cost in costs.items())


def test_times_made_of_costs_are_predicted_though_the_network_was_left_out() -> None:
    times = times_of(operators=0.01, pointwise_macs=1e-8, grouped_elements=2e-7, gate_elements=1e-7)
    model = fit_latency_model(WORK, times)
    assert model.networks == 24
    assert model.mean_error < 0.02
    assert model.predict(WORK) == pytest.approx(times, rel=0.05)


def test_costs_are_never_negative() -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.3, len(NETWORKS))
    model = fit_latency_model(WORK, times_of(pointwise_macs=1e-8) * noise)
    assert (model.costs >= 0).all()
    assert set(model.costs_by_name()) <= set(COLUMNS)
    assert 0.1 < model.mean_error < model.largest_error


def test_errors_are_relative_so_that_units_do_not_matter() -> None:
    noise = np.random.default_rng(1).lognormal(0, 0.1, len(NETWORKS))
    times = times_of(operators=0.02, grouped_macs=1e-8) * noise
    seconds, milliseconds = fit_latency_model(WORK, times / 1000), fit_latency_model(WORK, times)
    assert seconds.errors == pytest.approx(milliseconds.errors, abs=1e-6)


def test_larger_networks_than_the_measured_ones_are_extrapolated() -> None:
    small = np.argsort(WORK[:, list(COLUMNS).index("pointwise_macs")])[:12]
    model = fit_latency_model(WORK[small], times_of(pointwise_macs=1e-8)[small])
    extrapolated = model.extrapolated(WORK)
    assert not extrapolated[small].any()
    assert extrapolated[np.argmax(WORK[:, list(COLUMNS).index("pointwise_macs")])]


def test_too_few_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="8 measured networks or more, got 7"):
        fit_latency_model(WORK[:7], np.ones(7))
