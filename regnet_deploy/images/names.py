"""Lists of names in messages."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(names: Sequence[str], count: int = 5) -> str:
    """Return names separated by commas: all of them, or the first ``count`` and three dots."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
