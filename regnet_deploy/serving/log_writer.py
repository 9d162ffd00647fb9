"""Log lines: escaped, rate-limited by kind, and written by a thread of their own."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TextIO

#: Limits of what is logged: characters of a text and of a traceback, elements of a list or object, nesting.
MAX_TEXT, MAX_TRACEBACK, MAX_ELEMENTS, MAX_DEPTH = 500, 8_000, 50, 4

#: Lines that wait to be written; more are dropped and counted.
MAX_WAITING = 10_000

#: Seconds between two writes, in which lines are collected.
GATHER_S = 0.01

_PLAIN = re.compile(r"[A-Za-z0-9_./:+@%,()\[\]{}=-]+")


def clean(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return ``value`` as JSON data within the limits of length and nesting."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth and isinstance(value, Mapping):
        return {clean(str(key)): clean(item, depth - 1) for key, item in list(value.items())[:MAX_ELEMENTS]}
    if depth and isinstance(value, list | tuple):
        return [clean(item, depth - 1) for item in value[:MAX_ELEMENTS]]
    text = str(value)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text)} characters)"
    return text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded


def format_json(value: Any) -> str:
    """Return JSON in one line of printable ASCII; control characters and line ends are escaped."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f")


def format_text(facts: Mapping[str, Any], prefix: str = "") -> str:
    """Return cleaned ``facts`` as ``name=value ...``; objects within them as ``name.inner=value``."""
    words = []
    for key, value in facts.items():
        name = key if _PLAIN.fullmatch(key) else format_json(key)
        if isinstance(value, dict):
            words.append(format_text(value, f"{prefix}{name}."))
        else:
            plain = type(value) in (int, float) or (isinstance(value, str) and _PLAIN.fullmatch(value))
            words.append(f"{prefix}{name}={value if plain else format_json(value)}")
    return " ".join(words)


class RateLimit:
    """Limits lines of each kind per second and counts those that it suppresses; thread-safe."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, list[float]] = {}  # end of its second, lines allowed, lines suppressed
        self._due: dict[Hashable, int] = {}  # lines suppressed in seconds that are over

    def allow(self, kind: Hashable, now: float) -> bool:
        """Return whether another line of ``kind`` may be written at ``now``, in seconds."""
        with self._lock:
            state = self._kinds.get(kind)
            if state is None or now >= state[0]:
                self._end(kind)
                self._kinds[kind] = [now + 1.0, 1, 0]
                return True
            if state[1] < self._per_second:
                state[1] += 1
                return True
            state[2] += 1
            return False

    def suppressed(self, now: float) -> dict[Hashable, int]:
        """Return, once, how many lines of each kind were suppressed in seconds that are over."""
        with self._lock:
            for kind in [kind for kind, state in self._kinds.items() if now >= state[0]]:
                self._end(kind)
            due, self._due = self._due, {}
            return due

    def waiting(self) -> bool:
        """Return whether :meth:`suppressed` will have something to report."""
        with self._lock:
            return bool(self._due) or any(state[2] for state in self._kinds.values())

    def _end(self, kind: Hashable) -> None:
        state = self._kinds.pop(kind, None)
        if state is not None and state[2]:
            self._due[kind] = self._due.get(kind, 0) + int(state[2])


class LogWriter:
    """Writes lines in a thread of its own, so that a slow reader does not block those who log.

    Args:
        stream: takes the lines.
        notes: returns more lines to write; its argument is the number of lines dropped since the last call.
        more: returns whether ``notes`` will soon have lines, even if none is logged.

    Attributes:
        closed: no more lines are accepted.
    """

    def __init__(self, stream: TextIO, notes: Callable[[int], list[str]], more: Callable[[], bool]) -> None:
        self._stream = stream
        self._notes = notes
        self._more = more
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._idle = False
        self.closed = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(line)
        else:
            self._dropped += 1

    def wake(self) -> None:
        """Call ``more`` again."""
        if self._idle:
            self._idle = False
            self._waiting.put(None)

    def close(self, timeout_s: float) -> None:
        """Write the queued lines, for at most ``timeout_s`` seconds."""
        self.closed = True
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while not (self.closed and self._waiting.empty()):
            lines = self._take()
            dropped, self._dropped = self._dropped, 0
            lines += self._notes(dropped)
            if lines:
                with contextlib.suppress(OSError, ValueError):  # the reader is gone; the server goes on
                    self._stream.write("".join(line + "\n" for line in lines))
                    self._stream.flush()
                if not self.closed:
                    time.sleep(GATHER_S)

    def _take(self) -> list[str]:
        lines = []
        self._idle = True  # before ``more`` is called: what is logged after its answer wakes this thread
        with contextlib.suppress(queue.Empty):
            line = self._waiting.get(timeout=0.25 if self._more() else None)
            while True:
                if line is not None:
                    lines.append(line)
                line = self._waiting.get_nowait()
        return lines
