"""What the value of ``--data`` names: a table of images, shards, or a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.arrow_tables import ARROW_SUFFIXES, read_arrow_tables
from regnet_deploy.images.columns import Columns, parse_columns
from regnet_deploy.images.csv_table import CSV_SUFFIXES, read_csv_table
from regnet_deploy.images.data_files import DataFiles, expanded, files_in, is_pattern, listed_files, with_splits
from regnet_deploy.images.image_table import ImageTable
from regnet_deploy.images.remote_files import downloaded, is_remote
from regnet_deploy.images.tar_shards import TAR_SUFFIXES, read_tar_shards
from regnet_deploy.progress import NoProgress, Progress

#: Files that can be data sets, in words.
FILES = "a CSV file (.csv, .tsv), a tar shard (.tar), or a table of images (.parquet, .arrow)"
_SUFFIXES = (*TAR_SUFFIXES, *ARROW_SUFFIXES)
#: Start of the names of what ``datasets`` computed from a saved dataset.
_DERIVED = "cache-"


def open_table(data: str | Path, progress: Progress = NoProgress()) -> ImageTable | None:
    """Return the images of a CSV file, of tar shards or of tables; None if the value names class folders, or nothing.

    Shards and tables are a folder of them, one file, a pattern (``shards-{000..009}.tar``), or a list
    (``a.tar::b.tar``), also of addresses on servers: these are downloaded once. The columns of a table may be named
    behind its path: ``labels.csv#image=file,label=species``.

    Args:
        data: the value.
        progress: receives what takes long.

    Raises:
        DataError: the table cannot be read, or its images cannot be used.
        UsageError: what stands behind ``#`` names no columns.
    """
    if is_remote(str(data)):
        value, hash_sign, named = str(data).partition("#")
        columns = parse_columns(named) if hash_sign else Columns()
        folder, names = downloaded(value, _SUFFIXES, progress)
        files: DataFiles | None = with_splits(Path(f"{folder}{hash_sign}{named}"), folder, names)
    else:
        root = Path(data).absolute()  # loading processes on other machines start in other folders
        file, columns = _parts(root)
        if file.suffix.lower() in CSV_SUFFIXES and file.is_file():
            return read_csv_table(root, file, columns)
        files = _data_files(str(data), file, root)
    if files is None:
        return None
    if Path(files.names[0]).suffix.lower() in ARROW_SUFFIXES:
        return read_arrow_tables(files, columns, progress)
    return read_tar_shards(files, progress)


def _data_files(value: str, path: Path, root: Path) -> DataFiles | None:
    """Return the files that hold images, all of one kind; None if the value names none.

    Raises:
        DataError: there are files of several kinds, or some do not exist.
        UsageError: a pattern names other files.
    """
    if os.path.isdir(path):
        names = [name for name in files_in(path, _SUFFIXES) if not Path(name).name.startswith(_DERIVED)]
        _ensure_one_kind(path, names)
        return with_splits(root, path, names) if names else None
    if path.is_file():
        return DataFiles(root, path.parent, (path.name,)) if path.suffix.lower() in _SUFFIXES else None
    if not is_pattern(value):
        return None
    names = expanded(value)
    other = next((name for name in names if Path(name).suffix.lower() not in _SUFFIXES), None)
    if other is not None:
        raise UsageError(f"{value} names {other}: a pattern or list is one of {', '.join(_SUFFIXES)} files")
    _ensure_one_kind(Path(value), names)
    return listed_files(value)


def _ensure_one_kind(root: Path, names: Iterable[str]) -> None:
    suffixes = dict.fromkeys(Path(name).suffix.lower() for name in names)
    if len(suffixes) > 1:
        raise DataError(f"{root} has {' and '.join(suffixes)} files: give those of one kind, such as by {{a,b}} or ::")


def _parts(root: Path) -> tuple[Path, Columns]:
    """Return a path without the columns behind its name, and these."""
    name, hash_sign, columns = root.name.partition("#")
    if not hash_sign or not name or os.path.lexists(root) or not os.path.lexists(root.with_name(name)):
        return root, Columns()
    return root.with_name(name), parse_columns(columns)
