"""What the value of ``--data`` names: a table of images, or a folder of class folders."""

from __future__ import annotations

import os
from pathlib import Path

from regnet_deploy.images.columns import Columns, parse_columns
from regnet_deploy.images.csv_table import CSV_SUFFIXES, read_csv_table
from regnet_deploy.images.image_table import ImageTable
from regnet_deploy.progress import NoProgress, Progress

#: Files that can be data sets, in words.
FILES = "a CSV file (.csv, .tsv)"


def open_table(data: str | Path, progress: Progress = NoProgress()) -> ImageTable | None:
    """Return the images of a CSV file; None if the value names a folder of class folders, or nothing.

    The columns of a table may be named behind its path: ``labels.csv#image=file,label=species``.

    Args:
        data: the value.
        progress: receives what takes long.

    Raises:
        DataError: the table cannot be read, or its images cannot be used.
        UsageError: what stands behind ``#`` names no columns.
    """
    root = Path(data).absolute()  # loading processes on other machines start in other folders
    file, columns = _parts(root)
    if file.suffix.lower() in CSV_SUFFIXES and file.is_file():
        return read_csv_table(root, file, columns)
    return None


def _parts(root: Path) -> tuple[Path, Columns]:
    """Return a path without the columns behind its name, and these."""
    name, hash_sign, columns = root.name.partition("#")
    if not hash_sign or not name or os.path.lexists(root) or not os.path.lexists(root.with_name(name)):
        return root, Columns()
    return root.with_name(name), parse_columns(columns)
