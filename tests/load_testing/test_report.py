"""Samples in figures."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.load_testing.http_client import BROKEN, TIMED_OUT
from regnet_deploy.load_testing.report import Latencies, LoadRecord, percentile, summarize
from regnet_deploy.load_testing.samples import DROPPED, PENDING, Recorder, Samples


def samples(*rows: tuple[float, float, float, int, bool]) -> Samples:
    intended, sent, done, status, wrong = zip(*rows, strict=True)
    floats = (np.asarray(column, np.float64) for column in (intended, sent, done))
    return Samples(*floats, np.asarray(status), np.asarray(wrong, np.bool_))


def test_every_end_has_its_place_and_the_warm_up_none():
    report = summarize(
        LoadRecord(
            samples(
                (0.5, 0.5, 9.0, 500, False),  # warm-up
                (1.0, 1.0, 1.01, 200, False),
                (1.1, 1.1, 1.13, 200, False),
                (1.2, 1.2, 1.21, 200, True),
                (1.3, 1.3, 1.301, 503, False),
                (1.4, 1.4, 1.5, 500, False),
                (1.5, 1.5, 1.5, BROKEN, False),
                (1.6, 1.6, 2.6, TIMED_OUT, False),
                (1.7, 1.7, 1.7, DROPPED, False),
                (1.8, 1.8, np.nan, PENDING, False),
            ),
            warmup=1.0,
            seconds=1.0,
            cores=0.1,
            offered=10.0,
        )
    )
    assert (report.requests, report.ok, report.refused, report.dropped, report.wrong) == (8, 2, 1, 1, 1)
    assert report.failed == {"500": 1, "connection": 1, "timeout": 1}
    assert report.bad == 6
    assert report.achieved == 2
    assert report.latency is not None
    assert report.latency.max_ms == pytest.approx(30)
    assert report.refusals is not None
    assert report.refusals.max_ms == pytest.approx(1)


def test_latency_counts_from_when_a_request_was_due_and_what_came_after_the_end_took_longer():
    report = summarize(
        LoadRecord(samples((0.0, 1.0, 4.0, 200, False)), warmup=0.0, seconds=2.0, cores=0.0, offered=1.0)
    )
    assert report.latency is not None
    assert report.latency.p50_ms == pytest.approx(4000)
    assert report.achieved == pytest.approx(1 / 4)
    assert report.lag_p99_ms == pytest.approx(1000)
    assert report.is_late
    assert report.to_json()["lag_shows"]
    assert report.to_json()["measured_s"] == 2


def test_lateness_shows_beside_a_short_median_and_not_where_nothing_was_answered():
    report = summarize(
        LoadRecord(samples((0.0, 0.001, 0.0015, 200, False)), warmup=0.0, seconds=2.0, cores=0.0, offered=1.0)
    )
    assert (report.is_late, report.lag_shows) == (False, True)
    report = summarize(
        LoadRecord(samples((0.0, 0.5, 0.6, BROKEN, False)), warmup=0.0, seconds=2.0, cores=0.0, offered=1.0)
    )
    assert (report.is_late, report.lag_shows) == (False, False)


def test_the_last_problem_stands_where_a_connection_failed_after_the_warm_up():
    rows = samples((0.1, 0.1, 0.2, BROKEN, False), (1.5, 1.5, 1.6, 200, False))
    for warmup, problem in ((0.0, "Too many open files"), (1.0, "")):
        report = summarize(
            LoadRecord(rows, warmup=warmup, seconds=1.0, cores=0.0, offered=1.0, problem="Too many open files")
        )
        assert report.problem == problem


def test_a_generator_that_is_on_time_is_not_late():
    report = summarize(
        LoadRecord(samples((0.0, 0.001, 0.02, 200, False)), warmup=0.0, seconds=2.0, cores=0.0, offered=1.0)
    )
    assert not report.lag_shows


def test_of_a_closed_loop_counts_what_was_answered_in_its_time():
    rows = samples((0.0, 0.0, 1.0, 200, False), (1.0, 1.0, 2.0, 200, False), (1.9, 1.9, 2.1, 200, False))
    report = summarize(LoadRecord(rows, warmup=0.5, seconds=1.5, cores=0.0, concurrency=1))
    assert report.ok == 1
    assert report.achieved == pytest.approx(1 / 1.5)


def test_of_no_requests_there_are_no_figures():
    report = summarize(
        LoadRecord(Recorder().samples(), warmup=0.0, seconds=0.0, cores=0.0, offered=1.0, interrupted=True)
    )
    assert (report.requests, report.achieved, report.latency, report.refusals) == (0, 0, None, None)


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
