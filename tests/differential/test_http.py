"""The same requests to our server and to a real Triton; what differs is in differences.py, with the reason.

Marked `triton`: REAL_TRITON names a program that starts one, see tests/targets/triton_twin/twin.py.
DIFFERENTIAL_EXAMPLES is how many requests are made (400).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "400"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

pytestmark = [pytest.mark.triton, pytest.mark.timeout(1800)]


def compare(case: Any, clients: tuple[Any, Any], answers: Any, differences: Any) -> None:
    ours, theirs = (client.ask(case) for client in clients)
    differs = answers.difference(case, ours, theirs)
    if differs is not None:
        assert differences.explained(case, ours, theirs), f"{differs}\n{case!r}\nours: {ours!r}\nTriton: {theirs!r}"
    assert ours.status not in (0, 500, 501, 502), f"{case!r}: {ours!r}"


@SETTINGS
@given(data=st.data())
def test_requests_to_infer_are_answered_as_by_triton(
    clients: Any, cases: Any, answers: Any, differences: Any, data: Any
):
    compare(data.draw(cases.infer_requests()), clients, answers, differences)


@SETTINGS
@given(data=st.data())
def test_questions_are_answered_as_by_triton(clients: Any, cases: Any, answers: Any, differences: Any, data: Any):
    compare(data.draw(cases.questions()), clients, answers, differences)


def test_what_is_listed_is_so(clients: Any, answers: Any, differences: Any):
    for entry in differences.JUSTIFIED:
        case = entry.example()
        ours, theirs = (client.ask(case) for client in clients)
        seen = f"{entry.name}: {case!r}\nours: {ours!r}\nTriton: {theirs!r}"
        assert answers.difference(case, ours, theirs) is not None, f"no difference any more: {seen}"
        found = differences.explained(case, ours, theirs)
        assert found is entry, f"is taken for {found and found.name!r}: {seen}"


@pytest.mark.skip(reason="ends a Triton 2.51: it adds up the sizes of tensors without looking for an overflow")
def test_a_shape_of_more_elements_than_there_are(clients: Any, drafts: Any, answers: Any, differences: Any):
    draft = drafts.plain()
    draft.tensor["shape"] = [2**63 - 1, 3, 24, 24]
    compare(draft.done(), clients, answers, differences)
