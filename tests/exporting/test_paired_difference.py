"""The interval of a difference between paired shares is Tango's, and holds its level."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.exporting.accuracy import paired_difference

Z = 1.959963984540054
counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200)).filter(lambda c: sum(c) > 0)


def score(lost, gained, n, d):
    """Tango's statistic, its likeliest share found by search over the likelihood itself."""
    least, most = max(0.0, -d), (1 - d) / 2
    q = np.linspace(least, most, 200_001)[1:-1]
    with np.errstate(divide="ignore"):
        likelihood = lost * np.log(q + d) + gained * np.log(q) + (n - lost - gained) * np.log1p(-2 * q - d)
    best = q[likelihood.argmax()]
    return (lost - gained - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 7, 21), (6, 16, 161), (12, 2, 50), (40, 20, 160), (3, 3, 40)])
def test_the_ends_are_where_the_score_test_begins_to_reject(lost, gained, n):
    found = paired_difference(lost, gained, n)
    assert found.value == (lost - gained) / n
    assert score(lost, gained, n, found.low) == pytest.approx(Z, abs=1e-3)
    assert score(lost, gained, n, found.high) == pytest.approx(-Z, abs=1e-3)


@pytest.mark.parametrize("n", [1, 50, 50_000])
def test_where_nothing_differs_the_ends_have_a_closed_form(n):
    found = paired_difference(0, 0, n)
    end = Z**2 / (n + Z**2)  # of (n d)^2 = Z^2 n d (1 - d)
    assert (found.value, found.low, found.high) == (0, pytest.approx(-end), pytest.approx(end))


def test_everything_lost_and_everything_gained():
    assert paired_difference(5, 0, 5).high == 1
    assert paired_difference(5, 0, 5).low > 0
    assert paired_difference(0, 5, 5).low == -1
    assert paired_difference(0, 5, 5).high < 0


@given(counts)
def test_it_holds_the_estimate_and_is_symmetric(c):
    lost, gained, rest = c
    n = lost + gained + rest
    one, other = paired_difference(lost, gained, n), paired_difference(gained, lost, n)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.low, one.high) == (pytest.approx(-other.high, abs=1e-9), pytest.approx(-other.low, abs=1e-9))


@settings(max_examples=20, deadline=None)
@given(counts)
def test_zero_is_outside_where_mcnemar_rejects(c):
    lost, gained, rest = c
    n = lost + gained + rest
    found = paired_difference(lost, gained, n)
    mcnemar = (lost - gained) / math.sqrt(lost + gained) if lost + gained else 0.0
    if abs(abs(mcnemar) - Z) > 1e-9:
        assert (found.low <= 0 <= found.high) == (abs(mcnemar) < Z)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.05, 0.05), (0.15, 0.02), (0.3, 0.1)])
def test_it_covers_the_truth_as_often_as_it_says(only_first, only_second):
    n, covered = 40, 0.0
    truth, rest = only_first - only_second, 1 - only_first - only_second
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            found = paired_difference(lost, gained, n)
            if found.low <= truth <= found.high:
                ways = math.comb(n, lost) * math.comb(n - lost, gained)
                covered += ways * only_first**lost * only_second**gained * rest ** (n - lost - gained)
    assert 0.93 <= covered <= 0.985
