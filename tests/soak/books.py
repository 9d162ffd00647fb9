"""What became of every request, and of the server's memory: collected by many threads, told at the end."""

from __future__ import annotations

import collections
import os
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Latencies kept of a kind; of more, each newcomer takes the place of one by turns.
_KEPT = 4000


class Books:
    """Counts by kind and outcome, latencies, failures."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: list[str] = []
        self.lost_to_kills: list[float] = []
        self.kills: list[float] = []
        self.events: collections.Counter[str] = collections.Counter()
        self._latencies: dict[str, list[float]] = {}
        self._seen: collections.Counter[str] = collections.Counter()

    def note(self, kind: str, outcome: str, seconds: float | None = None) -> None:
        """Count one request."""
        with self._lock:
            self.counts[kind, outcome] += 1
            if seconds is not None:
                kept = self._latencies.setdefault(kind, [])
                if len(kept) < _KEPT:
                    kept.append(seconds)
                else:
                    kept[self._seen[kind] % _KEPT] = seconds
                self._seen[kind] += 1

    def fail(self, what: str) -> None:
        """Note something that may not be."""
        with self._lock:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {what}"[:600])

    def event(self, name: str) -> None:
        """Count something that was done to the server."""
        with self._lock:
            self.events[name] += 1

    def killed(self) -> None:
        """Note that a decode process was killed."""
        with self._lock:
            self.kills.append(time.monotonic())

    def lost(self) -> None:
        """Note a request that a killed process took with it."""
        with self._lock:
            self.lost_to_kills.append(time.monotonic())

    def to_json(self) -> dict[str, Any]:
        """Return all of it but the samples, JSON data; latencies in ms."""
        kinds: dict[str, dict[str, int]] = {}
        for (kind, outcome), count in sorted(self.counts.items()):
            kinds.setdefault(kind, {})[outcome] = count
        latencies = {}
        for kind, kept in sorted(self._latencies.items()):
            ordered = sorted(kept)
            latencies[kind] = {
                name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
                for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
            }
        return {
            "requests": kinds,
            "latency_ms": latencies,
            "events": dict(self.events),
            "decode_processes_killed": len(self.kills),
            "lost_to_kills": len(self.lost_to_kills),
            "failures": self.failures[:200],
            "failures_in_all": len(self.failures),
        }


@dataclass(frozen=True)
class Sample:
    """The server at a moment: seconds since the start, bytes, and numbers of its own process; ``tree`` has all."""

    at_s: float
    rss: int
    tree: int
    threads: int
    files: int
    processes: int


@dataclass
class Samples:
    """Samples in their order."""

    process: int
    start: float = field(default_factory=time.monotonic)
    taken: list[Sample] = field(default_factory=list)

    def take(self) -> Sample:
        """Look at the process and its children."""
        own = Path(f"/proc/{self.process}")
        status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines() if ":" in line)
        rss = int(status["VmRSS"].split()[0]) * 1024
        children = children_of(self.process)
        tree = rss + sum(_rss(child) for child in children)
        sample = Sample(
            round(time.monotonic() - self.start, 1),
            rss,
            tree,
            int(status["Threads"]),
            len(os.listdir(own / "fd")),
            1 + len(children),
        )
        self.taken.append(sample)
        return sample

    def growth(self, what: str) -> float:
        """Return by how much something grew in the second half: the median slope of all pairs, times its length.

        Bursts and swaps that happen to lie under a sample do not move a median.
        """
        half = [sample for sample in self.taken if sample.at_s >= self.taken[-1].at_s / 2]
        slopes = [
            (getattr(b, what) - getattr(a, what)) / (b.at_s - a.at_s)
            for i, a in enumerate(half)
            for b in half[i + 1 :]
            if b.at_s > a.at_s
        ]
        return statistics.median(slopes) * (half[-1].at_s - half[0].at_s) if slopes else 0.0

    def to_json(self) -> list[list[float]]:
        """Return seconds, MB, MB of the tree, threads, files, processes of each sample."""
        return [
            [one.at_s, round(one.rss / 1e6, 1), round(one.tree / 1e6, 1), one.threads, one.files, one.processes]
            for one in self.taken
        ]


def children_of(process: int) -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _rss(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def cpu_s(process: int) -> float:
    """Return the seconds of CPU that a process has had, with those of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
