"""Percentiles of all samples."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.load_testing.percentiles import Latencies, percentile

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)
PERCENTS = st.sampled_from(["1", "50", "90", "99", "99.9", "100"])


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES, percent=PERCENTS)
def test_it_is_the_smallest_sample_that_enough_samples_do_not_exceed(samples, percent):
    found = percentile(np.sort(samples), percent)
    wanted = Fraction(percent) / 100
    assert found in samples
    assert Fraction(sum(sample <= found for sample in samples), len(samples)) >= wanted
    smaller = [sample for sample in samples if sample < found]
    assert Fraction(len(smaller), len(samples)) < wanted


@pytest.mark.parametrize(("percent", "rank"), [("50", 500), ("99", 990), ("99.9", 999), ("100", 1000), ("0", 1)])
def test_ranks_are_exact_where_binary_fractions_are_not(percent, rank):
    assert percentile(np.arange(1.0, 1001.0), percent) == rank


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_percentiles_rise_and_are_in_ms(samples):
    found = Latencies.of(np.asarray(samples))
    assert found is not None
    assert found.count == len(samples)
    assert found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p999_ms <= found.max_ms == 1000 * max(samples)


def test_of_no_samples_there_are_none():
    assert Latencies.of(np.empty(0)) is None
