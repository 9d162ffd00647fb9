"""Scheduling of the event loop: it does not preempt inferences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Marks the policy as set by the server and not by an operator; it has no other effect with this policy, and is not
#: inherited.
_OURS = getattr(os, "SCHED_RESET_ON_FORK", 0)


@contextmanager
def batch_scheduling() -> Iterator[bool]:
    """Give the calling thread the policy ``SCHED_BATCH``; yield False where that is not possible.

    By default a thread that wakes up preempts one that computes. An event loop wakes up several times for each request,
    and each time it evicts data of the running inference from the caches. With this policy it waits for a free core or
    the end of a time slice, a few ms, in which more requests arrive. Threads and processes that are started meanwhile
    inherit the policy, unless they call :func:`restore_default_scheduling`. A policy that an operator has set is kept.
    """
    changed = _set_batch_policy()
    try:
        yield changed
    finally:
        if changed:
            with suppress(OSError):  # the process has lost the privilege; it is about to end
                # The mark stays: removing it needs a privilege.
                os.sched_setscheduler(0, os.SCHED_OTHER | _OURS, os.sched_param(0))


def _set_batch_policy() -> bool:
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        if os.sched_getscheduler(0) & ~_OURS != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH | _OURS, os.sched_param(0))
    except OSError:  # a sandbox may forbid it
        return False
    return True


def restore_default_scheduling() -> bool:
    """Undo :func:`batch_scheduling` for the calling thread, which has inherited it.

    Returns:
        Whether the policy was changed; it is kept where neither this process nor its parent has set it.
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
