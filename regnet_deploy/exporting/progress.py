"""How it is told that something goes on."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is done and what there is to do.
Advance = Callable[[int, int], None]


def quiet(done: int, total: int) -> None:
    """Tell nobody."""
