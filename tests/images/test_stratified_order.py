"""The order takes from every class in turn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.images.stratified_order import stratified_order

labels = st.lists(st.integers(0, 5), max_size=60)


@given(labels, st.integers(0, 2**32), st.integers(0, 60))
def test_any_start_of_it_is_spread_as_evenly_as_the_classes_allow(labels, seed, count):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    there, taken = Counter(labels), Counter(labels[place] for place in order[:count])
    most = max(taken.values(), default=0)
    assert all(taken[label] >= min(most - 1, there[label]) for label in there)


def test_the_seed_says_which():
    labels = [0, 1] * 20
    assert stratified_order(labels, 1) == stratified_order(labels, 1) != stratified_order(labels, 2)
