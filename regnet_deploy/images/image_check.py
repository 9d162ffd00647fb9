"""Every file decoded once before it is needed, and what came of it remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, require
from regnet_deploy.images.decode import decode

#: A file larger than this is refused unread.
MAX_BYTES = 512 * 2**20
#: Files handed to a thread at a time, and written down together.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What is known of a file.

    Attributes:
        path: relative to the image folder.
        size: bytes.
        mtime_ns: when it was changed, as the file system tells.
        sha256: of its content; empty where it could not be read.
        width: pixels, after the EXIF orientation.
        height: pixels.
        reason: why it cannot be used; empty where it can.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    reason: str


def check_images(
    root: Path,
    paths: Sequence[str],
    memory: Path | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, ImageCheck]:
    """Decode every file fully, in threads, and say which can be used.

    Args:
        root: the image folder.
        paths: files relative to it.
        memory: a file of JSON lines in which results are kept, as they come: what it knows of a file of the same size
            and time of change is not decoded again.
        advance: called with the files done and all files.

    Returns:
        path -> what is known of it, for every one of ``paths``.

    Raises:
        DataError: ``memory`` cannot be written.
    """
    require("PIL.Image", "train")
    known = _recall(memory) if memory else {}
    found: dict[str, ImageCheck] = {}
    todo: list[str] = []
    for path in paths:
        entry, now = known.get(path), _stat(root / path)
        if entry and now and entry.sha256 and (entry.size, entry.mtime_ns) == (now.st_size, now.st_mtime_ns):
            found[path] = entry
        else:
            todo.append(path)
    advance(len(found), len(paths))
    for results in _in_threads(root, todo):
        found.update((entry.path, entry) for entry in results)
        if memory:
            _remember(memory, results)
        advance(len(found), len(paths))
    return found


def check_image(root: Path, path: str) -> ImageCheck:
    """Read and decode one file."""
    now = _stat(root / path)
    if now is None:
        return ImageCheck(path, 0, 0, "", 0, 0, "cannot be read")
    unread = ImageCheck(path, now.st_size, now.st_mtime_ns, "", 0, 0, "")
    if not stat.S_ISREG(now.st_mode):  # a pipe would never end
        return ImageCheck(**{**asdict(unread), "reason": "not a file"})
    if now.st_size > MAX_BYTES:
        return ImageCheck(**{**asdict(unread), "reason": f"larger than {MAX_BYTES // 2**20} MiB"})
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        return ImageCheck(**{**asdict(unread), "reason": f"cannot be read: {error.strerror}"})
    digest = hashlib.sha256(data).hexdigest()
    try:
        width, height = decode(data, "").size
    except DataError as error:
        return ImageCheck(path, now.st_size, now.st_mtime_ns, digest, 0, 0, str(error).removeprefix(": "))
    return ImageCheck(path, now.st_size, now.st_mtime_ns, digest, width, height, "")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _in_threads(root: Path, paths: Sequence[str]) -> Iterator[list[ImageCheck]]:
    """Check in chunks and yield their results in order; threads do: Pillow decodes without holding the lock."""
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        yield from pool.map(lambda chunk: [check_image(root, path) for path in chunk], chunks)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the files that nobody asks for any more


def _recall(memory: Path) -> dict[str, ImageCheck]:
    """Read what was remembered; a line that a crash cut short only means that its file is decoded again."""
    known = {}
    try:
        with memory.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):
                    entry = ImageCheck(**json.loads(line))
                    known[entry.path] = entry
    except OSError:
        return {}  # nothing is remembered yet
    return known


def _remember(memory: Path, results: Iterable[ImageCheck]) -> None:
    text = "".join(json.dumps(asdict(entry)) + "\n" for entry in results)
    try:
        with memory.open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # after a line that was cut short
            file.write(text.encode())
    except OSError as error:
        raise DataError(f"cannot write {memory}: {error.strerror}") from None
