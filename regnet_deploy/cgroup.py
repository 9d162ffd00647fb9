"""Limits of the control groups (cgroups) that this process runs in: CPU time and memory.

A container or a systemd unit is a cgroup, and each cgroup on the path from the root to that of the process can have a
limit: the smallest one counts. Version 1 has a hierarchy for each controller, version 2 has one for all, and a machine
can have both. ``/proc/self/cgroup`` names the cgroup of the process in each hierarchy, ``/proc/self/mountinfo`` where
the hierarchies are mounted. See cgroups(7) and cgroup_namespaces(7).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

#: Returns the text of a file; None where it cannot be read.
ReadText = Callable[[str], str | None]

#: Where hierarchies are usually mounted, for a system without /proc.
_DEFAULT_MOUNT = PurePosixPath("/sys/fs/cgroup")


def cpu_quota(read: ReadText) -> float:
    """Return how many cores' time this process may use; infinity without a limit."""
    least = math.inf
    for folder in _folders("cpu", read):
        quota, _, period = (read(f"{folder}/cpu.max") or "").partition(" ")  # version 2
        if not quota:
            quota, period = read(f"{folder}/cpu.cfs_quota_us") or "", read(f"{folder}/cpu.cfs_period_us") or ""
        if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
            least = min(least, int(quota) / int(period))
    return least


def memory_limit(read: ReadText) -> int | None:
    """Return how many bytes of memory this process may use; None without a limit."""
    limits = [
        int(text)
        for folder in _folders("memory", read)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := read(f"{folder}/{name}") or "").isdecimal()
    ]
    return min(limits, default=None)


def _folders(controller: str, read: ReadText) -> Iterator[str]:
    """Return the folders of the cgroups of this process, and of those around them, as far as they are mounted."""
    mounts = list(_mounts(controller, read))
    paths = dict(_paths(controller, read))
    if not mounts:
        mounts = [(2, "/", str(_DEFAULT_MOUNT)), (1, "/", str(_DEFAULT_MOUNT / controller))]
    for version, root, mount in mounts:
        inside = _inside(paths.get(version, "/"), root)
        if inside is None:
            continue
        folder = PurePosixPath(mount, *inside)
        yield str(folder)
        yield from map(str, list(folder.parents)[: len(inside)])


def _inside(path: str, root: str) -> tuple[str, ...] | None:
    """Return the way from the root of a mount to a cgroup; None where the mount does not contain it.

    Both are given relative to the root of the process's cgroup namespace, and begin with ``/..`` where they are outside
    of it. The names between a root above the namespace and the namespace itself are not known.
    """
    parts, above = PurePosixPath(path).parts[1:], PurePosixPath(root).parts[1:]
    if parts[: len(above)] == above:
        rest = parts[len(above) :]
        return rest if ".." not in rest else None
    return () if above and set(above) == {".."} else None


def _paths(controller: str, read: ReadText) -> Iterator[tuple[int, str]]:
    """Return the path of the process's cgroup in the hierarchies that may limit it, by version."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _mounts(controller: str, read: ReadText) -> Iterator[tuple[int, str, str]]:
    """Return version, root and mount point of the hierarchies that may limit the process."""
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, system = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(system) < 3:
            continue
        root, mount = map(_unescape, fields[3:5])
        if system[0] == "cgroup2":
            yield 2, root, mount
        elif system[0] == "cgroup" and controller in system[2].split(","):
            yield 1, root, mount


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
