"""Lists of names in messages."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(names: Sequence[str], count: int = 5) -> str:
    """Return names separated by commas, in printable form: all of them, or the first ``count`` and three dots."""
    return ", ".join(map(printable, names[:count])) + (", ..." if len(names) > count else "")


def printable(name: str) -> str:
    """Return a name with escapes for what a terminal would act on: names of files can have line breaks and commands."""
    if name.isprintable():
        return name
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
