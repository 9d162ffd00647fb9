"""Whether an answer is the right one: logits held against the golden set, and against the first answer to the image.

Two distances are allowed, as shares of how much the golden logits vary
(:func:`regnet_deploy.runtimes.gates.logit_spread`).
The first answers, asked for one by one before the load, are held loosely against the golden set, for the variant that
is served may be quantised: that finds another network. Answers under load are held closely against the first one of
the same image: that finds answers that were mixed up between requests, a half-filled batch, another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.load_testing.http_client import HttpReply

#: Mean distance of an image's logits, as a share of the spread. Those of two images differ by more than 1 on average.
LOOSE, CLOSE = 0.5, 0.05
#: What FP32 in another order of summation does to a logit, as a share of the largest, with room.
_ROUNDING = 1e-5
#: Answers of an image that are known to be right are known by their bytes, which depend on the batch that it was in.
_KNOWN = 64

Scores = NDArray[np.float64]
#: Reads the scores, ``(classes,)``, out of an answer: NaN where it names none, None where it is no answer at all.
Read = Callable[[HttpReply], "Scores | None"]


def logits_reader(classes: int) -> Read:
    """Return what reads the logits behind the JSON of an infer response."""

    def read(reply: HttpReply) -> Scores | None:
        raw = reply.body[reply.json_bytes or 0 :] if reply.json_bytes is not None else b""
        return np.frombuffer(raw, "<f4").astype(np.float64) if len(raw) == 4 * classes else None

    return read


def probabilities_reader(classes: int) -> Read:
    """Return what reads the logarithms of the probabilities of a classify response, of the classes that it names."""

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
    """Return the logarithms of the probabilities of logits ``(n, classes)``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def logits_agree(reference: Scores, scores: Scores | None, allowed: float) -> bool:
    """Tell whether the scores of an image are those of its reference, ``(classes,)`` each, NaN where not known.

    They are where their mean distance is at most ``allowed`` and the first class is the same, or one that the reference
    has no further behind its own first.
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
    if np.isnan(lead):  # the reference names it not at all: it is behind all that are named
        lead = float(np.nanmax(reference) - np.nanmin(reference))
    return bool(lead <= allowed)


def make_answer_check(references: Sequence[Scores], read: Read, allowed: float) -> Callable[[int, HttpReply], bool]:
    """Return what tells whether an answer to the request of this number is right.

    Args:
        references: scores by request.
        read: reads an answer.
        allowed: distance, see :func:`agrees`.
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
