"""Parquet and Arrow files with encoded images, as Hugging Face ``datasets`` writes them, as a data set.

They are read by pyarrow alone. ``datasets`` would bring pandas, dill, multiprocess and a client of the hub for what is
a few lines here: names of classes are JSON in the schema, and a saved dataset is a folder of Arrow files. Images are
read by their place in an Arrow file, so processes that load them need neither. A value of a Parquet file has no such
place: its images are copied once into an Arrow file of the user's cache, as ``datasets`` does too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.durable_files import sync
from regnet_deploy.errors import DataError, require
from regnet_deploy.images.byte_ranges import ByteRange, ByteRangeSource, ranges_array, stamp_of
from regnet_deploy.images.columns import Columns, find_columns
from regnet_deploy.images.data_files import DataFiles
from regnet_deploy.images.image_source import Stamp
from regnet_deploy.images.image_table import ImageTable, LabeledName, image_table, plain_label
from regnet_deploy.images.layout import split_of
from regnet_deploy.images.names import printable
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.user_cache import cache_folder

ARROW_SUFFIXES = (".parquet", ".arrow")
_EXTRA, _KIND = "arrow", "table"
#: Rows that are copied at a time.
_ROWS = 64
#: Bytes that stay free on the disk of the copies.
_FREE_BYTES = 2**28
#: Age of an unfinished copy, by its last write, after which nobody is writing it, seconds.
_ABANDONED_S = 3600


def read_arrow_tables(files: DataFiles, columns: Columns, progress: Progress = NoProgress()) -> ImageTable:
    """Return the images of Parquet or Arrow files. An image is called after its file, and its path or row in that.

    Args:
        files: Parquet files, and Arrow files of streams or random access.
        columns: names that a user gave.
        progress: receives the files that were read.

    Raises:
        DataError: a file cannot be read, lacks a column, or has images in another form; or no image can be used.
        MissingExtra: pyarrow is not installed.
    """
    require("pyarrow", _EXTRA)
    reading = _Reading(files, columns)
    parquet = [files.folder / name for name in files.names if _is_parquet(name)]
    new = [file for file in parquet if file.is_file() and not _copy_of(file).exists()]
    if new:
        size = sum(file.stat().st_size for file in new) / 1e6
        progress.message(
            f"copying the images of {len(new):,} Parquet {'file' if len(new) == 1 else 'files'}, {size:,.1f} MB, to "
            f"{_copies()}, once: a Parquet file cannot be read image by image"
        )
    progress.step("reading tables", len(files.names))
    for done, name in enumerate(files.names, 1):
        file = files.folder / name
        try:
            reading.add(name, _copied(file) if _is_parquet(name) else file)
        except (require("pyarrow", _EXTRA).ArrowException, OSError, ValueError) as error:
            said = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"cannot read the table {file}: {said}") from None
        progress.update(done)
    return reading.table()


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


class _Reading:
    """What was found in the files that were read."""

    def __init__(self, files: DataFiles, columns: Columns) -> None:
        self._files, self._columns = files, columns
        self._left_out = dict(files.left_out)
        self._paths: list[str] = []
        self._stamps: list[Stamp] = []
        self._ranges: list[ByteRange] = []
        self._images: list[LabeledName] = []
        self._declared = set(files.splits.values())

    def add(self, name: str, file: Path) -> None:
        """Read an Arrow file; its images are called after ``name``."""
        pa = require("pyarrow", _EXTRA)
        stamp = stamp_of(file)
        number = self._file(str(file), stamp)
        with pa.memory_map(str(file)) as mapped:
            begin = mapped.read_buffer(mapped.size()).address if mapped.size() else 0
            mapped.seek(0)
            reader = _reader(mapped)
            columns, class_names = _columns(reader.schema, self._columns, str(self._files.folder / name))
            image, label, split = find_columns(reader.schema.names, columns, str(self._files.folder / name))
            rows = [_row for batch in _batches(reader) for _row in _rows(batch, image, label, split, begin, stamp.size)]
        paths = [path.lstrip("/") if isinstance(path, str) else "" for _, path, _, _ in rows]
        unique = len(set(paths)) == len(paths) and all(paths)
        for row, (place, path, value, word) in enumerate(rows):
            called = f"{name}/{paths[row]}" if unique else f"{name}/{row:09d}"
            found = _class(value, class_names)
            of: str | None = self._files.splits.get(name, "")
            if split is not None and not self._files.splits:
                of = self._split(name, row, word)
            if found is None or of in ("unlabeled", None):
                self._left_out[called] = f"row {row}: {'no label' if found is None else 'unlabeled'}"
                continue
            reason = self._place(self._files.folder / name, number, place, path)
            if reason:
                self._left_out[called] = f"row {row}: {reason}"
            else:
                self._images.append(LabeledName(called, found, of or ""))

    def table(self) -> ImageTable:
        """Return what was found.

        Raises:
            DataError: no image can be used.
        """
        if not self._images:
            example = next((f"; for example {name}: {reason}" for name, reason in self._left_out.items()), "")
            raise DataError(f"{self._files.root} has no image that can be used{example}")
        source = ByteRangeSource(
            self._files.root,
            tuple(image.name for image in self._images),
            tuple(self._paths),
            tuple(self._stamps),
            ranges_array(self._ranges),
        )
        return image_table(source, _KIND, self._images, self._declared, self._left_out)

    def _file(self, path: str, stamp: Stamp) -> int:
        self._paths.append(path)
        self._stamps.append(stamp)
        return len(self._paths) - 1

    def _place(self, beside: Path, number: int, place: tuple[int, int] | None, path: object) -> str | None:
        """Keep where an image is; return why it is nowhere. Without bytes, its path names a file."""
        if place is not None:
            self._ranges.append(ByteRange(number, *place))
            return None
        if not path or not isinstance(path, str):
            return "no image"
        file = str(beside.parent / path)
        try:
            stamp = stamp_of(file)
        except (OSError, ValueError):
            return f"no bytes, and no file {printable(path)}"
        self._ranges.append(ByteRange(self._file(file, stamp), 0, stamp.size))
        return None

    def _split(self, name: str, row: int, word: object) -> str | None:
        if word is None:
            return None
        split = split_of(str(word))
        if split is None:
            raise DataError(
                f"{self._files.folder / name}, row {row}: the split {printable(str(word))!r} is none of train, val and "
                "test"
            )
        self._declared.update([split] if split != "unlabeled" else [])
        return split


def _reader(mapped: Any) -> Any:
    """Return a reader of an Arrow file, which is a stream as ``datasets`` writes it, or has a footer."""
    ipc, pa = require("pyarrow.ipc", _EXTRA), require("pyarrow", _EXTRA)
    try:
        return ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return ipc.open_stream(mapped)


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


def _columns(schema: Any, columns: Columns, table: str) -> tuple[Columns, Sequence[str]]:
    """Return the columns, that of images found by its type, and the names of the classes of ``datasets``."""
    features: dict[str, Any] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):  # of other programs
        features = dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    types = require("pyarrow", _EXTRA).types
    images = [
        field.name
        for field in schema
        if (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        or (isinstance(features.get(field.name), dict) and features[field.name].get("_type") == "Image")
    ]
    if columns.image is None and len(images) == 1:
        columns = columns._replace(image=images[0])
    image, label, _ = find_columns(schema.names, columns, table)
    kind = schema.field(image).type
    value = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (types.is_binary(value) or types.is_large_binary(value)):
        raise DataError(
            f"the image column {printable(schema.names[image])!r} of {table} is of the type {kind}: it must have "
            "encoded images, as bytes or as a struct of bytes and path"
        )
    label_type = schema.field(label).type
    known = label_type.value_type if types.is_dictionary(label_type) else label_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    if not any(is_type(known) for is_type in (*texts, types.is_integer, types.is_boolean, types.is_null)):
        raise DataError(
            f"the label column {printable(schema.names[label])!r} of {table} is of the type {label_type}: it must have "
            "text or whole numbers"
        )
    feature = features.get(schema.names[label])
    names = feature.get("names") if isinstance(feature, dict) else None
    return columns, names if isinstance(names, list) and all(isinstance(each, str) for each in names) else []


def _rows(
    batch: Any, image: int, label: int, split: int | None, begin: int, size: int
) -> Iterator[tuple[tuple[int, int] | None, Any, Any, Any]]:
    """Yield the place in the file, the path, the label and the split of each row."""
    types = require("pyarrow", _EXTRA).types
    for number in (image, label, *(() if split is None else (split,))):
        batch.column(number).validate(full=True)  # pyarrow would read whatever memory a damaged file names
    column = batch.column(image)
    struct = types.is_struct(column.type)
    data = column.field("bytes") if struct else column
    has_path = struct and column.type.get_field_index("path") >= 0
    paths = column.field("path").to_pylist() if has_path else [None] * len(batch)
    null = np.asarray(column.is_null().to_numpy(zero_copy_only=False)) | data.is_null().to_numpy(zero_copy_only=False)
    _, offsets, values = data.buffers()
    dtype = np.int64 if types.is_large_binary(data.type) else np.int32
    bounds = np.zeros(len(data) + 1, np.int64)
    if len(data):
        bounds = np.frombuffer(offsets, dtype)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    start = (values.address if values is not None else begin) - begin
    if len(data) and not null.all() and not 0 <= start <= start + bounds[-1] <= size:
        raise ValueError("its values are compressed: write it without compression, or as Parquet")
    labels = batch.column(label).to_pylist()
    words = batch.column(split).to_pylist() if split is not None else [None] * len(batch)
    for i in range(len(batch)):
        place = None if null[i] else (int(start + bounds[i]), int(bounds[i + 1] - bounds[i]))
        yield place, paths[i], labels[i], words[i]


def _class(value: object, names: Sequence[str]) -> str | None:
    """Return the name of a class; None if there is none. ``datasets`` has -1 for images without a label."""
    if isinstance(value, int) and not isinstance(value, bool) and names:
        return plain_label(names[value]) if 0 <= value < len(names) else None
    return plain_label(value) or None if isinstance(value, str | int) and value != -1 else None


def _copies() -> Path:
    return cache_folder("tables")


def _copy_of(file: Path) -> Path:
    """Return the Arrow file in the cache that has the images of a Parquet file as it is now."""
    stamp = stamp_of(file)
    of_path, of_content = (
        hashlib.sha256(os.fsencode(text)).hexdigest()[:24] for text in (str(file), f"{file}{tuple(stamp)}")
    )
    return _copies() / f"{of_path}-{of_content}.arrow"


def _copied(file: Path) -> Path:
    """Copy a Parquet file into an Arrow file of the cache, unless that is there.

    Raises:
        DataError: there is no space, or the cache cannot be written.
    """
    copy, pa, parquet = _copy_of(file), require("pyarrow", _EXTRA), require("pyarrow.parquet", _EXTRA)
    if copy.exists():
        return copy
    # Process ids are no names: processes of several containers and machines share a cache.
    temporary = copy.with_name(f"{copy.name}.{secrets.token_hex(8)}")
    with parquet.ParquetFile(file) as source:
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            _drop_abandoned(copy)
            _ensure_space(copy.parent, file, file.stat().st_size)
            writer_of = require("pyarrow.ipc", _EXTRA).new_stream
            with pa.OSFile(str(temporary), "wb") as sink, writer_of(sink, source.schema_arrow) as writer:
                for batch in source.iter_batches(batch_size=_ROWS):
                    writer.write_batch(batch)
                    _ensure_space(copy.parent, file, _FREE_BYTES)  # values that repeat take little space in Parquet
            with temporary.open("rb") as written:
                sync(written.fileno())
            try:
                os.link(temporary, copy)
            except FileExistsError:
                pass  # another process was as fast, and reads its own copy already
            except OSError:  # a file system without hard links
                os.replace(temporary, copy)
            for old in copy.parent.glob(f"{copy.name.partition('-')[0]}-*.arrow"):
                if old != copy:  # of the file as it was
                    old.unlink(missing_ok=True)
        except OSError as error:
            if error.errno is None:
                raise  # damaged: pyarrow says so by OSError too
            raise DataError(
                f"cannot write {copy.parent}: {error.strerror}; set XDG_CACHE_HOME to a folder with space"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return copy


def _ensure_space(folder: Path, file: Path, needed: int) -> None:
    """Refuse to copy a file into a folder whose disk has fewer bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise DataError(f"{folder} has no space for the images of {file}: set XDG_CACHE_HOME to another disk")


def _drop_abandoned(copy: Path) -> None:
    """Delete what killed processes have written of a copy."""
    for each in copy.parent.glob(f"{copy.name.partition('-')[0]}-*.arrow.*"):
        with contextlib.suppress(OSError):
            if time.time() - each.stat().st_mtime > _ABANDONED_S:
                each.unlink()
