"""Which columns of a table have the images, their labels and their splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

from regnet_deploy.errors import DataError, UsageError, did_you_mean
from regnet_deploy.images.names import printable, shortened


class Columns(NamedTuple):
    """Names of columns; None is to be found by usual names."""

    image: str | None = None
    label: str | None = None
    split: str | None = None


#: Usual names of each column, in lower case and with ``_`` between words.
_USUAL = {
    "image": (
        *("path", "image", "filename", "file", "file_name", "filepath", "file_path", "image_path", "image_file", "img"),
        *("img_path", "image_filename", "image_name", "jpg", "png"),
    ),
    "label": (
        *("label", "class", "category", "target", "class_name", "label_name", "classname", "labels", "cls"),
        *("fine_label",),
    ),
    "split": ("split", "subset", "partition", "set"),
}


def parse_columns(text: str) -> Columns:
    """Return the columns of ``image=NAME,label=NAME,split=NAME``, as they stand behind the ``#`` of ``--data``.

    Of a name, ``%2C`` is a comma, and so are other characters of a web address.

    Raises:
        UsageError: it has another form.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, name = part.partition("=")
        if not equals or key not in _USUAL or key in found or not name:
            raise UsageError(
                f"#{text} does not name columns: give some of image, label and split once, as "
                "labels.csv#image=file,label=species,split=fold"
            )
        found[key] = unquote(name)
    return Columns(**found)


def known_columns(header: Sequence[str], columns: Columns) -> int:
    """Return how many of the three columns a header has, by the given or by usual names."""
    return sum(bool(_candidates(header, key, getattr(columns, key))) for key in _USUAL)


def find_columns(header: Sequence[str], columns: Columns, table: str) -> tuple[int, int, int | None]:
    """Return the numbers of the columns of images, of labels, and of splits if there is one.

    Args:
        header: names of the columns.
        columns: names that a user gave.
        table: what messages call the table.

    Raises:
        DataError: a column is missing, or there are several that it could be.
    """
    image, label = (_one(header, key, columns, table) for key in ("image", "label"))
    split = _one(header, "split", columns, table, required=columns.split is not None)
    if image is None or label is None:  # _one has raised
        raise AssertionError
    return image, label, split


def _one(header: Sequence[str], key: str, columns: Columns, table: str, *, required: bool = True) -> int | None:
    given: str | None = getattr(columns, key)
    found = _candidates(header, key, given)
    if len(found) == 1:
        return found[0]
    names = shortened(header, 12)
    if len(found) > 1:
        which = shortened([header[i] for i in found])
        if given is not None or len({header[i] for i in found}) == 1:
            raise DataError(f"{table} has {len(found)} columns called {which}: rename all but one of them")
        raise DataError(
            f"{table} has several columns that can be its {key} column, {which}: name it, as "
            f"{_example(table, key, header[found[0]])}"
        )
    if not required:
        return None
    if given is not None:
        raise DataError(
            f"{table} has no column {printable(given)!r}{did_you_mean(given, header)}; its columns are {names}"
        )
    raise DataError(
        f"{table} has no {key} column, such as {_USUAL[key][0]} or {_USUAL[key][1]}: its columns are {names}; name the "
        f"one that it is, as {_example(table, key, 'NAME')}"
    )


def _candidates(header: Sequence[str], key: str, given: str | None) -> list[int]:
    if given is not None:
        exact = [i for i, name in enumerate(header) if name == given]
        return exact or [i for i, name in enumerate(header) if name.casefold() == given.casefold()]
    plain = [re.sub(r"[\s_-]+", "_", name.strip()).lower() for name in header]
    return [i for i, name in enumerate(plain) if name in _USUAL[key]]


def _example(table: str, key: str, name: str) -> str:
    return f"--data {table.partition('#')[0]}#{key}={name.replace(',', '%2C')}"
