"""How many cores this process may use, which is not how many the machine has."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, each core once, within the quota of its cgroup."""
    cpus = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    cores = {_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, math.ceil(min(len(cores), _cgroup_quota())))


def _cgroup_quota() -> float:
    """Return the cores' worth of time that a container may use; infinite without a limit."""
    quota, _, period = (_text("/sys/fs/cgroup/cpu.max") or "max").partition(" ")  # version 2
    if quota == "max":
        quota = _text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "-1"  # version 1
        period = _text("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or "100000"
    return int(quota) / int(period) if int(quota) > 0 else math.inf


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
