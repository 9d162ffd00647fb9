"""Restores a damaged manifest from its copy, or from its own content where that is intact."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from regnet_deploy.bundle.damage import damaged_copy
from regnet_deploy.bundle.reading import (
    MANIFEST,
    Bundle,
    StoredFile,
    find_copies,
    manifest_content,
    open_bundle,
    parse_bundle,
    read_file,
    serialize,
)
from regnet_deploy.bundle.writing import commit, lock_folder, writable
from regnet_deploy.errors import BundleError, DamagedManifest


def repair_bundle(path: str | Path) -> str | None:
    """Restore the manifest of a bundle if it is damaged or missing.

    It is restored from its own content where only its layout was changed (such as line ends), else from the copy whose
    files are in the best condition and which begins as what is left of it does. Without a copy, as in bundles of early
    versions, a manifest that was edited is taken as it is if it can be read and its files are intact, and of one that
    is cut off the beginning is kept.

    Args:
        path: folder of the bundle.

    Returns:
        What was damaged and what was done, in words; None: the manifest and its copy are intact.

    Raises:
        DamagedManifest: there is nothing to restore it from; nothing was changed.
        BundleError: there is no bundle, it is of a later version, or it cannot be written.
    """
    folder = Path(path)
    try:
        bundle = open_bundle(folder)
    except DamagedManifest as error:
        with writable(folder), lock_folder(folder):
            with contextlib.suppress(DamagedManifest):  # as it is, unless another command has replaced it meanwhile
                open_bundle(folder)
                return None
            restored, how = _best_source(folder, error)
            moved = _move_folder(folder / MANIFEST)
            _write(restored)
        return f"{error.what}; {how}{moved}"
    copy = damaged_copy(bundle)
    if copy is not None:
        with writable(folder), lock_folder(folder):
            _write(open_bundle(folder))
        return f"{copy} was damaged, and is written again"
    return None


def _move_folder(path: Path) -> str:
    """Remove an empty folder in the place of the manifest, or rename one with files; return how that is said.

    A file cannot replace a folder by a rename.
    """
    if path.is_symlink() or not path.is_dir():  # a rename replaces a link and a file
        return ""
    if not any(path.iterdir()):
        path.rmdir()
        return "; the folder was empty and is removed"
    aside = path.with_name(f"{MANIFEST}.folder")
    if os.path.lexists(aside):
        raise BundleError(f"{path} is a folder with files, and so is {aside}: move both away, then run this again")
    path.rename(aside)
    return f"; the folder with its files is {aside} now: delete it or keep it elsewhere"


def _write(bundle: Bundle) -> None:
    commit(bundle.path, bundle.parts, bundle.files, {}, sweep=())  # no file is deleted: another manifest may name it


def _best_source(folder: Path, error: DamagedManifest) -> tuple[Bundle, str]:
    """Return what a manifest is restored from, and how that is said.

    Raises:
        DamagedManifest: there is nothing.
    """
    edited = _own_content(folder)
    if edited is not None and edited[1]:
        return edited[0], "its content is intact, and it is written again in its own layout"
    rest = _rest(folder)
    copies: list[tuple[int, int, Bundle, Path]] = []
    for copy in find_copies(folder):
        with contextlib.suppress(OSError, BundleError):
            raw = read_file(copy)
            bundle = parse_bundle(folder, raw)
            copies.append((_damaged_files(bundle), -_common(raw, rest), bundle, copy))
    if copies:
        # A command that died before it replaced the manifest has left a copy of a manifest that never was in place.
        damaged, _, bundle, copy = min(copies, key=lambda one: one[:2])  # the latest of equal ones
        files = f"; {damaged} of its files are damaged or missing" if damaged else ""
        return bundle, f"restored from {copy.name}{files}"
    if edited is not None and not _damaged_files(edited[0]):
        return edited[0], "there is no copy of it; it can be read, its files are intact, and it is taken as it is"
    beginning = _beginning(folder)
    if beginning is not None:
        bundle, names = beginning
        damaged = _damaged_files(bundle)
        files = f"; {damaged} of its files are damaged or missing" if damaged else ""
        return bundle, f"there is no copy of it; its beginning is kept, with the parts {', '.join(names)}{files}"
    kept = sorted(name for name in os.listdir(folder) if name.startswith("weights-"))
    weights = f"; {', '.join(kept)} stays as it is" if kept else ""
    raise DamagedManifest(
        f"{error.what} and cannot be repaired, because there is no intact copy of it{weights}",
        f"restore {MANIFEST} from a backup, or make another bundle with `regnet-deploy select -o FOLDER`",
    )


def _rest(folder: Path) -> bytes:
    """Return what is left of a manifest."""
    try:
        return read_file(folder / MANIFEST)
    except OSError:
        return b""


def _common(a: bytes, b: bytes) -> int:
    """Return how many bytes are the same at the beginning of both."""
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _own_content(folder: Path) -> tuple[Bundle, bool] | None:
    """Return the bundle of a manifest whose bytes are not as they were written, and whether its content is."""
    try:
        parts, files, digest = manifest_content(folder, _rest(folder))
        bundle = parse_bundle(folder, serialize(parts, files))
    except BundleError:
        return None
    return bundle, bundle.digest == digest


def _beginning(folder: Path) -> tuple[Bundle, list[str]] | None:
    """Return the bundle of the files and the parts before the place where a manifest is cut off, and these parts.

    The files and the first parts, in the order of the alphabet, come first. Without the network and its preprocessing,
    a bundle cannot be used.
    """
    try:
        text = _rest(folder).decode("utf-8", "ignore")
        decoder, found = json.JSONDecoder(), re.match(r'\{\s*"files": ', text)
        if found is None:
            return None
        table, end = decoder.raw_decode(text, found.end())
        files = {logical: StoredFile(**entry) for logical, entry in table.items()}
        parts: dict[str, Any] = {}
        found = re.compile(r',\s*"parts": \{').match(text, end)
        end = found.end() if found else len(text)
        while found := re.compile(r'\s*,?\s*"(\w+)": ').match(text, end):
            try:
                parts[found[1]], end = decoder.raw_decode(text, found.end())
            except ValueError:
                break
        if not {"architecture", "preprocessing"} <= parts.keys():
            return None
        return parse_bundle(folder, serialize(parts, files)), sorted(parts)
    except (BundleError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _damaged_files(bundle: Bundle) -> int:
    return sum(not _is_intact(bundle, logical) for logical in bundle.files)


def _is_intact(bundle: Bundle, logical: str) -> bool:
    try:
        bundle.read(logical)
    except BundleError:
        return False
    return True
