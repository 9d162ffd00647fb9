"""Check of images before training: every image is decoded once, and the results are cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, require
from regnet_deploy.images.decode import ImageError, image_facts
from regnet_deploy.images.image_source import ImageSource, Stamp
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.user_cache import cache_folder

#: Images that a thread checks before their results are written to the cache.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Result for one image.

    Attributes:
        path: name of the image in its source.
        size: bytes.
        mtime_ns: time of modification.
        sha256: of the content; empty if it could not be read.
        width: pixels, after the EXIF orientation is applied.
        height: pixels, likewise.
        reason: why the image cannot be used; empty if it can.
        ctime_ns: time of change.
        inode: number of the file.
        contrast, transparent, peak, mode, gray, phash, decode_ms: see :class:`regnet_deploy.images.decode.ImageFacts`;
            ``mode`` is empty where the image was not decoded.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    reason: str
    ctime_ns: int = 0
    inode: int = 0
    contrast: int = 255
    transparent: bool = False
    peak: int | None = None
    mode: str = ""
    gray: bool = False
    phash: str = ""
    decode_ms: float = field(default=0.0, compare=False)

    @property
    def stamp(self) -> Stamp:
        """The stamp of the image when it was checked."""
        return Stamp(self.size, self.mtime_ns, self.ctime_ns, self.inode)


def check_images(
    source: ImageSource,
    cache: Path | None = None,
    progress: Progress = NoProgress(),
    *,
    also: Iterable[Path | None] = (),
) -> dict[str, ImageCheck]:
    """Decode every image completely, in threads, and find those that cannot be used.

    Args:
        source: the images.
        cache: file of JSON lines in which results are kept as they come. An image whose stamp has not changed since is
            not decoded again.
        progress: receives the images done.
        also: further caches, which are read but not written.

    Returns:
        Name -> result, for every image of ``source``.

    Raises:
        DataError: ``cache`` cannot be written.
    """
    require("PIL.Image", "train")
    progress.step("checking images", len(source.names))
    require("imagehash", "train")
    caches = [known for path in (*also, cache) if path and (known := _read_cache(path))]
    results: dict[str, ImageCheck] = {}
    pending: list[int] = []
    for index, name in enumerate(source.names):
        stored = [entry for known in caches if (entry := known.get(name)) is not None and entry.sha256]
        stamp = _stamp(source, index) if stored else None
        valid = next((entry for entry in stored if entry.stamp == stamp), None)
        if valid:
            results[name] = valid
        else:
            pending.append(index)
    del caches
    progress.update(len(results))
    for checked in _check_in_threads(source, pending):
        results.update((entry.path, entry) for entry in checked)
        if cache:
            _append_to_cache(cache, checked)
        progress.update(len(results))
    return results


def check_image(source: ImageSource, index: int) -> ImageCheck:
    """Read and decode one image."""
    name, stamp, digest = source.names[index], Stamp(0, 0, 0, 0), ""
    try:
        stamp = source.stamp(index)
        data = source.read(index)
        digest = hashlib.sha256(data).hexdigest()
        facts = image_facts(data, name)
    except ImageError as error:
        return ImageCheck(
            name, stamp.size, stamp.mtime_ns, digest, 0, 0, error.reason, ctime_ns=stamp.ctime_ns, inode=stamp.inode
        )
    return ImageCheck(
        name,
        stamp.size,
        stamp.mtime_ns,
        digest,
        *facts.size,
        "",
        ctime_ns=stamp.ctime_ns,
        inode=stamp.inode,
        contrast=facts.contrast,
        transparent=facts.transparent,
        peak=facts.peak,
        mode=facts.mode,
        gray=facts.gray,
        phash=facts.phash,
        decode_ms=facts.decode_ms,
    )


def cache_file(directory: Path, root: Path) -> Path:
    """Return the file in ``directory`` that caches the check of the images in ``root``."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    return directory / f"checked-{digest[:12]}.jsonl"


def shared_cache(root: Path, *, create: bool = False) -> Path | None:
    """Return the file of this user that caches the check of the images in ``root``, whatever they are used for.

    Args:
        root: the folder of images.
        create: make its folder if it does not exist; None is returned where the file cannot be written.
    """
    folder = cache_folder("image-checks")
    cache = cache_file(folder, root)
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            cache.open("ab").close()
        except OSError:
            return None
    return cache


def _stamp(source: ImageSource, index: int) -> Stamp | None:
    try:
        return source.stamp(index)
    except ImageError:
        return None


def _check_in_threads(source: ImageSource, indices: Sequence[int]) -> Iterator[list[ImageCheck]]:
    """Check in chunks and yield their results in order. Pillow decodes without Python's lock, so threads are enough."""
    chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        yield from pool.map(lambda chunk: [check_image(source, index) for index in chunk], chunks)
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt, chunks that have not started are not waited for


def _read_cache(cache: Path) -> dict[str, ImageCheck]:
    """Read the cache. A line that a crash cut short is skipped: its image is decoded again."""
    known = {}
    try:
        with cache.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):
                    entry = ImageCheck(**json.loads(line))
                    if entry.mode or entry.reason:  # else an earlier version wrote it, which looked at less
                        known[entry.path] = entry
    except OSError:
        return {}  # there is no cache yet
    return known


def _append_to_cache(cache: Path, results: Iterable[ImageCheck]) -> None:
    text = "".join(json.dumps(asdict(entry)) + "\n" for entry in results)
    try:
        with cache.open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                text = "\n" + text  # after a line that a crash cut short
            file.write(text.encode())
    except OSError as error:
        raise DataError(f"cannot write {cache}: {error.strerror}") from None
