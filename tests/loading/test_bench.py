"""Loads that can be, and the capacity."""

from __future__ import annotations

import time
from typing import Any

import pytest

from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.loading.bench import Plan, capacity_of, check_size, open_load
from regnet_deploy.loading.generator import Load, Rules
from regnet_deploy.loading.site import Site
from regnet_deploy.loading.target import Target, post


def site(target: Target) -> Site:
    return Site(target, Load([post(target, "/", b"x", {})], lambda number, reply: True), "tensor", "regnet", "nothing")


def test_a_load_of_no_request_and_one_beyond_memory_are_one_line():
    check_size(1.0, Plan(1.0))
    check_size(57.0, Plan(86400.0))
    with pytest.raises(UsageError, match=r"0\.5 images/s for 1 s is less than one request: give a --duration of 2 s"):
        check_size(0.5, Plan(1.0))
    with pytest.raises(UsageError, match=r"1e\+06 images/s for 86401 s are more than .* of at most 4 s"):
        check_size(1e6, Plan(86400.0))


def test_the_capacity_takes_as_many_in_flight_as_give_more(fake: Any):
    """Each answer takes as long, however many are asked for: what is in flight is all that limits it."""
    with fake(delay_s=lambda count: 0.1) as (target, _):
        report = capacity_of(site(target), Plan(0.5, warmup=0.0, rules=Rules(connections=40)))
    assert report.concurrency == 32
    with fake(delay_s=lambda count: 0.01) as (target, _):
        assert capacity_of(site(target), Plan(0.2, warmup=0.0, rules=Rules(connections=4))).concurrency == 4


def test_a_capacity_of_nothing_says_why():
    with pytest.raises(ServerError, match=r"answered none of \d+ requests rightly \(.*refused"):
        capacity_of(site(Target("127.0.0.1", 1)), Plan(0.2, warmup=0.0))


def test_why_connections_failed_is_told_in_the_report(fake: Any):
    report = open_load(site(Target("127.0.0.1", 1)), 50, Plan(0.2, warmup=0.0))
    assert report.failed == {"connection": 10}
    assert "refused" in report.problem.lower()
    with fake() as (target, _):
        assert not open_load(site(target), 50, Plan(0.2, warmup=0.0)).problem


def test_an_answer_later_than_the_timeout_counts_as_none_and_so_does_what_left_too_late(fake: Any):
    late = iter([0.4])

    def stall(seconds: float) -> None:
        """Hold the generator up once, by more than the timeout."""
        if seconds > 0.05:
            time.sleep(next(late, 0.0))

    plan = Plan(0.6, warmup=0.0, arrivals="constant", rules=Rules(timeout_s=0.2))
    with fake() as (target, _):
        report = open_load(site(target), 100, plan, stall)
    assert report.failed.get("timeout", 0) >= 1
    assert report.latency is None or report.latency.max_ms <= 200
