"""Files of a data set on a server: downloaded once into the cache of the user, resumed where it stopped, and checked.

fsspec reads http(s), S3 and what else it has a package for. Only addresses that a user names are asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from regnet_deploy.durable_files import lock
from regnet_deploy.errors import DataError, UsageError, require
from regnet_deploy.images.data_files import LIST_SEPARATOR, expanded, separated
from regnet_deploy.images.names import printable
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.user_cache import cache_folder

_EXTRA = "remote"
_CHUNK = 8 * 2**20
#: Attempts in a row that bring nothing, and seconds before the second one; the pause doubles.
_ATTEMPTS, _PAUSE_S = 4, 1.0
#: Seconds for which a server may send nothing.
_SILENT_S = 60
#: Seconds for which a server is not asked again whether a file has changed: a command lists its images several times.
_ASKED_S = 600
_PART, _RECORD = ".part", ".download.json"
#: What tells versions of a file apart, by the names of the file systems.
_VERSION_KEYS = ("ETag", "etag", "Content-MD5", "md5Hash", "Digest", "Last-Modified", "LastModified", "mtime")


@dataclass(frozen=True)
class _Remote:
    """A file on a server: its file system, its path there, and what the server says of it."""

    url: str
    system: Any
    path: str
    size: int | None
    version: dict[str, str]


def is_remote(value: str) -> bool:
    """Tell whether a value names files on a server; a path that lost a slash of ``//`` does too."""
    return any(re.match(r"/?[a-z][a-z0-9+.-]+:/+[^/]", name) for name in separated(value))


def as_written(value: str) -> str:
    """Return a value of ``--data`` as its user wrote it: paths lose a slash of the ``//`` of addresses."""
    names = (re.sub(r"^/?([a-z][a-z0-9+.-]+):/+", r"\1://", name) for name in separated(value))
    return LIST_SEPARATOR.join(names)


def downloaded(value: str, suffixes: tuple[str, ...], progress: Progress = NoProgress()) -> tuple[Path, list[str]]:
    """Download the files that an address, a pattern or a list of addresses names; return their folder and names there.

    A file that is there is not transferred again, unless the server has another version of it.

    Args:
        value: the addresses.
        suffixes: that the names of the files may have.
        progress: receives what is downloaded.

    Raises:
        UsageError: an address is none, or names no such file.
        DataError: a file does not exist, a server cannot be reached or refuses, or the cache cannot be written.
        MissingExtra: fsspec is not installed.
    """
    urls = expanded(as_written(value))
    for url in urls:
        if "://" not in url:
            raise UsageError(f"{url} is not on a server, as others of this list are: download those, and list paths")
        try:
            url.encode()
            scheme = urlsplit(url).scheme
        except ValueError as error:
            raise UsageError(f"{printable(url)} is no address: {printable(str(error))}") from None
        if scheme in ("file", "local"):
            raise UsageError(f"{_shown(url)} is not on a server: give the path alone")
        if PurePosixPath(urlsplit(url).path).suffix.lower() not in suffixes:
            raise UsageError(
                f"{_shown(url)} names no file of images: give those on the server, as "
                f"https://host/shards-{{000..009}}.tar; they end with {', '.join(suffixes)}"
            )
        if ".." in PurePosixPath(urlsplit(url).path).parts:
            raise UsageError(f"{_shown(url)} has .. in its path: give it without")
    kinds = dict.fromkeys(PurePosixPath(urlsplit(url).path).suffix.lower() for url in urls)
    if len(kinds) > 1:
        raise UsageError(f"{_shown(urls[0])} and others of this list are {' and '.join(kinds)} files: give one kind")
    paths = [urlsplit(_shown(url)).netloc + urlsplit(url).path for url in urls]
    above = (
        os.path.commonpath([os.path.dirname(path) for path in paths]) if len(urls) > 1 else os.path.dirname(paths[0])
    )
    folder = _folder(urls)
    places = {url: folder / os.path.relpath(path, above) for url, path in zip(urls, paths, strict=True)}
    names = [os.path.relpath(place, folder) for place in places.values()]
    if len(set(names)) < len(names):
        raise UsageError(f"{_shown(urls[0])} and others of this list differ in what stands behind ? alone: give one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if not os.access(folder, os.W_OK) and all(map(_record, places.values())):
        progress.message(f"{folder} is read-only: the files that were downloaded are used")
        return folder, names
    with _alone(folder, progress):
        wanted = _wanted(places, progress)
        if wanted:
            _download(wanted, places, folder, progress)
    return folder, names


@contextlib.contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time look after a folder: those of one training list their images at the same time."""
    try:
        file = open(folder / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise _unwritable(folder, error) from None
    with file:
        try:
            lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.message(f"waiting for another process, which downloads to {folder}")
            lock(file.fileno(), fcntl.LOCK_EX)
        yield


def _folder(urls: list[str]) -> Path:
    """Return the folder in the cache for these addresses."""
    digest = hashlib.sha256("\n".join(urls).encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(urlsplit(urls[0]).path).name).strip("-")
    return cache_folder("downloads") / f"{name}-{digest}"


def _wanted(places: dict[str, Path], progress: Progress) -> list[_Remote]:
    """Return the files that are not there, or that the server has another version of."""
    to_ask = [url for url, place in places.items() if not _is_fresh(place)]
    if not to_ask:
        return []
    wanted = []
    pool = ThreadPoolExecutor(max_workers=8)
    try:
        for url, remote in zip(to_ask, pool.map(lambda url: _ask(url, places[url]), to_ask), strict=True):
            place = places[url]
            known = _record(place)
            if known is None:
                if remote is not None:
                    wanted.append(remote)
            elif remote is None:
                progress.message(f"{_shown(url)} cannot be reached: the file that was downloaded is used")
            elif (known["version"], known["size"]) == (
                remote.version,
                known["size"] if remote.size is None else remote.size,
            ):
                with contextlib.suppress(OSError):  # of another user: the server is asked again the next time
                    os.utime(place.with_name(place.name + _RECORD))
            else:
                progress.message(f"{_shown(url)} has changed on the server")
                wanted.append(remote)
    finally:
        pool.shutdown(cancel_futures=True)
    return wanted


def _download(wanted: list[_Remote], places: dict[str, Path], folder: Path, progress: Progress) -> None:
    size = sum(remote.size or 0 for remote in wanted)
    files = "1 file" if len(wanted) == 1 else f"{len(wanted):,} files"
    progress.message(f"downloading {files}, {size / 1e6:,.1f} MB, from {urlsplit(wanted[0].url).netloc} to {folder}")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{folder} has {free / 1e6:,.0f} MB free, and {size / 1e6:,.0f} MB are to be downloaded: set "
            "XDG_CACHE_HOME to a folder on another disk"
        )
    for number, remote in enumerate(wanted, 1):
        progress.step(f"downloading {number} of {files}, MB", None if remote.size is None else remote.size / 1e6)
        attempt, before = 0, -1
        while True:
            place = places[remote.url]
            try:
                _fetch(remote, place, progress)
                break
            except _errors() as error:
                part = place.with_name(place.name + _PART)
                have = part.stat().st_size if part.exists() else 0
                attempt, before = (attempt + 1, before) if have <= before else (1, have)
                if attempt == _ATTEMPTS:
                    raise DataError(
                        f"{_shown(remote.url)} ended after {have:,} bytes: {_said(error)}; the same command continues"
                    ) from None
                progress.message(f"{_shown(remote.url)}: {_said(error)}; trying again")
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))


def _fetch(remote: _Remote, place: Path, progress: Progress) -> None:
    """Download a file, from where an earlier attempt at the same version ended, and put it in place as a whole.

    Raises:
        OSError, ValueError: the transfer ended early; what was received is kept.
        DataError: it cannot be written.
    """
    part, digest = place.with_name(place.name + _PART), hashlib.sha256()
    part_version, version = part.with_name(part.name + _RECORD), json.dumps(remote.version)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if not (remote.version and part_version.exists() and part_version.read_text() == version):
            part.unlink(missing_ok=True)  # of another version, or of one that is not known
        part_version.write_text(version)
        file = part.open("r+b" if part.exists() else "w+b")
    except OSError as error:
        raise _unwritable(part, error) from None
    with file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        for chunk, start in _chunks(remote, file.tell()):
            if start == 0:
                digest = hashlib.sha256()
                file.truncate(0)
            try:
                file.seek(start)
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise _unwritable(part, error) from None
            digest.update(chunk)
            progress.update((start + len(chunk)) / 1e6)
        done = file.seek(0, os.SEEK_END)
        if remote.size is not None and done < remote.size:
            raise OSError(f"the connection ended after {done:,} of {remote.size:,} bytes")
        os.fsync(file.fileno())
    now = _ask(remote.url, place, required=True)
    if now is None or (now.version, now.size) != (remote.version, remote.size) or (remote.size not in (None, done)):
        part.unlink()
        raise DataError(f"{_shown(remote.url)} changed while it was downloaded: repeat the command")
    record = {"url": _shown(remote.url), "version": remote.version, "size": done, "sha256": digest.hexdigest()}
    try:
        os.replace(part, place)
        part_version.unlink(missing_ok=True)
        text = json.dumps({**record, "mtime_ns": place.stat().st_mtime_ns})
        place.with_name(place.name + _RECORD).write_text(text)
    except OSError as error:
        raise _unwritable(place, error) from None


def _chunks(remote: _Remote, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield what is missing and where it begins: from ``start``, or from 0 where the server sends whole files alone."""
    if start:
        if start == remote.size:
            return
        with contextlib.suppress(ValueError):
            with remote.system.open(remote.path, "rb", block_size=_CHUNK, cache_type="none") as file:
                file.seek(start)
                while chunk := file.read(_CHUNK if remote.size is None else min(_CHUNK, remote.size - start)):
                    yield chunk, start
                    start += len(chunk)
            return
    start, http = 0, urlsplit(remote.url).scheme in ("http", "https")
    with remote.system.open(remote.path, "rb", block_size=0 if http else _CHUNK) as file:
        while chunk := file.read(_CHUNK):
            yield chunk, start
            start += len(chunk)


def _ask(url: str, place: Path, *, required: bool = False) -> _Remote | None:
    """Return what the server says of a file; None if it cannot be reached and the file was downloaded before.

    Raises:
        DataError: the file does not exist, or the server cannot be reached or refuses.
    """
    core = require("fsspec.core", _EXTRA)
    options = {}
    if urlsplit(url).scheme in ("http", "https"):  # aiohttp would end any transfer after five minutes
        timeout = require("aiohttp", _EXTRA).ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        system, path = core.url_to_fs(url, **options)
        system.invalidate_cache()
        info = system.info(path)
    except ImportError as error:
        raise DataError(
            f"{_shown(url)} needs a package that is not installed ({_said(error)}): pip install "
            "'regnet-deploy[remote]', or that package"
        ) from None
    except _errors() as error:
        if _record(place) is not None and not required:
            return None
        cause = error.__cause__ or error
        raise DataError(f"{_shown(url)} cannot be read: {_said(cause)}") from None
    version = {key: str(info[key]) for key in _VERSION_KEYS if info.get(key)}
    size = info.get("size")
    return _Remote(url, system, path, None if size is None else int(size), version)


def _record(place: Path) -> dict[str, Any] | None:
    """Return what is known of a downloaded file; None if it is not there as it was downloaded."""
    try:
        record: dict[str, Any] = json.loads(place.with_name(place.name + _RECORD).read_text())
        status = place.stat()
        if status.st_size != record["size"]:
            return None
        if status.st_mtime_ns != record["mtime_ns"]:
            with place.open("rb") as file:
                return record if hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _is_fresh(place: Path) -> bool:
    """Tell whether a file is there, and its server was asked a short while ago."""
    if _record(place) is None:
        return False
    return abs(time.time() - place.with_name(place.name + _RECORD).stat().st_mtime) < _ASKED_S


def _errors() -> tuple[type[BaseException], ...]:
    """Return what file systems raise where a server fails: aiohttp has errors that are no OSError."""
    aiohttp = sys.modules.get("aiohttp")
    return (OSError, ValueError, *([aiohttp.ClientError] if aiohttp else []))


def _shown(url: str) -> str:
    """Return an address without password and query, which may hold a signature."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror}; set XDG_CACHE_HOME to another folder")


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", re.sub(r"://[^/\s@]*@", "://", text))[:200]
