"""Whether answers are right: of the same image, of another one, of a quantised network, of nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.load_testing.answer_check import (
    CLOSE,
    LOOSE,
    log_softmax,
    logits_agree,
    logits_reader,
    make_answer_check,
    probabilities_reader,
)
from regnet_deploy.load_testing.http_client import HttpReply
from regnet_deploy.runtimes.gates import logit_spread

LOGITS = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 3
VARIES = logit_spread(LOGITS)


def tensor(logits: np.ndarray) -> HttpReply:
    head = b'{"outputs":[]}'
    return HttpReply(200, head + logits.astype("<f4").tobytes(), len(head))


def classified(logits: np.ndarray, k: int = 5) -> HttpReply:
    scores = log_softmax(logits[None])[0]
    best = np.argsort(-scores)[:k]
    named = [{"label": "x", "index": int(i), "probability": float(np.exp(scores[i]))} for i in best]
    return HttpReply(200, json.dumps({"predictions": named, "timing_ms": {}}).encode(), None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), image=st.integers(0, 19))
def test_rounding_is_right_and_another_image_is_wrong(seed, image):
    noise = np.random.default_rng(seed).normal(size=50).astype(np.float32) * 1e-5
    check = make_answer_check(list(LOGITS.astype(np.float64)), logits_reader(50), CLOSE * VARIES)
    assert check(image, tensor(LOGITS[image] + noise))
    assert not check(image, tensor(LOGITS[(image + 1 + seed % 19) % 20]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), image=st.integers(0, 19))
def test_what_a_quantised_network_loses_is_right_beside_the_golden_set(seed, image):
    noise = np.random.default_rng(seed).uniform(-0.24, 0.24, size=50) * VARIES  # two classes come no nearer than LOOSE
    wanted = LOGITS[image].astype(np.float64)
    assert logits_agree(wanted, wanted + noise, LOOSE * VARIES)
    assert not logits_agree(wanted, LOGITS[image - 1].astype(np.float64), LOOSE * VARIES)


@settings(max_examples=60, deadline=None)
@given(image=st.integers(0, 19), k=st.integers(1, 50))
def test_predictions_are_held_against_the_logits_they_come_from(image, k):
    references = list(log_softmax(LOGITS))
    check = make_answer_check(references, probabilities_reader(50), CLOSE * VARIES)
    assert check(image, classified(LOGITS[image], k))
    assert not check(image, classified(LOGITS[image - 1], k))


def test_the_first_answer_is_a_reference_though_it_names_five_classes():
    read = probabilities_reader(50)
    first = [read(classified(logits)) for logits in LOGITS]
    check = make_answer_check(first, read, CLOSE * VARIES)
    assert all(check(i, classified(LOGITS[i])) for i in range(20))
    assert not any(check(i, classified(LOGITS[i - 1])) for i in range(20))


@pytest.mark.parametrize(
    "reply",
    [
        HttpReply(200, b"", 0),
        HttpReply(200, b"{}", None),
        HttpReply(200, b"{}" + bytes(196), 2),
        HttpReply(200, np.full(50, np.nan, "<f4").tobytes(), 0),
        HttpReply(200, np.full(50, np.inf, "<f4").tobytes(), 0),
    ],
)
def test_what_is_no_answer_is_wrong(reply):
    assert not make_answer_check(list(LOGITS.astype(np.float64)), logits_reader(50), 1e9)(0, reply)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"predictions": 1}', b'{"predictions": [{"index": 99, "probability": 1}]}', b"\xff"]
)
def test_what_are_no_predictions_is_no_answer(body):
    assert probabilities_reader(50)(HttpReply(200, body, None)) is None


def test_where_the_reference_does_not_decide_either_class_is_right():
    reference = np.asarray([2.0, 2.0 - 1e-7, 0.0])
    assert logits_agree(reference, reference[[1, 0, 2]], CLOSE)
