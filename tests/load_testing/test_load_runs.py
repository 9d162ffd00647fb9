"""Loads that can be, and the capacity."""

from __future__ import annotations

import time
from typing import Any

import pytest

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.generator import Load, LoadRules
from regnet_deploy.load_testing.load_runs import LoadPlan, check_size, measure_capacity, run_open_loop
from regnet_deploy.load_testing.served_model import ServedModel
from regnet_deploy.load_testing.target import Target, post


def site(target: Target) -> ServedModel:
    return ServedModel(
        target, Load([post(target, "/", b"x", {})], lambda number, reply: True), "tensor", "regnet", "nothing"
    )


def test_a_load_of_no_request_and_one_beyond_memory_are_one_line():
    check_size(1.0, LoadPlan(1.0))
    check_size(57.0, LoadPlan(86400.0))
    with pytest.raises(UsageError, match=r"0\.5 images/s for 1 s is less than one request: give a --duration of 2 s"):
        check_size(0.5, LoadPlan(1.0))
    with pytest.raises(UsageError, match=r"1e\+06 images/s for 86401 s are more than .* of at most 4 s"):
        check_size(1e6, LoadPlan(86400.0))


def test_the_capacity_takes_as_many_in_flight_as_give_more(fake: Any):
    """Each answer takes as long, however many are asked for: what is in flight is all that limits it."""
    with fake(delay_s=lambda count: 0.1) as (target, _):
        report = measure_capacity(site(target), LoadPlan(0.5, warmup=0.0, rules=LoadRules(connections=40)))
    assert report.concurrency == 32
    with fake(delay_s=lambda count: 0.01) as (target, _):
        assert (
            measure_capacity(site(target), LoadPlan(0.2, warmup=0.0, rules=LoadRules(connections=4))).concurrency == 4
        )


def test_a_capacity_of_nothing_says_why():
    with pytest.raises(ServerError, match=r"answered none of \d+ requests rightly \(.*refused"):
        measure_capacity(site(Target("127.0.0.1", 1)), LoadPlan(0.2, warmup=0.0))


def test_why_connections_failed_is_told_in_the_report(fake: Any):
    report = run_open_loop(site(Target("127.0.0.1", 1)), 50, LoadPlan(0.2, warmup=0.0))
    assert report.failed == {"connection": 10}
    assert "refused" in report.problem.lower()
    with fake() as (target, _):
        assert not run_open_loop(site(target), 50, LoadPlan(0.2, warmup=0.0)).problem


def test_an_answer_later_than_the_timeout_counts_as_none_and_so_does_what_left_too_late(fake: Any):
    late = iter([0.4])

    def stall(seconds: float) -> None:
        """Hold the generator up once, by more than the timeout."""
        if seconds > 0.05:
            time.sleep(next(late, 0.0))

    plan = LoadPlan(0.6, warmup=0.0, arrivals="constant", rules=LoadRules(timeout_s=0.2))
    with fake() as (target, _):
        report = run_open_loop(site(target), 100, plan, stall)
    assert report.failed.get("timeout", 0) >= 1
    assert report.latency is None or report.latency.max_ms <= 200
