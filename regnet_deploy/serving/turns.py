"""How the system shares out the cores: the event loop takes its turn, and does not interrupt an inference for it."""

from __future__ import annotations

import os


def take_turns() -> bool:
    """Have the calling thread wait for its turn while the cores are busy; False where the system does not know that.

    By default a thread that wakes up takes the core of one that computes, at once. An event loop wakes up several times
    for each request, and each time an inference finds less of its data in the caches than it left there. Where a core
    is free nothing changes; where none is, the loop waits for at most a slice of the scheduler, a few ms, in which more
    has come. What is started from the thread does as it does, unless it calls :func:`come_at_once`.
    """
    return _schedule("SCHED_BATCH")


def come_at_once() -> bool:
    """Have the calling thread be scheduled as threads are by default; False where the system does not know that."""
    return _schedule("SCHED_OTHER")


def _schedule(policy: str) -> bool:
    if not hasattr(os, policy):
        return False
    try:
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
    except OSError:  # a sandbox does not allow it, or who started the server gave it a policy that it may not leave
        return False
    return True
