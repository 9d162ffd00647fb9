"""Keeps the kernels that TensorRT-RTX compiles for an engine on this GPU.

TensorRT-RTX compiles an engine's kernels when a context first runs a shape, for up to many seconds, and each context
compiles its own unless they share a runtime cache. All contexts of an engine in this process share one, and it is kept
in a file for the next process. An error here never fails a run: without the file it only takes longer.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

from regnet_deploy.engines.cache_files import read_cache, write_cache
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.user_cache import cache_folder

_FIRST_LINE = b"regnet-deploy kernel cache 1\n"
_LOG = logging.getLogger(__name__)


class KernelCache:
    """TensorRT-RTX's runtime cache of one engine, and its file; safe to use from several threads.

    It has to live as long as the contexts that use it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._cache: Any = None
        self._stored: str | None = None

    def attach(self, settings: Any) -> None:
        """Have contexts with these settings use the cache; the first call reads the file.

        Args:
            settings: TensorRT-RTX's ``IRuntimeConfig`` of the engine.
        """
        with self._lock:
            if self._cache is None:
                self._cache = self._opened(settings)
            if not settings.set_runtime_cache(self._cache):
                _LOG.warning("TensorRT-RTX does not take the kernel cache %s: every context compiles anew", self._path)

    def save(self) -> None:
        """Write the file if kernels were compiled since; another process may replace it with its own."""
        with self._lock:
            blob = None if self._cache is None else self._cache.serialize()
            if blob is None:
                return
            content = bytes(blob)
            digest = hashlib.sha256(content).hexdigest()
            if digest == self._stored:
                return
            self._stored = digest  # also where it cannot be written, which is logged once for each content
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_cache(self._path, _FIRST_LINE, content)
            except OSError as error:
                _LOG.warning(
                    "kernel cache %s cannot be written: %s; the next start compiles again", self._path, error.strerror
                )

    def _opened(self, settings: Any) -> Any:
        """Return a cache with the kernels of the file, empty where TensorRT-RTX does not accept them."""
        cache, content = settings.create_runtime_cache(), None
        try:
            content = read_cache(self._path, _FIRST_LINE)
        except OSError as error:
            _LOG.warning("kernel cache %s cannot be read: %s; kernels are compiled", self._path, error.strerror)
            return cache
        if content is None:
            _LOG.warning("kernel cache %s is damaged and is replaced", self._path)
        elif content and cache.deserialize(content):
            self._stored = hashlib.sha256(content).hexdigest()
        return cache


def kernel_cache(library: Library, gpu: Gpu, plan: bytes) -> KernelCache:
    """Return the cache of an engine, the same for all its sessions in this process.

    Args:
        library: TensorRT-RTX.
        gpu: that runs the engine; kernels for another GPU or driver are in other files.
        plan: the engine's bytes.
    """
    key = (
        gpu.name,
        gpu.compute_capability,
        gpu.driver,
        str(library),
        library.toolkit,
        hashlib.sha256(plan).hexdigest(),
    )
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu.name}-{library}").strip("-")
    name = f"{words}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.kernels"
    return _caches_in_use(library.module).find(cache_folder("kernels") / name)


class _CachesInUse:
    """The caches that sessions of this process have."""

    def __init__(self) -> None:
        self._lock, self._caches = Lock(), WeakValueDictionary[Path, KernelCache]()

    def find(self, path: Path) -> KernelCache:
        with self._lock:
            cache = self._caches.get(path)
            if cache is None:
                cache = self._caches[path] = KernelCache(path)
            return cache


@functools.cache
def _caches_in_use(trt: ModuleType) -> _CachesInUse:
    return _CachesInUse()
