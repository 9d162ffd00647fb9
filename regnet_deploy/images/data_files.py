"""Files that hold many images each: found in a folder, or named by a pattern or a list; and their splits."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.folder_files import entries
from regnet_deploy.images.image_table import SPLITS
from regnet_deploy.images.layout import split_of

#: Between the names of a list, as in WebDataset.
LIST_SEPARATOR = "::"
#: Folders below a folder in which files are looked for, and files that a pattern has at most.
_DEPTH, _MOST = 3, 100_000


@dataclass(frozen=True)
class DataFiles:
    """Files that hold images.

    Attributes:
        root: what names them: a folder, a file, a pattern or a list.
        folder: that the names are relative to.
        names: of the files, in order.
        splits: name -> ``train``, ``val`` or ``test``; empty if no file names a split.
        left_out: name -> why it is not used.
    """

    root: Path
    folder: Path
    names: tuple[str, ...]
    splits: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def files_in(folder: Path, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Return the files below a folder that end so; none if its folders have images, for then these are classes.

    Raises:
        DataError: a folder cannot be read.
    """
    found, waiting = [], [""]
    while waiting:
        below = waiting.pop()
        inside = entries(folder / below)
        for name in inside.files:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in suffixes:
                found.append(f"{below}{name}")
            elif below and (suffix in SUFFIXES or not suffix):
                return ()
        if below.count("/") < _DEPTH:
            waiting += [f"{below}{name}/" for name in reversed(inside.folders)]
    return tuple(sorted(found))


def with_splits(root: Path, folder: Path, names: Iterable[str]) -> DataFiles:
    """Tell the splits of files by the usual words, in the names of their folders, else in their own.

    Raises:
        DataError: there are none that can be used.
    """
    found = {name: _split(name) for name in names}
    named = {name: split for name, split in found.items() if split in SPLITS}
    left_out = {name: "unlabeled" for name, split in found.items() if split == "unlabeled"}
    rest = [name for name, split in found.items() if split is None]
    if "train" in named.values():
        left_out |= dict.fromkeys(rest, "neither for training nor for validation")
    elif named:
        named |= dict.fromkeys(rest, "train")
    used = tuple(name for name in found if name not in left_out)
    if not used:
        raise DataError(f"{root} has no file that can be used: {next(iter(left_out))} is left out, as unlabeled")
    return DataFiles(root, folder, used, {name: named[name] for name in used} if named else {}, left_out)


def is_pattern(value: str) -> bool:
    """Tell whether a value names several files: by ``{000..009}``, ``{a,b}``, or a list with ``::``."""
    return LIST_SEPARATOR in value or bool(re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", value))


def separated(value: str) -> list[str]:
    """Return the names or patterns of a list; ``::`` within brackets, as of an IPv6 address, separates none."""
    return re.split(rf"{LIST_SEPARATOR}(?![^\[\]]*\])", value)


def expanded(value: str) -> list[str]:
    """Return the names that a pattern or a list has, in order.

    Raises:
        UsageError: a range is empty or backwards, braces do not match, or there are too many names or one twice.
    """
    names = []
    for pattern in separated(value):
        for name in _expanded(pattern, pattern):
            names.append(name)
            if len(names) > _MOST:
                raise UsageError(f"{value} names more than {_MOST:,} files")
    twice = next((name for name, following in itertools.pairwise(sorted(names)) if name == following), None)
    if twice is not None:
        raise UsageError(f"{value} names {twice} twice")
    return names


def listed_files(value: str) -> DataFiles:
    """Return the files that a pattern or a list of local paths names.

    Raises:
        UsageError: the pattern is none.
        DataError: some of them do not exist.
    """
    paths = [os.path.abspath(name) for name in expanded(value)]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        are = "does not exist" if len(missing) == 1 else "do not exist"
        raise DataError(f"{len(missing):,} of the {len(paths):,} files of {value} {are}, such as {missing[0]}")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    root = Path(LIST_SEPARATOR.join(os.path.abspath(name) for name in separated(value)))
    return with_splits(root, Path(folder), [os.path.relpath(path, folder) for path in paths])


def _split(name: str) -> str | None:
    path = PurePosixPath(name)
    parts = (*path.parent.parts, path.name.partition(".")[0])
    return next((split for part in parts if (split := split_of(part))), None)


def _expanded(text: str, pattern: str) -> Iterator[str]:
    """Yield the names of the rest ``text`` of a pattern."""
    found = re.match(r"([^{}]*)\{([^{}]*)\}", text)
    if found is None:
        if "{" in text or "}" in text:
            raise UsageError(f"the braces of {pattern} do not match: give a pattern such as shards-{{000..009}}.tar")
        if not pattern:
            raise UsageError("a list of files has an empty name: give FILE::FILE")
        yield text
        return
    tail = text[found.end() :]
    for middle in _alternatives(found[2], pattern):
        for rest in _expanded(tail, pattern) if tail else ("",):
            yield f"{found[1]}{middle}{rest}"


def _alternatives(inside: str, pattern: str) -> Iterable[str]:
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if last < first or last - first >= _MOST:
            raise UsageError(f"the range {{{inside}}} of {pattern} is empty or has more than {_MOST:,} numbers")
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        return (f"{number:0{width}d}" for number in range(first, last + 1))
    if "," not in inside:
        raise UsageError(f"{{{inside}}} of {pattern} is no range: give {{000..009}} or {{a,b}}")
    return inside.split(",")
