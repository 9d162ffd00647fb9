"""Loads that can be, and the capacity."""

from __future__ import annotations

import time
from typing import Any

import pytest

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.generator import Load, LoadLimits
from regnet_deploy.load_testing.load_runs import LoadPlan, measure_capacity, run_open_loop
from regnet_deploy.load_testing.served_model import ServedModel
from regnet_deploy.load_testing.target import Target, post
from regnet_deploy.progress import NoProgress


def served(target: Target) -> ServedModel:
    load = Load(target, [post(target, "/", b"x", {})], lambda number, reply: True)
    return ServedModel(load, "tensor", "regnet", "nothing")


def test_a_load_of_no_request_and_one_beyond_memory_are_one_line():
    LoadPlan(1.0).check_rate(1.0)
    LoadPlan(86400.0).check_rate(57.0)
    with pytest.raises(UsageError, match=r"0\.5 images/s for 1 s is less than one request: give a --duration of 2 s"):
        LoadPlan(1.0).check_rate(0.5)
    with pytest.raises(UsageError, match=r"1e\+06 images/s for 86401 s are more than .* of 4 s or less"):
        LoadPlan(86400.0).check_rate(1e6)


def test_the_capacity_takes_as_many_in_flight_as_give_more(fake: Any):
    """Each answer takes as long, however many are asked for: what is in flight is all that limits it."""
    with fake(delay_s=lambda count: 0.1) as (target, _):
        report = measure_capacity(served(target), LoadPlan(0.5, warmup=0.0, limits=LoadLimits(connections=40)))
    assert report.concurrency == 32
    with fake(delay_s=lambda count: 0.01) as (target, _):
        assert (
            measure_capacity(served(target), LoadPlan(0.2, warmup=0.0, limits=LoadLimits(connections=4))).concurrency
            == 4
        )


def test_a_capacity_of_nothing_says_why():
    with pytest.raises(ServerError, match=r"none of \d+ answers .* was correct \(.*refused"):
        measure_capacity(served(Target("127.0.0.1", 1)), LoadPlan(0.2, warmup=0.0))


def test_why_connections_failed_is_told_in_the_report(fake: Any):
    report = run_open_loop(served(Target("127.0.0.1", 1)), 50, LoadPlan(0.2, warmup=0.0))
    assert report.failed == {"connection": 10}
    assert "refused" in report.problem.lower()
    with fake() as (target, _):
        assert not run_open_loop(served(target), 50, LoadPlan(0.2, warmup=0.0)).problem


def test_an_answer_later_than_the_timeout_counts_as_none_and_so_does_what_left_too_late(fake: Any):
    late = iter([0.4])

    class Stall(NoProgress):
        """Holds the generator up once, by more than the timeout."""

        def update(self, completed: float, total: float | None = None, note: str = "") -> None:
            if completed > 0.05:
                time.sleep(next(late, 0.0))

    plan = LoadPlan(0.6, warmup=0.0, arrivals="constant", limits=LoadLimits(timeout_s=0.2))
    with fake() as (target, _):
        report = run_open_loop(served(target), 100, plan, Stall())
    assert report.failed.get("timeout", 0) >= 1
    assert report.latency is None or report.latency.max_ms <= 200
