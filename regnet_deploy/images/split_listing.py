"""Images by split and class as they lie in a folder, whether or not a network can be trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regnet_deploy.errors import DataError
from regnet_deploy.images.folder_files import entries, image_files
from regnet_deploy.images.image_source import FolderSource, ImageSource
from regnet_deploy.images.layout import find_layout, split_of
from regnet_deploy.images.listing import absolute_folder, beside_splits, class_files, spelled_alike
from regnet_deploy.images.open_table import open_table
from regnet_deploy.progress import NoProgress, Progress

#: Class of images that lie in a split without class folders.
NO_CLASS = ""


@dataclass(frozen=True)
class SplitListing:
    """Images by split and class, before any of them is opened.

    Attributes:
        source: all images, split by split.
        splits: ``train``, and ``val`` and ``test`` where they exist -> class -> names of its images, sorted. Images to
            test on that are not in class folders have the class :data:`NO_CLASS`.
        folders: split -> its folder, relative to the root, or its name in a table; "" is the root itself.
        left_out: files, and folders with ``/`` at their end, that are not used -> reason.
        notes: what to say of the reading of the folder, a sentence each.
    """

    source: ImageSource
    splits: Mapping[str, Mapping[str, tuple[str, ...]]]
    folders: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """Name of an image -> its class, for those that have one."""
        return {
            name: label
            for classes in self.splits.values()
            for label, names in classes.items()
            if label != NO_CLASS
            for name in names
        }


def list_splits(root: str | Path, progress: Progress = NoProgress()) -> SplitListing:
    """Find the splits of a folder, their class folders, and all files below them; or the splits of a table.

    Splits need not have the same classes. A class that is spelled in another form of Unicode than in ``train`` has the
    name that it has there.

    Args:
        root: the data set, as :func:`regnet_deploy.images.open_table.open_table` takes it.
        progress: receives what takes long.

    Raises:
        DataError: no such folder, no class folders, names that can be read in two ways, or a folder or table that
            cannot be read.
    """
    table = open_table(root, progress)
    if table is not None:
        splits_of_table = {"train": table.train} | {
            split: classes for split, classes in table.splits.items() if classes
        }
        return SplitListing(table.source, splits_of_table, table.folders, table.left_out, table.notes)
    folder = absolute_folder(root)
    layout = find_layout(folder, entries(folder).folders)
    test = layout.test or next((name for name in layout.unused if split_of(name) == "test"), None)
    folders = {"train": layout.train, "val": layout.val, "test": test}
    found = {split: below for split, below in folders.items() if below is not None}
    splits: dict[str, dict[str, tuple[str, ...]]] = {}
    left_out = beside_splits(folder, layout) if layout.train else {}
    for split, below in found.items():
        left_out.pop(f"{below}/", None)
        if split == "test" and not entries(folder / below).folders:
            inside = image_files(folder / below)
            splits[split] = {NO_CLASS: tuple(f"{below}/{name}" for name in inside.files)}
            left_out |= {f"{below}/{name}": reason for name, reason in inside.left_out.items()}
        else:
            classes, left_out_here = class_files(folder, below)
            splits[split] = spelled_alike(classes, splits["train"]) if split != "train" else classes
            left_out |= left_out_here
    names = tuple(name for classes in splits.values() for files in classes.values() for name in files)
    if not names:
        raise DataError(f"{folder} has class folders and no files in them: add images")
    return SplitListing(FolderSource(folder, names), splits, found, left_out, layout.notes)
