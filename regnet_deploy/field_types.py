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
    for name, annotation in type(record).__annotations__.items():
        words = [word.strip() for word in str(annotation).split("|")]
        hidden = not getattr(getattr(type(record), "__dataclass_fields__", {}).get(name), "repr", True)
        if hidden or not all(word in _KINDS for word in words):
            continue  # a secret is not printed; other records check themselves
        value = getattr(record, name)
        if not isinstance(value, tuple(_KINDS[word][0] for word in words)):
            wanted = " or ".join(_KINDS[word][1] for word in words)
            raise UsageError(f"{name} must be {wanted}, got {value!r:.60} ({type(value).__name__})")
