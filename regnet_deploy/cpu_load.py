"""How much of the CPU other programs use while this one measures, from the counters of Linux in ``/proc``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.cpu import available_cpus

_PROC = Path("/proc")


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU time since the start of the machine.

    Attributes:
        clock: when they were read, seconds.
        all: of all programs and of the machine's host (steal time).
        own: of this process and its descendants, those that ended included.
    """

    clock: float
    all: float
    own: float


def read_cpu_times(proc: Path = _PROC) -> CpuTimes | None:
    """Return the CPU times now; None where the system does not report them."""
    try:
        fields = (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(field) for field in fields]
    rate = os.sysconf("SC_CLK_TCK")
    return CpuTimes(time.monotonic(), (sum(ticks) - sum(ticks[3:5])) / rate, _own_ticks(proc) / rate)


class OtherLoad:
    """Measures the cores that other programs keep busy, from when it is made on.

    Args:
        read: returns the CPU times.
    """

    def __init__(self, read: Callable[[], CpuTimes | None] = read_cpu_times) -> None:
        self._read, self._start = read, read()

    def cores(self) -> float | None:
        """Return the mean number of cores that others kept busy since the start; None where it is not known."""
        now = self._read()
        if self._start is None or now is None or now.clock <= self._start.clock:
            return None
        others = (now.all - self._start.all) - (now.own - self._start.own)
        return max(0.0, others / (now.clock - self._start.clock))

    def contended_cores(self) -> float | None:
        """Return the same less the cores that this process may not use anyway, by affinity or the quota of a cgroup.

        In a container with the time of 2 of 64 cores, 62 can be busy without taking anything from it.
        """
        others = self.cores()
        return None if others is None else max(0.0, others - ((os.cpu_count() or 1) - available_cpus()))


def _own_ticks(proc: Path) -> int:
    """Return the ticks of this process and its descendants; each has those of the children that it has waited for."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name of the program, in brackets, may contain blanks and brackets.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own and pid not in own}:
        own |= more
    return sum(ticks.get(pid, 0) for pid in own)
