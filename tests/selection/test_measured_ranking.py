"""What training said of candidates orders them, and is recorded."""

from __future__ import annotations

import pytest

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.selection.selection import ranked_by_measurement, select


@pytest.fixture(scope="module")
def selection():
    return select(Budget(4e8, family="x"))


@pytest.fixture(scope="module")
def measured(selection):
    return ranked_by_measurement(selection, [30, 0, 8], [{1: 40.0, 3: 20.0}, {1: 41.0, 3: 21.5}, {1: 50.0}], "photos")


def test_the_order_is_that_of_what_was_measured_and_the_others_follow(selection, measured):
    before = [selection.candidate(rank).regnet for rank in range(40)]
    after = [measured.candidate(rank).regnet for rank in range(40)]
    assert after[:3] == [before[30], before[0], before[8]]
    assert after[3:] == [regnet for rank, regnet in enumerate(before) if rank not in (30, 0, 8)]
    assert measured.considered == selection.considered


def test_a_candidate_has_the_error_of_its_longest_training(measured):
    assert [measured.candidate(rank).measured_error for rank in range(4)] == [20.0, 21.5, 50.0, None]


def test_the_reason_says_what_was_measured_on_what(measured):
    reason = measured.reason()
    assert "20.00 % top-1 error after 3 epochs" in reason
    assert "trained on photos" in reason
    assert "number 31 before" in reason


def test_the_bundle_keeps_every_round(measured):
    tried = selection_parts(measured)["selection"]["tried"]
    assert tried["data"] == "photos"
    assert tried["candidates"][0] == {"rank_before": 31, "errors_percent": {"1": 40.0, "3": 20.0}}
    assert [each["rank_before"] for each in tried["candidates"]] == [31, 1, 9]
