"""Files below a folder of images: which are read, and which files and folders are left out, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from regnet_deploy.errors import DataError
from regnet_deploy.images.decode import FORMATS, SUFFIXES, is_image, suffixes_of
from regnet_deploy.images.image_source import read_head

#: Folders, in lower case, that systems put beside the files of their users -> what they are.
_SYSTEM_FOLDERS = {
    "__macosx": "made by macOS in archives, no images",
    "@eadir": "thumbnails of a NAS",
    "@__thumb": "thumbnails of a NAS",
    "@recycle": "recycle bin of a NAS",
    "#recycle": "recycle bin of a NAS",
    "#snapshot": "snapshots of a NAS",
    "@recently-snapshot": "snapshots of a NAS",
    "$recycle.bin": "recycle bin of Windows",
    "system volume information": "of Windows, no images",
    "lost+found": "of the file system, no images",
}
#: Files, in lower case, that systems put there; they are passed over in silence, as hidden ones are.
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
#: The manifest of a bundle, and what only a manifest contains.
_MANIFEST, _MANIFEST_KEYS = "bundle.json", (b'"parts"', b'"schema"')
#: Start of the names of the image check's caches, which are in run directories of ``train``.
_CACHE = "checked-"


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder.

    Attributes:
        files: paths relative to the root, with ``/``, in no order.
        left_out: files and folders (with ``/`` at their end) that are not used -> reason.
    """

    files: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entries:
    """What is directly in a folder.

    Attributes:
        folders: names of the folders that can hold images, sorted.
        files: names of the files, sorted.
        left_out: name of a file or a folder (with ``/``) -> reason.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    left_out: Mapping[str, str]


def entries(folder: str | Path) -> Entries:
    """Return what is in a folder, without hidden entries and what systems or this program put there.

    Links to folders and files are followed.

    Raises:
        DataError: the folder cannot be read.
    """
    folders, files, left_out = [], [], dict[str, str]()
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir():
                    reason = _folder_reason(entry)
                    if reason is None:
                        folders.append(entry.name)
                    elif reason:
                        left_out[f"{entry.name}/"] = reason
                elif not entry.name.startswith("."):
                    if entry.name.lower() not in _SYSTEM_FILES:
                        files.append(entry.name)
                elif not entry.name.startswith("._") and _suffix(entry.name) in SUFFIXES:
                    left_out[entry.name] = "hidden: its name starts with a dot"
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None
    return Entries(tuple(sorted(folders)), tuple(sorted(files)), left_out)


def files_below(root: str | Path, below: str = "") -> FolderFiles:
    """Return the files in the folder ``below`` of ``root`` and in its subfolders.

    Links to folders are followed, but not to a folder that contains them.

    Raises:
        DataError: a folder cannot be read.
    """
    found = FolderFiles()
    above_all = tuple(_identity(str(parent)) for parent in Path(os.path.realpath(os.path.join(root, below))).parents)
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(below, above_all)]
    while waiting:
        name, above = waiting.pop()
        path = os.path.join(root, name)
        identity = _identity(path)
        if identity in above:
            found.left_out[f"{name}/"] = "a link to a folder that contains it"
            continue
        inside = entries(path)
        prefix = f"{name}/" if name else ""
        found.files.extend(prefix + file for file in inside.files)
        found.left_out.update((prefix + each, reason) for each, reason in inside.left_out.items())
        waiting.extend((prefix + folder, (*above, identity)) for folder in reversed(inside.folders))
    return found


def _identity(path: str) -> tuple[int, int]:
    """Return what identifies a folder, whatever path leads to it."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return status.st_dev, status.st_ino


def image_files(folder: str | Path, formats: tuple[str, ...] = FORMATS) -> FolderFiles:
    """Return the images in a folder and its subfolders, sorted.

    A file is an image if its name has the suffix of one, or if its content is one of these formats.

    Raises:
        DataError: a folder cannot be read.
    """
    found, suffixes = files_below(folder), suffixes_of(formats)
    files = []
    for name in sorted(found.files):
        reason = None if _suffix(name) in suffixes else _reason(os.path.join(folder, name), formats)
        if reason is None:
            files.append(name)
        else:
            found.left_out[name] = reason
    return FolderFiles(files, found.left_out)


def _reason(path: str, formats: tuple[str, ...]) -> str | None:
    """Return why a file is no image; None if it is one."""
    if not os.path.isfile(path):  # opening a named pipe would wait for a writer
        return "not a file"
    try:
        with open(path, "rb") as file:
            return None if is_image(file, formats) else f"not an image in a format that is read ({', '.join(formats)})"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _folder_reason(entry: os.DirEntry[str]) -> str | None:
    """Return why a folder is left out; "" where that need not be said, None where it is not left out."""
    name = entry.name.lower()
    if name.startswith("."):
        return ""
    if name in _SYSTEM_FOLDERS:
        return _SYSTEM_FOLDERS[name]
    manifest = os.path.join(entry.path, _MANIFEST)
    if os.path.isfile(manifest) and all(key in read_head(manifest, 2**24) for key in _MANIFEST_KEYS):
        return "a bundle of regnet-deploy"
    if name.endswith(".training") and _is_run_directory(entry.path):
        return "a run directory of regnet-deploy train"
    return None


def _is_run_directory(path: str) -> bool:
    try:
        return any(name.startswith(_CACHE) or name == ".lock" for name in os.listdir(path))
    except OSError:
        return False
