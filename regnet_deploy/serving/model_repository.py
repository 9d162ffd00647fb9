"""A folder of models and their versions, each a bundle."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.bundle import MANIFEST
from regnet_deploy.errors import UsageError

#: Model names that need no escaping in URLs, metrics and logs.
MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")


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


def is_repository(path: str | Path) -> bool:
    """Return whether a path is a folder that is not a bundle."""
    return os.path.isdir(path) and not os.path.exists(Path(path) / MANIFEST)


def find_bundles(path: str | Path) -> list[FoundBundle]:
    """Return the bundles in a repository.

    A repository is a folder with one folder for each model, which is a bundle or has one folder for each version:
    ``cats/3/bundle.json``. Names of versions are integers above 0; other folders, and names that begin with a dot, are
    ignored.

    Args:
        path: the repository.

    Raises:
        UsageError: a folder cannot be read, or a model's folder has a name that is not allowed.
    """
    found: list[FoundBundle] = []
    for model in sorted(_folders(Path(path))):
        named = MODEL_NAME.match(model.name)
        try:
            bundles = _bundles_of(model)
        except OSError as error:
            if not named:  # for example lost+found of a volume
                continue
            raise UsageError(f"{model} cannot be read: {error.strerror}") from None
        if bundles and not named:
            raise UsageError(f"{model} is not a valid name of a model: letters, digits, '.', '_' or '-', 128 at most")
        found += bundles
    return found


def _bundles_of(model: Path) -> list[FoundBundle]:
    if (model / MANIFEST).exists():
        return [FoundBundle(model.name, None, model)]
    numbered = [version for version in model.iterdir() if _VERSION.match(version.name)]
    return [
        FoundBundle(model.name, version.name, version)
        for version in sorted(numbered, key=lambda one: int(one.name))
        if (version / MANIFEST).exists()
    ]


def bundle_fingerprint(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return names, sizes, times and inodes of a bundle's files, which change with it; empty where it is gone.

    A copy in progress changes it as well, so that a bundle that was read half-copied is read again.
    """
    try:
        with os.scandir(path) as entries:
            return tuple(
                sorted(
                    (entry.name, status.st_size, status.st_mtime_ns, status.st_ino)
                    for entry in entries
                    for status in [entry.stat()]
                )
            )
    except OSError:
        return ()


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
