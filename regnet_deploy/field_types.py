"""Checks the types of the fields of option records, which users of the Python API fill in."""

from __future__ import annotations

from numbers import Integral, Real
from types import NoneType
from typing import Any

from regnet_deploy.errors import UsageError

#: Annotation -> what a value may be, and in words. Numbers of NumPy are numbers.
_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a text"),
    "None": (NoneType, "None"),
}


def check_field_types(record: Any) -> None:
    """Check the fields that are annotated as numbers, texts, booleans or None; called in ``__post_init__``.

    Raises:
        UsageError: a value has another type.
    """
    for name in type(record).__annotations__:
        hidden = not getattr(getattr(type(record), "__dataclass_fields__", {}).get(name), "repr", True)
        problem = None if hidden else field_type_problem(type(record), name, getattr(record, name))
        if problem:  # a secret is not printed
            raise UsageError(problem)


def field_type_problem(record: type, name: str, value: Any) -> str | None:
    """Return in words that a value is not of the type that a field is annotated with, or None.

    Fields of other types than numbers, texts, booleans and None are not looked at: other records check themselves.
    """
    words = [word.strip() for word in str(record.__annotations__[name]).split("|")]
    if not all(word in _KINDS for word in words):
        return None
    if isinstance(value, tuple(_KINDS[word][0] for word in words)) and (
        "bool" in words or not isinstance(value, bool)  # True is a number in Python, and none of the user
    ):
        return None
    wanted = " or ".join(_KINDS[word][1] for word in words)
    return f"{name} must be {wanted}, got {value!r:.60} ({type(value).__name__})"
