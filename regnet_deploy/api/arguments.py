"""Checks of the arguments of public functions, which say what was expected instead of failing somewhere inside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from regnet_deploy.errors import UsageError

#: What is a path.
PATH = (str, os.PathLike)


def expect(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Check the type of an argument.

    Args:
        name: of the argument.
        value: what was given.
        kinds: what it may be.
        wanted: the same in words, with an example.

    Raises:
        UsageError: it is of another type.
    """
    if not isinstance(value, kinds):
        raise UsageError(f"{name} must be {wanted}, got {value!r:.60} ({type(value).__name__})")


def expect_each(name: str, values: Any, kinds: type | tuple[type, ...], wanted: str) -> tuple[Any, ...]:
    """Check that an argument is a sequence, not a text, and the types of its elements; return them.

    Raises:
        UsageError: it is of another type.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        expect(name, values, (), wanted)
    elements = tuple(values)
    for value in elements:
        expect(f"each of {name}", value, kinds, f"as in {wanted}")
    return elements
