"""The search for the highest rate."""

from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.load_testing.rate_search import find_rate


@settings(max_examples=60, deadline=None)
@given(limit=st.floats(1, 1e4), start=st.floats(1, 1e4), precision=st.floats(0.02, 0.2))
def test_it_comes_as_near_to_the_limit_as_was_asked_within_few_trials(limit, start, precision):
    tried = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = find_rate(passes, start, least=1.0, precision=precision)
    assert len(tried) <= 14
    assert found in tried
    assert found <= limit
    if 0.05 <= limit / start <= 20:
        assert limit <= found * (1 + precision) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(start=st.floats(0.5, 1e5))
def test_where_nothing_passes_it_ends_at_the_least(start):
    tried = []
    assert find_rate(lambda rate: bool(tried.append(rate)), start, least=0.5) == 0
    assert tried[-1] == 0.5
    assert len(tried) <= 10


def test_the_right_start_takes_few_trials():
    tried = []
    find_rate(lambda rate: bool(tried.append(rate)) or rate <= 103, 100, least=1)
    assert len(tried) <= 5
