"""Whether an answer is the network's, for the loads of `serving.py` and `serving_peers.py`: every answer is looked at.

It costs the client the same whoever answered: logits that were found right once are known again by their bytes, JSON,
in which some tell how long they took, is read each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regnet_deploy.load_testing.answer_check import CLOSE, log_softmax, make_answer_check, probabilities_reader
from regnet_deploy.load_testing.http_client import HttpReply
from regnet_deploy.runtimes.gates import logit_spread

#: How JSON begins, in an answer of HTTP or within a message of gRPC.
_JSON = b'{"'


def checker(logits: Sequence[Sequence[float]], kind: str, least: int) -> Callable[[int, bytes], bool]:
    """Return what tells whether an answer to the request of this number is right.

    Args:
        logits: of the requests, by a bare session; none where only the length of answers is looked at.
        kind: ``logits``: answers end with them in FP32. ``classes``: they hold JSON of the likeliest ones.
        least: bytes that an answer has at least.
    """
    if not logits:
        return lambda number, answer: len(answer) >= least
    wanted = np.array(logits, np.float32)
    classes, allowed = wanted.shape[1], CLOSE * logit_spread(wanted)
    if kind == "classes":
        check = make_answer_check(list(log_softmax(wanted)), probabilities_reader(classes), allowed)
    else:
        check = make_answer_check(list(wanted.astype(np.float64)), _last, allowed)

    def right(number: int, answer: bytes) -> bool:
        if len(answer) < max(least, 4 * classes if kind == "logits" else 0):
            return False
        if kind == "logits":
            return check(number, HttpReply(200, answer[-4 * classes :], 0))
        return check(number, HttpReply(200, answer[answer.find(_JSON) : answer.rfind(b"}") + 1], None))

    return right


def _last(reply: HttpReply) -> np.ndarray:
    return np.frombuffer(reply.body, "<f4").astype(np.float64)
