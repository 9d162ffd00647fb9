"""Schedules of arrivals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.load_testing.arrival_schedule import ARRIVALS, arrival_schedule

RATES, SECONDS = st.floats(0.1, 2000), st.floats(0.01, 5)


@settings(max_examples=60, deadline=None)
@given(rate=RATES, seconds=SECONDS, arrivals=st.sampled_from(ARRIVALS), seed=st.integers(0, 2**32))
def test_as_many_requests_as_the_rate_says_are_due_in_order_and_before_the_end(rate, seconds, arrivals, seed):
    times = arrival_schedule(rate, seconds, arrivals, seed)
    assert len(times) == max(1, round(rate * seconds))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < seconds)).all()
    assert (arrival_schedule(rate, seconds, arrivals, seed) == times).all()


@settings(max_examples=60, deadline=None)
@given(rate=RATES, seconds=SECONDS)
def test_constant_arrivals_are_equally_far_apart(rate, seconds):
    times = arrival_schedule(rate, seconds, "constant")
    np.testing.assert_allclose(np.diff(times), seconds / len(times), rtol=1e-6)


@pytest.mark.parametrize("rate", [3.0, 200.0])
def test_poisson_arrivals_are_as_many_and_as_uneven_as_those_of_independent_clients(rate):
    gaps = np.concatenate([np.diff(arrival_schedule(rate, 2000 / rate, seed=seed)) for seed in range(20)])
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential distribution
