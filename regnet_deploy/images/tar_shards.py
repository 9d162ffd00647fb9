"""Tar shards of WebDataset as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from regnet_deploy.errors import DataError
from regnet_deploy.images.byte_ranges import ByteRange, ByteRangeSource, ranges_array
from regnet_deploy.images.data_files import DataFiles
from regnet_deploy.images.image_table import ImageTable, LabeledName, image_table
from regnet_deploy.images.tar_index import TarIndex, tar_index
from regnet_deploy.progress import NoProgress, Progress

TAR_SUFFIXES = (".tar",)
#: File of class names beside shards whose classes are numbers: line N, counted from 0, names the class N.
CLASS_NAMES = "classnames.txt"
_KIND = "tar shards"


def read_tar_shards(files: DataFiles, progress: Progress = NoProgress()) -> ImageTable:
    """Return the images of tar shards. An image is called after its shard and its member.

    Args:
        files: the shards.
        progress: receives the shards that were searched.

    Raises:
        DataError: a shard cannot be read, is no uncompressed tar archive, or is damaged; or no image can be used.
    """
    progress.step("searching tar shards", len(files.names))
    indices: list[TarIndex] = []
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        for index in pool.map(lambda name: tar_index(files.folder / name), files.names):
            indices.append(index)
            progress.update(len(indices))
    finally:
        pool.shutdown(cancel_futures=True)
    names, ranges, images = [], list[ByteRange](), []
    left_out = dict(files.left_out)
    class_names = _class_names(files.folder, indices)
    for number, (shard, index) in enumerate(zip(files.names, indices, strict=True)):
        for name, offset, size, label in index.samples:
            names.append(f"{shard}/{name}")
            ranges.append(ByteRange(number, offset, size))
            images.append(LabeledName(names[-1], class_names.get(label, label), files.splits.get(shard, "")))
        left_out |= {f"{shard}/{name}": reason for name, reason in index.left_out.items()}
    if not images:
        example = next((f"; for example {name}: {reason}" for name, reason in left_out.items()), "")
        raise DataError(
            f"{files.root} has no image with a class, KEY.jpg and KEY.cls, KEY.txt or KEY.json, in its shards{example}"
        )
    source = ByteRangeSource(
        files.root,
        tuple(names),
        tuple(str(files.folder / name) for name in files.names),
        tuple(index.stamp for index in indices),
        ranges_array(ranges),
    )
    return image_table(source, _KIND, images, set(files.splits.values()), left_out)


def _class_names(folder: Path, indices: Sequence[TarIndex]) -> Mapping[str, str]:
    """Return number of a class -> its name, where a file beside the shards names them.

    Raises:
        DataError: the file cannot be read, or has too few lines.
    """
    file = folder / CLASS_NAMES
    if not file.is_file():
        return {}
    labels = {sample.label for index in indices for sample in index.samples}
    if not all(label.isascii() and label.isdecimal() for label in labels):
        return {}
    try:
        lines = [" ".join(line.split()) for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    without = sorted((int(label) for label in labels if int(label) >= len(lines) or not lines[int(label)]), key=int)
    if without:
        raise DataError(f"{file} has no name for class {without[0]}, its line {without[0] + 1}: it has {len(lines)}")
    _ensure_unique(file, lines)
    return {label: lines[int(label)] for label in labels}


def _ensure_unique(file: Path, lines: Iterable[str]) -> None:
    seen = dict[str, int]()
    for number, line in enumerate(lines, 1):
        if line and seen.setdefault(line, number) != number:
            raise DataError(f"{file} has the class {line!r} in line {seen[line]} and in line {number}")
