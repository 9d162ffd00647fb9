"""Candidates that are tried side by side are not nearly the same network."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.diversity import APART, diverse_ranks
from regnet_deploy.selection.selection import select


@pytest.fixture(scope="module")
def selection():
    return select(Budget(4e8, family="x"))


def places(selection, ranks):
    rows = selection.population.take(np.array(ranks))
    columns = np.stack([rows.d, rows.w_0, selection.slopes[ranks], rows.w_m, rows.g], axis=1).astype(float)
    return np.log(columns) / selection.trends.spread


def test_the_best_is_among_them_and_each_is_apart_from_the_others(selection):
    ranks = diverse_ranks(selection, 9)
    assert ranks[0] == 0
    assert len(set(ranks)) == 9
    assert ranks == sorted(ranks)
    found = places(selection, ranks)
    gaps = np.sqrt(((found[:, None] - found[None]) ** 2).sum(axis=2))
    assert gaps[np.triu_indices(9, 1)].min() >= APART


def test_whoever_is_passed_over_is_near_a_better_one(selection):
    ranks = diverse_ranks(selection, 5)
    passed = [rank for rank in range(ranks[-1]) if rank not in ranks]
    for rank in passed:
        better = [each for each in ranks if each < rank]
        gaps = np.sqrt(((places(selection, better) - places(selection, [rank])) ** 2).sum(axis=1))
        assert gaps.min() < APART


def test_more_than_there_are_shapes_takes_nearer_ones(selection):
    ranks = diverse_ranks(selection, 500)
    assert len(set(ranks)) == 500


def test_more_than_there_are_takes_all():
    few = select(Budget(4e8, family="x", tolerance=0.0001))
    assert diverse_ranks(few, few.considered + 5) == list(range(few.considered))
