"""A folder of models and their versions, each a bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.bundle import MANIFEST
from regnet_deploy.bundle.reading import STORED_NAME, STORED_SUFFIXES
from regnet_deploy.errors import BundleError, RegnetDeployError, UsageError

#: Model names that need no escaping in URLs, metrics and logs.
MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")


#: Names, sizes, times, inodes and permissions of files.
Fingerprint = tuple[tuple[str | int, ...], ...]


@dataclass(frozen=True, order=True)
class FoundBundle:
    """A bundle to serve.

    Attributes:
        model: name of the model.
        version: its number; None for a bundle that changes in place: the server counts its versions.
        path: folder of the bundle.
    """

    model: str
    version: str | None
    path: Path


@dataclass(frozen=True)
class UnusablePath:
    """What is meant for a model and cannot be opened, for example because it is half copied.

    Attributes:
        model: name of the model; characters that cannot be printed are escaped.
        version: its number; None: the model as a whole.
        reason: why, for clients: without a path.
        error: why, for the operator; a BundleError may go away by itself.
        seen: fingerprint of its files, which changes while it is being copied.
    """

    model: str
    version: str | None
    reason: str
    error: RegnetDeployError
    seen: Fingerprint = ()


@dataclass(frozen=True)
class RepositoryListing:
    """What a repository contains."""

    bundles: tuple[FoundBundle, ...] = ()
    unusable: tuple[UnusablePath, ...] = ()


def check_model_name(name: str) -> None:
    """Check what a model is to be called.

    Raises:
        UsageError: it cannot stand in a URL, a metric or a log.
    """
    if not MODEL_NAME.match(name):
        raise UsageError(
            f"the model name {name!r} must be letters, digits, '.', '_' or '-', 128 at most, not beginning with '.'"
        )


def is_repository(path: str | Path) -> bool:
    """Return whether a path is a folder that is not a bundle."""
    return os.path.isdir(path) and not os.path.exists(Path(path) / MANIFEST)


def list_repository(path: str | Path, known: Collection[str] = ()) -> RepositoryListing:
    """Return the bundles in a repository, and what is meant to be one and is not.

    A repository is a folder with one folder for each model, which is a bundle or has one folder for each version:
    ``cats/3/bundle.json``. Names of versions are integers above 0. Files, folders without a bundle, and names that
    begin with a dot are ignored.

    Args:
        path: the repository.
        known: names of models: a file with such a name is not ignored.

    Raises:
        UsageError: the folder itself cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    bundles: list[FoundBundle] = []
    unusable: list[UnusablePath] = []
    for name in names:
        found, ill = _list_model(Path(path) / name, name in known)
        bundles += found
        unusable += ill
    return RepositoryListing(tuple(bundles), tuple(unusable))


def are_versions(listing: RepositoryListing) -> bool:
    """Return whether the models of a repository are rather the versions of one: bundles whose names are numbers."""
    found: list[FoundBundle | UnusablePath] = [*listing.bundles, *listing.unusable]
    return bool(found) and all(one.version is None and _VERSION.match(one.model) for one in found)


def _list_model(folder: Path, is_known: bool) -> tuple[list[FoundBundle], list[UnusablePath]]:
    is_named = bool(MODEL_NAME.match(folder.name))
    try:
        names = sorted(os.listdir(folder))
    except NotADirectoryError:
        return [], [_unusable(folder, None, "is a file, not a folder")] if is_known else []
    except OSError as error:
        # What no model can be called is not the operator's, for example lost+found of a volume.
        return [], [_unusable(folder, None, _reason(folder, error))] if is_named and os.path.lexists(folder) else []
    versions = sorted((name for name in names if _VERSION.match(name)), key=int)
    found: list[FoundBundle] = []
    ill: list[UnusablePath] = []
    if MANIFEST in names:
        found = [FoundBundle(folder.name, None, folder)]
    elif versions:
        found, ill = _list_versions(folder, versions)
    else:
        others = [name for name in names if not name.startswith(".") and os.path.exists(folder / name / MANIFEST)]
        if _is_half_copied(names):
            ill.append(_unusable(folder, None, f"has no {MANIFEST}"))
        elif others:
            reason = f"has a bundle in {_printable(others[0])!r}, which is not a version: whole numbers from 1"
            ill.append(_unusable(folder, None, reason, UsageError))
    if not is_named and (found or ill):
        reason = "is not a valid name of a model: letters, digits, '.', '_' or '-', 128 at most, not beginning with '.'"
        return [], [_unusable(folder, None, reason, UsageError)]
    return found, ill


def _list_versions(model: Path, versions: list[str]) -> tuple[list[FoundBundle], list[UnusablePath]]:
    found: list[FoundBundle] = []
    ill: list[UnusablePath] = []
    for version in versions:
        folder = model / version
        try:
            names = os.listdir(folder)
        except NotADirectoryError:
            ill.append(_unusable(model, version, "is a file, not a folder"))
        except OSError as error:
            if os.path.lexists(folder):  # else it has just been removed
                ill.append(_unusable(model, version, _reason(folder, error)))
        else:
            if MANIFEST in names:
                found.append(FoundBundle(model.name, version, folder))
            elif _is_half_copied(names):
                ill.append(_unusable(model, version, f"has no {MANIFEST}"))
    return found, ill


def _unusable(
    model: Path, version: str | None, reason: str, kind: type[RegnetDeployError] = BundleError
) -> UnusablePath:
    path = model if version is None else model / version
    try:
        seen = bundle_fingerprint(path)
    except OSError:
        seen = ()
    return UnusablePath(_printable(model.name), version, reason, kind(f"{_printable(str(path))} {reason}"), seen)


def _is_half_copied(names: list[str]) -> bool:
    """Return whether files of a bundle are there, which has no manifest yet or any more."""
    return any(STORED_NAME.match(name) and name.endswith(STORED_SUFFIXES) for name in names)


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "is a link to a path that does not exist"
    return f"cannot be read: {error.strerror}"


def _printable(text: str) -> str:
    """Escape what JSON, metrics and logs cannot carry or show: control characters and bytes that are not UTF-8."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def bundle_fingerprint(path: Path) -> Fingerprint:
    """Return names, sizes, times, inodes and permissions of a bundle's files, which change with it.

    A copy in progress changes it as well, so that a bundle that was read half-copied is read again. It is empty where
    the bundle is gone.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            return tuple(sorted((entry.name, *_status(entry)) for entry in entries))
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _status(entry: os.DirEntry[str]) -> tuple[int, ...]:
    for follow in (True, False):  # a link to nothing, such as the lock file of an editor, has a status of its own
        try:
            status = entry.stat(follow_symlinks=follow)
        except OSError:
            continue
        return (
            *(status.st_size, status.st_mtime_ns, status.st_ino),
            *(status.st_mode, status.st_uid, status.st_gid),
        )
    return ()  # it has just been removed
