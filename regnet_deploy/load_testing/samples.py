"""The requests of a load and how each ended, as columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: In place of an HTTP status, beside those of :mod:`regnet_deploy.load_testing.http_client`: the request was dropped,
#: because the limit of requests in flight was reached; the load ended before the answer.
DROPPED, PENDING = 0, -3


@dataclass(frozen=True, eq=False)
class Samples:
    """One row per request, in the order of the schedule; times in seconds from the start of the load.

    Attributes:
        intended: scheduled time.
        sent: when it was sent, or dropped.
        done: when its answer was complete or it had failed; NaN where neither happened.
        status: HTTP status, or one of the constants that stand in its place.
        wrong: whether an answer with status 200 was not the right one.
    """

    intended: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int64]
    wrong: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.intended)

    def where(self, rows: NDArray[np.bool_]) -> Samples:
        """Return some of the rows."""
        return Samples(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass
class Recorder:
    """Records the requests of a load while it runs, in lists, to which Python appends fastest.

    Attributes:
        start: when the load began (``time.monotonic()``).
        problem: message of the last connection that failed.
    """

    start: float = 0.0
    problem: str = ""
    _intended: list[float] = field(default_factory=list)
    _sent: list[float] = field(default_factory=list)
    _done: list[float] = field(default_factory=list)
    _status: list[int] = field(default_factory=list)
    _wrong: list[bool] = field(default_factory=list)

    def begin(self, intended: float, sent: float) -> int:
        """Record a request and return its ticket; times of ``time.monotonic()``."""
        self._intended.append(intended)
        self._sent.append(sent)
        self._done.append(math.nan)
        self._status.append(PENDING)
        self._wrong.append(False)
        return len(self._intended) - 1

    def end(self, ticket: int, status: int, done: float, wrong: bool = False) -> None:
        """Record how a request ended."""
        self._status[ticket] = status
        self._done[ticket] = done
        self._wrong[ticket] = wrong

    def samples(self) -> Samples:
        """Return the requests recorded so far."""
        columns = (self._intended, self._sent, self._done)
        intended, sent, done = (np.asarray(column, np.float64) - self.start for column in columns)
        return Samples(intended, sent, done, np.asarray(self._status, np.int64), np.asarray(self._wrong, np.bool_))
