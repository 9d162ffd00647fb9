"""Records: the base of typed data that is stored as JSON in the manifest.

A record is a frozen ``msgspec.Struct``. Its field names are the JSON keys. What a field's default means:

- ``None``, ``()`` or ``{}``: the key is omitted from the JSON if the field has this value;
- :func:`default`: the key is always written, and may be missing in bundles of earlier versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from regnet_deploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all records."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        data: dict[str, Any] = to_json(self)
        return data

    def replace(self, **changes: Any) -> Self:
        """Return a copy with changed fields."""
        return msgspec.structs.replace(self, **changes)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the record of this JSON data; see :func:`from_json`."""
        return from_json(data, cls)


def default(value: Any) -> Any:
    """Return the default of a field that is always written."""
    return msgspec.field(default_factory=lambda: copy(value))  # a container is not shared


def to_json(value: Any) -> Any:
    """Return a record, or a container of records, as JSON data."""
    return _lists(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain))


def from_json(data: Any, kind: type[T]) -> T:
    """Return the record of this JSON data. Unknown keys are ignored, unless the record forbids them.

    Raises:
        BundleError: the data do not match; the message has the path, such as
            ``variants.onnx-fp16.proof.cosine: expected float, got str``.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise BundleError(_explain(data, kind, str(error))) from None
    except UsageError as error:  # raised by a record that checks more than types
        raise BundleError(str(error)) from None


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
    return dict(_lists(schema))


def _plain(value: Any) -> Any:
    for kind in (str, float, int):  # their subclasses are not encoded: numpy.float64 is one, torch's version another
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{value!r:.80} is not JSON data")


def _lists(value: Any) -> Any:
    """Return containers as JSON data: tuples become lists."""
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_lists(each) for each in value]
    return value


def _explain(data: Any, kind: type[Any], message: str) -> str:
    """Return ``path: problem`` from msgspec's message, which has ``[...]`` instead of the key of a dictionary."""
    what, _, where = message.partition(" - at `$")
    steps: list[str | int] = [
        name if name else int(index) if index.isdigit() else index
        for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", where)
    ]
    for place, step in enumerate(steps):
        if step == "...":
            values = _at(data, steps[:place])
            alone = {key: _replaced(data, steps[:place], {key: value}) for key, value in values.items()}
            steps[place] = next(key for key, document in alone.items() if _message(document, kind) == message)
            data = alone[str(steps[place])]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return f"{path.removeprefix('.') or 'the manifest'}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _message(data: Any, kind: type[Any]) -> str | None:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _at(data: Any, steps: list[str | int]) -> Any:
    for step in steps:
        data = data[step]
    return data


def _replaced(data: Any, steps: list[str | int], value: Any) -> Any:
    """Return JSON data with another value at the end of these steps."""
    if not steps:
        return value
    first, *rest = steps
    changed = {first: _replaced(data[first], rest, value)}
    if isinstance(data, Mapping):
        return {**data, **changed}
    return [changed.get(place, each) for place, each in enumerate(data)]
