"""What the value of ``--data`` names: a table of images, shards, or a folder of class folders."""

from __future__ import annotations

import os
from pathlib import Path

from regnet_deploy.errors import UsageError
from regnet_deploy.images.columns import Columns, parse_columns
from regnet_deploy.images.csv_table import CSV_SUFFIXES, read_csv_table
from regnet_deploy.images.data_files import DataFiles, expanded, files_in, is_pattern, listed_files, with_splits
from regnet_deploy.images.image_table import ImageTable
from regnet_deploy.images.tar_shards import TAR_SUFFIXES, read_tar_shards
from regnet_deploy.progress import NoProgress, Progress

#: Files that can be data sets, in words.
FILES = "a CSV file (.csv, .tsv) or a tar shard (.tar)"


def open_table(data: str | Path, progress: Progress = NoProgress()) -> ImageTable | None:
    """Return the images of a CSV file or of tar shards; None if the value names class folders, or nothing.

    Shards are a folder of them, one file, a pattern (``shards-{000..009}.tar``), or a list (``a.tar::b.tar``). The
    columns of a table may be named behind its path: ``labels.csv#image=file,label=species``.

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
    files = _data_files(str(data), file)
    return None if files is None else read_tar_shards(files, progress)


def _data_files(value: str, path: Path) -> DataFiles | None:
    """Return the files that hold images; None if the value names none."""
    if os.path.isdir(path):
        names = files_in(path, TAR_SUFFIXES)
        return with_splits(path, path, names) if names else None
    if path.is_file():
        return DataFiles(path, path.parent, (path.name,)) if path.suffix.lower() in TAR_SUFFIXES else None
    if not is_pattern(value):
        return None
    other = next((name for name in expanded(value) if Path(name).suffix.lower() not in TAR_SUFFIXES), None)
    if other is not None:
        raise UsageError(f"{value} names {other}: a pattern or list is one of .tar files")
    return listed_files(value)


def _parts(root: Path) -> tuple[Path, Columns]:
    """Return a path without the columns behind its name, and these."""
    name, hash_sign, columns = root.name.partition("#")
    if not hash_sign or not name or os.path.lexists(root) or not os.path.lexists(root.with_name(name)):
        return root, Columns()
    return root.with_name(name), parse_columns(columns)
