"""Ranges draw what they say, on the scale that they say, and refuse what nothing can be drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.space.ranges import Range, Values, choice_from, short_repr

RANGES = [Range(1, 16, 1, "log"), Range(8, 1024, 8, "log"), Range(8, 255.9, 0.1, "log"), Range(1.5, 3, 0.001, "log")]

steps = st.sampled_from([0.001, 0.1, 1 / 3, 0.25, 1, 8, 2.5])
scales = st.sampled_from(["uniform", "log"])


@st.composite
def ranges(draw):
    step, first = draw(steps), draw(st.integers(1, 300))
    return Range(first * step, (first + draw(st.integers(0, 300))) * step, step, draw(scales))


@given(made=ranges(), seed=st.integers(0, 2**32))
def test_draws_are_multiples_of_the_step_within_the_range(made, seed):
    drawn = made.draw(np.random.default_rng(seed), (50, 2))
    assert drawn.shape == (50, 2)
    assert (drawn >= made.low - 1e-9).all()
    assert (drawn <= made.high + 1e-9).all()
    np.testing.assert_allclose(drawn / made.step, np.round(drawn / made.step), atol=1e-6)


def test_draws_are_the_floats_that_one_would_write():
    drawn = Range(0.1, 2, 0.1).draw(np.random.default_rng(0), (1000,))
    assert set(drawn.tolist()) == {float(f"{i / 10:.1f}") for i in range(1, 21)}


@pytest.mark.parametrize("made", RANGES, ids=str)
def test_a_log_scale_is_the_continuous_log_uniform_distribution_at_every_value(made):
    n = 100_000
    drawn = np.sort(made.draw(np.random.default_rng(1), (n,)))
    values = np.arange(round(made.low / made.step), round(made.high / made.step) + 1) * made.step
    start = made.low - min(made.step, made.low / 2)
    expected = np.log(values / start) / np.log(made.high / start)
    found = np.searchsorted(drawn, values + made.step / 2) / n
    assert np.abs(found - expected).max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, one in a thousand


@pytest.mark.parametrize("made", [Range(1, 16), Range(0, 1, 0.25), Range(-8, 24, 8)], ids=str)
def test_a_uniform_scale_draws_every_value_alike(made):
    n = 50_000
    values, counts = np.unique(made.draw(np.random.default_rng(2), (n,)), return_counts=True)
    assert values.tolist() == [made.low + i * made.step for i in range(int(made.size))]
    assert np.abs(counts * made.size / n - 1).max() < 5 * math.sqrt(made.size / n)


@given(made=ranges())
def test_shares_are_those_of_all_values_and_sum_to_one(made):
    values, shares = made.probabilities()
    assert values[0] == pytest.approx(made.low)
    assert values[-1] == pytest.approx(made.high)
    assert len(values) == made.size
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(1)


def test_a_list_draws_its_values_alike():
    values, counts = np.unique(Values((1, 2, 4)).draw(np.random.default_rng(3), (30_000,)), return_counts=True)
    assert values.tolist() == [1, 2, 4]
    assert np.abs(counts / 10_000 - 1).max() < 0.05


@given(made=ranges(), low=st.floats(-100, 1000), high=st.floats(0, 1000))
def test_a_part_of_a_range_lies_in_it_and_holds_its_values_between_the_ends(made, low, high):
    high = max(low, high)
    part = made.within(low, high)
    assert made.low <= part.low <= part.high <= made.high
    for value in (made.low, made.high):
        if low <= value <= high:
            assert part.low <= value <= part.high


def test_a_part_of_a_range_goes_to_the_steps_around_the_ends():
    assert Range(8, 1024, 8, "log").within(50, 99) == Range(48, 104, 8, "log")
    assert Range(8, 255.9, 0.1, "log", counted=64).within(27.9, 30) == Range(27.9, 30, 0.1, "log", counted=1)
    assert Range(8, 255.9, 0.1, "log", counted=64).within(27.9, 30).free
    assert Range(1, 63, counted=64).within(12, 28).counted == pytest.approx(64 * 17 / 63, abs=1e-3)
    assert Range(1, 16).within(20, 30) == Range(16, 16)
    assert Values((1, 2, 4, 8)).within(2, 5) == Values((2, 4))
    assert Values((1, 2, 4, 8)).within(5, 6) == Values((4,))


def test_a_range_is_written_as_people_write_it():
    assert str(Range(1, 16)) == "1..16"
    assert str(Range(8, 1024, 8, "log")) == "8..1024 step 8, log"
    assert str(Values((1, 2, 4))) == "{1, 2, 4}"
    assert str(Values((1,))) == "1"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"low": 1, "hihg": 3}, r"d: 'hihg' is not known \(did you mean high\?\); use low, high"),
        ({"low": 1}, r"d must be a number, a list of numbers, or have low and high, got \{'low': 1\}"),
        ({"low": 3, "high": 1}, "d: a range needs low <= high and a step above 0, got 3..1"),
        ({"low": 0, "high": 1, "scale": "log"}, "d: a range on a log scale must start above 0, got 0"),
        ({"low": 1, "high": 2, "scale": "lgo"}, r"d: the scale .* uniform or log, got 'lgo' \(did you mean log\?\)"),
        ({"low": 1, "high": 9, "scale": ["log"]}, r"d: the scale of a range must be uniform or log, got \['log'\]"),
        ({"low": 1, "high": 9, "step": 0}, "a step above 0"),
        ({"low": 1, "high": 9, "step": 1e-300}, "d: low must be at most a billion steps of 1e-300, got 1"),
        ({"low": 1, "high": 9, "step": 2}, "d: low must be a multiple of the step 2, got 1"),
        ({"low": 1, "high": 10**400}, "d: high of a range must be a number up to 1e"),
        ({"low": 1, "high": float("nan")}, "d: high of a range must be a number up to 1e"),
        ({"low": True, "high": 2}, "d: low of a range must be a number, got True"),
        (
            {"low": 1, "high": 2, "step": "1e-3"},
            r"got '1e-3' \(YAML reads this as text: write it without an exponent\)",
        ),
        ({"low": 1, "high": 2, "counted": 0}, "d: counted of a range must be 1 or more, got 0"),
        ({"low": 1, "high": 2, "counted": "x"}, "d: counted of a range must be a number, got 'x'"),
        ([], "d: a list of values needs different numbers, got"),
        ([1, 1], r"d: a list of values needs different numbers, got \[1, 1\]"),
        ([1, "2"], "d: each of a list of values must be a number, got '2'"),
        ([1, float("inf")], "must be a number up to 1e"),
        (float("nan"), "must be a number up to 1e"),
        ("1..3", "d must be a number, a list of numbers, or have low and high, got '1..3'"),
        (True, "d must be a number, a list"),
        (None, "d must be a number, a list"),
    ],
)
def test_what_is_no_range_is_refused_in_one_line(data, said):
    with pytest.raises(UsageError, match=said) as caught:
        choice_from(data, "d")
    assert "\n" not in str(caught.value)


def test_errors_show_data_in_short_whatever_it_is():
    nested: list[object] = ["ha"]
    for _ in range(60):
        nested = [nested] * 9
    recursive: list[object] = []
    recursive.append(recursive)
    for data in (nested, recursive, "x" * 10**6, 16**100_000, dict.fromkeys(range(1000), nested)):
        assert len(short_repr(data)) <= 160
