"""Checks answers: logits are compared with the golden set, and with the first answer to the same image.

Two distances are allowed, as shares of the spread of the golden logits
(:func:`regnet_deploy.runtimes.gates.logit_spread`). The first answers, requested one by one before the load, are
compared with the golden set by the loose one, because the served variant may be quantized: this finds another network.
Answers under load are compared with the first answer to the same image by the close one: this finds answers that were
mixed up between requests, a batch that was not filled correctly, another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.load_testing.http_client import HttpReply

#: Mean distance of the logits of an image, as a share of the spread. For two different images it is above 1 on average.
LOOSE, CLOSE = 0.5, 0.05
#: Rounding error of a logit by another order of summation in FP32, as a share of the largest logit, with a margin.
_ROUNDING = 1e-5
#: Correct answers to an image that are remembered by their bytes, which depend on the batch that the image was in.
_KNOWN = 64

Scores = NDArray[np.float64]
#: Reads the scores ``(classes,)`` of an answer: NaN for classes that it does not name, None where it is not an answer.
Read = Callable[[HttpReply], "Scores | None"]


def logits_reader(classes: int) -> Read:
    """Return a function that reads the binary logits of an infer response."""

    def read(reply: HttpReply) -> Scores | None:
        raw = reply.body[reply.json_bytes or 0 :] if reply.json_bytes is not None else b""
        return np.frombuffer(raw, "<f4").astype(np.float64) if len(raw) == 4 * classes else None

    return read


def probabilities_reader(classes: int) -> Read:
    """Return a function that reads the logarithms of the probabilities of a classify response."""

    def read(reply: HttpReply) -> Scores | None:
        scores = np.full(classes, np.nan)
        try:
            for prediction in json.loads(reply.body)["predictions"]:
                scores[prediction["index"]] = np.log(max(prediction["probability"], 1e-300))
        except (ValueError, KeyError, TypeError, IndexError):
            return None
        return scores

    return read


def log_softmax(logits: NDArray[np.float32]) -> Scores:
    """Return the logarithm of the softmax of logits ``(n, classes)``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def logits_agree(reference: Scores, scores: Scores | None, allowed: float) -> bool:
    """Tell whether the scores of an image agree with its reference, ``(classes,)`` each, NaN where not known.

    They agree where their mean distance is at most ``allowed``, and the first class is that of the reference or one
    whose score in the reference is at most ``allowed`` lower.
    """
    if scores is None:
        return False
    known = ~np.isnan(reference) & ~np.isnan(scores)
    if not known.any() or not np.isfinite(scores[~np.isnan(scores)]).all():
        return False
    allowed += _ROUNDING * float(np.abs(reference[known]).max())
    if float(np.abs(scores - reference)[known].mean()) > allowed:
        return False
    lead = float(np.nanmax(reference)) - reference[int(np.nanargmax(scores))]
    if np.isnan(lead):  # the reference does not name it, so its score is below all that are named
        lead = float(np.nanmax(reference) - np.nanmin(reference))
    return bool(lead <= allowed)


def make_answer_check(references: Sequence[Scores], read: Read, allowed: float) -> Callable[[int, HttpReply], bool]:
    """Return a function that tells whether the answer to the request with an index is right.

    Args:
        references: scores by request.
        read: reads the scores of an answer.
        allowed: distance, see :func:`logits_agree`.
    """
    known: list[set[bytes]] = [set() for _ in references]

    def check(number: int, reply: HttpReply) -> bool:
        raw = reply.body[reply.json_bytes :] if reply.json_bytes is not None else None
        if raw is not None and raw in known[number]:
            return True
        if not logits_agree(references[number], read(reply), allowed):
            return False
        if raw is not None and len(known[number]) < _KNOWN:
            known[number].add(raw)
        return True

    return check
