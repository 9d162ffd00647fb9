"""Keeps the measured times of kernels on a GPU between builds, so that the next build is faster.

There is one file for each GPU, driver and version of TensorRT, in the user's cache folder. It is read before a build
and written after it, each under a lock; entries that another process wrote meanwhile are kept. An error here never
fails a build: without the file it only takes longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regnet_deploy.engines.cache_files import read_cache, write_cache
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import DataError
from regnet_deploy.file_lock import file_lock
from regnet_deploy.progress import Progress
from regnet_deploy.user_cache import cache_folder

_FIRST_LINE = b"regnet-deploy timing cache 1\n"
_BUSY = "another process holds it"
#: Maximum wait for the lock, seconds; it is held only to read or write the file.
LOCK_TIMEOUT_S = 10.0


def cache_file(library: Library, gpu: Gpu, folder: Path | None = None) -> Path:
    """Return the timing cache of this GPU and library; timings of another GPU or version would be wrong."""
    key = (gpu.name, gpu.compute_capability, gpu.multiprocessors, gpu.driver, str(library), library.toolkit)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu.name}-{library}").strip("-")
    return (folder or cache_folder("timing")) / f"{words}-{digest}.timing"


def attach(config: Any, path: Path, progress: Progress, timeout_s: float = LOCK_TIMEOUT_S) -> Any:
    """Add the cache of a file, or an empty one, to a builder's configuration and return it, for :func:`keep`.

    Args:
        config: TensorRT's ``IBuilderConfig``.
        path: of the file, which may not exist.
        progress: receives a message with the reason if the file is not used.
        timeout_s: how long to wait for another process, seconds.
    """
    with _locked(path, progress, timeout_s) as locked:
        data = _read(path, progress) if locked else b""
    cache = _opened(config, data) if data else None
    if data and (cache is None or not config.set_timing_cache(cache, False)):
        progress.message(f"timing cache {path} is of another GPU or version and is replaced")
        cache = None
    if cache is None:
        cache = _opened(config, b"")
        config.set_timing_cache(cache, False)
    return cache


def keep(config: Any, cache: Any, path: Path, progress: Progress, timeout_s: float = LOCK_TIMEOUT_S) -> None:
    """Write a cache after a build to its file, with the entries that another process wrote meanwhile.

    Args:
        config: TensorRT's ``IBuilderConfig`` that the cache is attached to.
        cache: from :func:`attach`.
        path: of the file.
        progress: receives a message with the reason if it was not written.
        timeout_s: how long to wait for another process, seconds.
    """
    with _locked(path, progress, timeout_s) as locked:
        if not locked:
            return
        data = _read(path, progress)
        others = _opened(config, data) if data else None
        if others is not None:
            cache.combine(others, False)  # does nothing with a cache of another version, which is replaced
        blob = bytes(cache.serialize())
        try:
            write_cache(path, _FIRST_LINE, blob)
        except OSError as error:
            progress.message(f"timing cache {path} cannot be written: {error.strerror}; the next build measures again")


def _opened(config: Any, data: bytes) -> Any:
    """Return TensorRT's cache with these bytes, or None if it does not accept them."""
    try:
        return config.create_timing_cache(data)
    except TypeError:  # raised by the Python binding for a null pointer
        return None


@contextlib.contextmanager
def _locked(path: Path, progress: Progress, timeout_s: float) -> Iterator[bool]:
    """Hold the lock of a file while the body runs; yields False, with a message, if it cannot be locked."""
    until = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        locked = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while not locked:
                try:
                    stack.enter_context(file_lock(path.with_suffix(".lock"), busy=_BUSY, unwritable="{}"))
                    locked = True
                except DataError as error:
                    if str(error) != _BUSY or time.monotonic() >= until:
                        raise
                    time.sleep(0.05)
        except (DataError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            progress.message(f"timing cache {path} is not used, {reason}: the build measures every kernel")
        yield locked


def _read(path: Path, progress: Progress) -> bytes:
    """Return TensorRT's bytes of a file, checked; empty if there is no file or it is damaged."""
    try:
        content = read_cache(path, _FIRST_LINE)
    except OSError as error:
        progress.message(f"timing cache {path} cannot be read: {error.strerror}; the build measures every kernel")
        return b""
    if content is None:
        progress.message(f"timing cache {path} is damaged and is replaced")
    return content or b""
