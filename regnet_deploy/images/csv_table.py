"""CSV files of paths and labels."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from regnet_deploy.errors import DataError
from regnet_deploy.images.columns import Columns, find_columns, known_columns
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.image_table import SPLITS, ImageTable, LabeledName, image_table, plain_label
from regnet_deploy.images.layout import split_of
from regnet_deploy.images.names import printable

#: Ends of the names of CSV files.
CSV_SUFFIXES = (".csv", ".tsv")
#: Delimiters that are recognized.
_DELIMITERS = ",;\t|"
_KIND = "CSV file"


def read_csv_table(root: Path, file: Path, columns: Columns) -> ImageTable:
    """Read a CSV file with a header, and columns of paths, of labels, and of splits where there is one.

    Paths are relative to the folder of the file. Lines without a label or a split, and those whose file does not exist,
    are left out.

    Args:
        root: what messages call the file, and its images remember as their place.
        file: the CSV file, an absolute path.
        columns: names of the columns; those that are not given are found by usual names.

    Raises:
        DataError: the file cannot be read, is no UTF-8 or no CSV; it has no header, or not these columns; an image has
            two labels or two splits; a split has an unknown name; or no image exists.
    """
    text = _text(file)
    delimiter, header = _header(file, text, columns)
    _ensure_header(file, header, columns)
    image, label, split = find_columns(header, columns, str(file))
    first = dict[str, tuple[str, str, int]]()  # name -> label, split, line
    left_out, declared, repeated, missing = dict[str, str](), set[str](), 0, 0
    for line, row in _rows(file, text, delimiter, len(header)):
        path = row[image].strip()
        if not path:
            left_out[f"line {line}"] = "no path"
            continue
        name = _name(file.parent, path)
        found = plain_label(row[label])
        of = _split(file, line, row[split].strip()) if split is not None else ""
        reason = "no label" if not found else "no split" if of is None else "unlabeled" if of == "unlabeled" else None
        declared.update([of] if of in SPLITS else [])
        if reason is None and not os.path.exists(os.path.join(file.parent, name)):
            missing += 1
            reason = "no such file"
        if reason is not None:
            left_out.setdefault(name, f"line {line}: {reason}")
            continue
        here = (found, of or "", line)
        before = first.setdefault(name, here)
        if before[:2] != here[:2]:
            raise DataError(_contradiction(file, name, before, here))
        repeated += before is not here
    if not first:
        raise DataError(_nothing(file, left_out, missing))
    notes = (
        (f"{repeated:,} {'line repeats' if repeated == 1 else 'lines repeat'} an image of a line above",)
        if repeated
        else ()
    )
    return image_table(
        FolderSource(root, tuple(first), file.parent),
        _KIND,
        (LabeledName(name, found, of) for name, (found, of, _) in first.items()),
        declared,
        {name: reason for name, reason in left_out.items() if name not in first},
        notes,
    )


def _text(file: Path) -> str:
    """Return the text of the file, without the mark at the start that some programs write."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4096]:
        raise DataError(f"{file} is not UTF-8: it looks like UTF-16; save it as CSV with UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}; save it as CSV with UTF-8, or "
            f"convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _header(file: Path, text: str, columns: Columns) -> tuple[str, list[str]]:
    """Return the delimiter with which the first line has the most columns that are known, and its cells."""
    if not text.strip():
        raise DataError(f"{file} is empty: it needs a header, such as path,label, and a line for each image")
    best = ("", list[str](), (-1, -1))
    for delimiter in _DELIMITERS:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            cells = next((row for row in rows if any(map(str.strip, row))), [])
        except csv.Error as error:
            raise DataError(f"{file}, line 1: {error}: is it a CSV file?") from None
        cells = [cell.strip() for cell in cells]
        rank = (known_columns(cells, columns), len(cells))
        if rank > best[2]:
            best = (delimiter, cells, rank)
    return best[0], best[1]


def _ensure_header(file: Path, header: Sequence[str], columns: Columns) -> None:
    """Refuse a first line that is one of data, or that no delimiter divides.

    Raises:
        DataError: it is.
    """
    if known_columns(header, columns):
        if len(header) == 1:
            raise DataError(
                f"{file} has one column, {printable(header[0])!r}, by each of the delimiters , ; tab and |: it needs "
                "one of paths and one of labels"
            )
        return
    shown = printable(", ".join(header))[:80]
    if any(PurePosixPath(cell).suffix.lower() in SUFFIXES or (file.parent / cell).is_file() for cell in header if cell):
        raise DataError(
            f"{file} has no header, its first line is {shown!r}: add a line above it with the names of the columns, "
            "such as path,label"
        )
    if len(header) == 1:
        raise DataError(
            f"{file} has one column in its first line, {shown!r}: separate the columns by one of , ; tab and |, and "
            "begin with a header such as path,label"
        )


def _rows(file: Path, text: str, delimiter: str, cells: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and the cells of each row below the header.

    Raises:
        DataError: a row has more or fewer cells than the header, or its quotes do not match.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, begin = True, 1
    try:
        for row in reader:
            line, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header:
                header = False
                continue
            if len(row) < cells or any(cell.strip() for cell in row[cells:]):
                name = {"\t": "tab"}.get(delimiter, delimiter)
                raise DataError(
                    f"{file}, line {line} has {len(row)} cells and the header has {cells}: the delimiter is {name}, "
                    'and values that contain it need quotes, "..."'
                )
            yield line, row
    except csv.Error as error:
        raise DataError(f"{file}, line {begin}: {error}: check the quotes there") from None


def _name(folder: Path, path: str) -> str:
    """Return a path as the name of an image: relative to the folder where it is below it, with ``/``."""
    if "\\" in path and not os.path.exists(os.path.join(folder, path)):
        path = path.replace("\\", "/")  # written on Windows
    if os.path.isabs(path):
        path = os.path.normpath(path)
        return os.path.relpath(path, folder) if PurePosixPath(path).is_relative_to(folder) else path
    return os.path.normpath(path)


def _split(file: Path, line: int, value: str) -> str | None:
    """Return the split of a line; None if it has none."""
    if not value:
        return None
    split = split_of(value)
    if split is None:
        raise DataError(f"{file}, line {line}: the split {printable(value)!r} is none of train, val and test")
    return split


def _contradiction(file: Path, name: str, one: tuple[str, str, int], other: tuple[str, str, int]) -> str:
    what, i = ("labels", 0) if one[0] != other[0] else ("splits", 1)
    return (
        f"{file} gives {printable(name)} two {what}: {printable(str(one[i]))!r} in line {one[2]} and "
        f"{printable(str(other[i]))!r} in line {other[2]}; keep one of these lines"
    )


def _nothing(file: Path, left_out: dict[str, str], missing: int) -> str:
    if not left_out:
        return f"{file} has a header and no lines below it: add a line for each image"
    name, reason = next(iter(left_out.items()))
    if missing == len(left_out):
        are = "does not exist" if missing == 1 else "do not exist"
        return (
            f"the {missing:,} images of {file} {are}, such as {os.path.join(file.parent, name)}: paths are relative to "
            "the folder of the CSV file"
        )
    return f"no line of {file} can be used, for example {printable(name)}: {reason}"
