"""Scheduling of the event loop: it does not preempt inferences."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Native ids of the threads of this process to which :func:`batch_scheduling` has given its policy.
_batch_threads: set[int] = set()

#: A flag beside the policy, which an operator may have set; it is kept.
_FLAG = getattr(os, "SCHED_RESET_ON_FORK", 0)


@contextmanager
def batch_scheduling() -> Iterator[bool]:
    """Give the calling thread the policy ``SCHED_BATCH``; yield False where that is not possible.

    By default a thread that wakes up preempts one that computes. An event loop wakes up several times for each request,
    and each time it evicts data of the running inference from the caches. With this policy it waits for a free core or
    the end of a time slice, a few ms, in which more requests arrive. Threads and processes that are started meanwhile
    inherit the policy, unless they call :func:`restore_default_scheduling`. A policy that an operator has set is kept.
    """
    thread = threading.get_native_id()
    changed = _set_policy("SCHED_OTHER", "SCHED_BATCH")
    if changed:
        _batch_threads.add(thread)
    try:
        yield changed
    finally:
        if changed:
            _batch_threads.discard(thread)
            _set_policy("SCHED_BATCH", "SCHED_OTHER")


def is_batch_scheduled() -> bool:
    """Return whether :func:`batch_scheduling` has changed the policy of the calling thread: its children inherit it."""
    return threading.get_native_id() in _batch_threads


def restore_default_scheduling(inherited: bool | None = None) -> bool:
    """Undo :func:`batch_scheduling` for the calling thread, which has inherited it.

    Args:
        inherited: whether the thread that started this process had :func:`is_batch_scheduled`; None: the calling thread
            was started by a thread of the same process.

    Returns:
        Whether the policy was changed; one that an operator has set is kept.
    """
    if inherited is None:
        inherited = bool(_batch_threads - {threading.get_native_id()})
    return inherited and _set_policy("SCHED_BATCH", "SCHED_OTHER")


def _set_policy(before: str, after: str) -> bool:
    """Change the calling thread from one policy to another; return False where it has not the first, or may not."""
    if not hasattr(os, "sched_setscheduler"):
        return False
    with suppress(OSError):  # a sandbox may forbid it
        policy = os.sched_getscheduler(0)
        if policy & ~_FLAG == getattr(os, before):
            os.sched_setscheduler(0, getattr(os, after) | (policy & _FLAG), os.sched_param(0))
            return True
    return False
