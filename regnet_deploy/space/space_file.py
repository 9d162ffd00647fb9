"""Finds design spaces by name, and reads them from YAML or Python files."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean, require
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.ranges import choice_from, short_repr, suggestion
from regnet_deploy.space.spaces import SYMBOLS, AnyNetSpace, RegNetSpace, Space, Stages

KINDS: dict[str, type[AnyNetSpace] | type[RegNetSpace]] = {"anynet": AnyNetSpace, "regnet": RegNetSpace}
_STAGEWISE = ("depth", "width", "bottleneck", "group_width")
_STAGES_KEYS = ("low", "high", "step", "scale", "counted", "values", "by_stage", "across")
_CHOICES = ("d", "w_0", "w_a", "w_m", "bottleneck", "group_width")

#: Maximum number of characters of a space file; such a file is read within a second.
MAX_LENGTH = 50_000
#: Maximum nesting depth of lists and mappings.
MAX_DEPTH = 16


def find_space(name: str) -> Space:
    """Return a space by its name, from a YAML file, or from a Python file (``file.py``, or ``file.py:VARIABLE``).

    A Python file is executed.

    Raises:
        UsageError: the space does not exist, or the file does not describe one.
    """
    known = known_spaces()
    for known_name, space in known.items():
        if name.lower() == known_name.lower():
            return space
    if python := re.fullmatch(r"(.*\.py)(?::(.*))?", name, re.DOTALL):
        return _from_python(Path(python[1]), python[2] or "")
    if name.endswith((".yaml", ".yml")):
        return read_space(_text(Path(name)), name)
    raise UsageError(
        f"no design space {short_repr(name)}{did_you_mean(name, known)}: give a name that `regnet-deploy spaces` "
        "lists, or a .yaml or .py file"
    )


def read_space(text: str, source: str) -> Space:
    """Return the space that YAML describes; ``source`` is its name in error messages.

    Raises:
        UsageError: the text does not describe a space.
        MissingExtra: PyYAML is not installed.
    """
    yaml = require("yaml", "sweep")
    if len(text) > MAX_LENGTH:
        raise UsageError(f"{source} has {len(text):,} characters; the maximum for a space file is {MAX_LENGTH:,}")
    try:
        _check_shape(yaml, text, source)
        data = yaml.safe_load(text)
    except UsageError:
        raise
    except Exception as error:  # PyYAML also raises other exceptions for invalid values
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{where} is not YAML: {_line(getattr(error, 'problem', None) or error)}") from None
    try:
        return space_from(data)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def write_space(space: Space) -> str:
    """Return a space as YAML that :func:`read_space` reads."""
    text: str = require("yaml", "sweep").safe_dump(
        space_data(space), sort_keys=False, default_flow_style=None, width=100
    )
    return text


def space_from(data: Any) -> Space:
    """Return the space that data describes.

    Raises:
        UsageError: the data is not valid; the message names the key and the allowed values.
    """
    if not isinstance(data, dict):
        raise UsageError(f"a space must be a mapping of keys to values, got {short_repr(data)}")
    values = dict(data)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, got {short_repr(kind)}{suggestion(kind, KINDS)}")
    known = [each.name for each in fields(KINDS[kind])]
    for name in values:
        if name not in known:
            raise UsageError(
                f"a space of kind {kind} has no {short_repr(name)}{suggestion(name, known)}; it has {', '.join(known)}"
            )
    where = values.get("where", ())
    values["where"] = (where,) if isinstance(where, str) else tuple(where) if isinstance(where, list) else where
    values.setdefault("name", "")
    for name in absent_parts(values.get("block", "x")):
        values.setdefault(name, 1)
    if kind == "anynet":
        values |= {name: _stages(values[name], name) for name in _STAGEWISE if name in values}
    else:
        ranges = [name for name in _CHOICES if name in values and (name, values[name]) != ("w_a", "w_0")]
        values |= {name: choice_from(values[name], name) for name in ranges}
    return KINDS[kind](**values)


def space_data(space: Space) -> dict[str, Any]:
    """Return a space as data for YAML and JSON."""
    anynet = isinstance(space, AnyNetSpace)
    data: dict[str, Any] = {"name": space.name, "kind": "anynet" if anynet else "regnet", "block": space.block}
    data["stages"] = space.stages
    if isinstance(space, AnyNetSpace):
        data |= {name: _stages_data(part) for name, part in space.parts().items()}
    else:
        data |= {n: v if isinstance(v := getattr(space, n), str) else v.to_data() for n in _CHOICES}
    for name in absent_parts(space.block):
        del data[name]
    if space.where:
        data["where"] = list(space.where)
    return data


def describe_space(space: Space) -> str:
    """Return what a space draws as one line, by the symbols of the paper."""
    absent = absent_parts(space.block)
    if isinstance(space, AnyNetSpace):
        parts = []
        for part, stages in space.parts().items():
            if part in absent:
                continue
            choices = ", ".join(map(str, stages.choices))
            index = "" if stages.across == "same" else "_i"
            relation = f" {stages.across}" if stages.across in ("rising", "falling") else ""
            parts.append(f"{SYMBOLS[part]}{index}{relation} {choices}")
    else:
        parts = [
            f"{symbol} {choice}" for symbol, choice in space.parts().items() if symbol not in map(SYMBOLS.get, absent)
        ]
        if isinstance(space.w_a, str):
            parts.append(f"w_a = {space.w_a}")
    return "; ".join([*parts, *space.where])


def absent_parts(block: Any) -> tuple[str, ...]:
    """Return the parts that blocks of a kind do not have; space files omit them."""
    return {"r": ("group_width",), "v": ("bottleneck", "group_width"), "vr": ("bottleneck", "group_width")}.get(
        block if isinstance(block, str) else "", ()
    )


def _check_shape(yaml: Any, text: str, source: str) -> None:
    """Reject YAML for which PyYAML would need minutes or all memory.

    Merged keys are copied: a few lines that merge each other repeatedly would fill the memory.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            raise UsageError(f"{source}: merge keys (<<) are not allowed in a space file")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{source} is nested too deeply for a space file; the maximum is {MAX_DEPTH} levels")


def _stages(data: Any, what: str) -> Stages:
    """Return one part of the stages: a range for all stages, or a list ``by_stage``, with ``across``.

    A number is the same value in all stages.
    """
    if not isinstance(data, dict):
        return Stages((choice_from(data, what),), "same" if isinstance(data, int | float) else "free")
    for name in data:
        if name not in _STAGES_KEYS:
            raise UsageError(
                f"{what}: {short_repr(name)} is not known{suggestion(name, _STAGES_KEYS)}; "
                f"use {', '.join(_STAGES_KEYS)}"
            )
    rest = {name: value for name, value in data.items() if name != "across"}
    across = data.get("across", "free")
    if "by_stage" in rest or "values" in rest:
        key = "by_stage" if "by_stage" in rest else "values"
        if len(rest) > 1 or not isinstance(rest[key], list):
            raise UsageError(f"{what}: {key} must be a list, and only across can be beside it")
        listed = rest[key] if key == "by_stage" else [rest[key]]
        choices = tuple(choice_from(each, what) for each in listed)
    else:
        choices = (choice_from(rest, what),)
    try:
        return Stages(choices, across)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


def _stages_data(part: Stages) -> Any:
    listed = [choice.to_data() for choice in part.choices]
    if len(listed) > 1:
        return {"by_stage": listed, "across": part.across}
    (only,) = listed
    if isinstance(only, dict):
        return {**only, "across": part.across}
    if isinstance(only, list):
        return {"values": only, "across": part.across}
    return only if part.across == "same" else {"values": [only], "across": part.across}


def _from_python(path: Path, variable: str) -> Space:
    _text(path)
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # any exception of the file of the user becomes one line
        raise UsageError(f"{path} cannot be executed: {type(error).__name__}: {_line(error)}") from None
    spaces = {n: v for n, v in names.items() if isinstance(v, AnyNetSpace | RegNetSpace)}
    if variable:
        if variable not in spaces:
            listed = ", ".join(spaces) or "none"
            raise UsageError(f"{path} has no space {variable}{did_you_mean(variable, spaces)}; it has {listed}")
        return spaces[variable]
    if not spaces:
        raise UsageError(f"{path} has no space: assign an AnyNetSpace or a RegNetSpace to a variable")
    if len(spaces) > 1:
        raise UsageError(f"{path} has more than one space, give it as {path}:NAME; it has {', '.join(spaces)}")
    return next(iter(spaces.values()))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or an invalid path
        reason = getattr(error, "strerror", None) or _line(error)
        raise UsageError(f"cannot read the space file {_line(path)}: {reason}") from None


def _line(text: object) -> str:
    """Return the first 200 characters of a text on one line."""
    words = " ".join(str(text).split())
    return words if len(words) <= 200 else f"{words[:197]}..."
