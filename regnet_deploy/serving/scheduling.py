"""How the system shares out the cores: the event loop takes its turn, and does not interrupt an inference for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Marks the policy as the server's own and not an operator's: of this policy it means nothing else, and what a thread
#: starts inherits the policy alone.
_OURS = getattr(os, "SCHED_RESET_ON_FORK", 0)


@contextmanager
def batch_scheduling() -> Iterator[bool]:
    """Have the calling thread wait for its turn while the cores are busy; yields False where that cannot be.

    By default a thread that wakes up takes the core of one that computes, at once. An event loop wakes up several times
    for each request, and each time an inference finds less of its data in the caches than it left there. Where a core
    is free nothing changes; where none is, the loop waits for at most a slice of the scheduler, a few ms, in which more
    has come. What is started from the thread meanwhile does as it does, unless it calls :func:`come_at_once`. A policy
    that somebody gave the process is left alone.
    """
    took = _take_turns()
    try:
        yield took
    finally:
        if took:
            with suppress(OSError):  # rights that were given up meanwhile; nothing waits for it any more
                # The mark stays: to take it away is a privilege.
                os.sched_setscheduler(0, os.SCHED_OTHER | _OURS, os.sched_param(0))


def _take_turns() -> bool:
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        if os.sched_getscheduler(0) & ~_OURS != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH | _OURS, os.sched_param(0))
    except OSError:  # a sandbox does not allow it
        return False
    return True


def restore_default_scheduling() -> bool:
    """Have the calling thread be scheduled as by default where it inherited from :func:`taking_turns` that it is not.

    Returns:
        Whether it did; a thread of a process whose main thread does not take turns, nor its parent's, is left alone.
    """
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        starters = [os.sched_getscheduler(pid) for pid in (os.getpid(), os.getppid())]
        if os.sched_getscheduler(0) != os.SCHED_BATCH or os.SCHED_BATCH | _OURS not in starters:
            return False
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True
