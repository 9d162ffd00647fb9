"""How long kernels took on a GPU, kept between builds so that the next one need not measure them again.

One file for each GPU, driver and version of TensorRT, in the user's cache folder. It is read before a build and written
behind it, under a lock that is held for as long as that takes, not for the build; what another process wrote meanwhile
is kept. Nothing here can fail a build: without the file it only takes longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import DataError
from regnet_deploy.file_lock import file_lock

_FIRST_LINE = b"regnet-deploy timing cache 1\n"
_BUSY = "another process holds it"
#: How long the lock is waited for, seconds; whoever holds it only reads or writes a file.
PATIENCE_S = 10.0

Note = Callable[[str], None]


def cache_folder() -> Path:
    """Return the folder of the timing caches: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "regnet-deploy" / "timing"


def cache_file(library: Library, gpu: Gpu, folder: Path | None = None) -> Path:
    """Return the timing cache of this GPU with this library; timings of another one would be wrong."""
    made_by = (gpu.name, gpu.compute_capability, gpu.multiprocessors, gpu.driver, str(library), library.toolkit)
    digest = hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu.name}-{library}").strip("-")
    return (folder or cache_folder()) / f"{words}-{digest}.timing"


def attach(config: Any, path: Path, note: Note, patience_s: float = PATIENCE_S) -> Any:
    """Give a builder's configuration the cache of a file, or an empty one, and return it, for :func:`keep`.

    Args:
        config: TensorRT's ``IBuilderConfig``.
        path: of the file; it need not be there.
        note: is told in one line why the file is not used.
        patience_s: how long to wait for another process, seconds.
    """
    with _locked(path, note, patience_s) as locked:
        data = _read(path, note) if locked else b""
    cache = _opened(config, data) if data else None
    if data and (cache is None or not config.set_timing_cache(cache, False)):
        note(f"timing cache {path} is of another GPU or version and is made anew")
        cache = None
    if cache is None:
        cache = _opened(config, b"")
        config.set_timing_cache(cache, False)
    return cache


def keep(config: Any, cache: Any, path: Path, note: Note, patience_s: float = PATIENCE_S) -> None:
    """Write a cache that a build has filled to its file, together with what another process wrote there meanwhile.

    Args:
        config: TensorRT's ``IBuilderConfig`` that the cache is attached to.
        cache: from :func:`attach`.
        path: of the file.
        note: is told in one line why it was not written.
        patience_s: how long to wait for another process, seconds.
    """
    with _locked(path, note, patience_s) as locked:
        if not locked:
            return
        data = _read(path, note)
        others = _opened(config, data) if data else None
        if others is not None:
            cache.combine(others, False)  # of another version: left alone, and replaced
        blob = bytes(cache.serialize())
        try:
            _write(path, _FIRST_LINE + hashlib.sha256(blob).hexdigest().encode() + b"\n" + blob)
        except OSError as error:
            note(f"timing cache {path} cannot be written: {error.strerror}; the next build measures again")


def _opened(config: Any, data: bytes) -> Any:
    """Return TensorRT's cache of these bytes, or None where it does not take them."""
    try:
        return config.create_timing_cache(data)
    except TypeError:  # what its binding makes of a null pointer
        return None


@contextlib.contextmanager
def _locked(path: Path, note: Note, patience_s: float) -> Iterator[bool]:
    """Hold the lock beside a file for as long as the body runs; False where it is not to be had, which is noted."""
    until = time.monotonic() + patience_s
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
            note(f"timing cache {path} is not used, {reason}: the build measures every kernel")
        yield locked


def _read(path: Path, note: Note) -> bytes:
    """Return the bytes that TensorRT wrote, checked; empty where there are none or they changed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        note(f"timing cache {path} cannot be read: {error.strerror}; the build measures every kernel")
        return b""
    digest, _, blob = data.removeprefix(_FIRST_LINE).partition(b"\n")
    if data.startswith(_FIRST_LINE) and hashlib.sha256(blob).hexdigest().encode() == digest:
        return blob
    note(f"timing cache {path} is damaged and is made anew")
    return b""


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".incomplete-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
