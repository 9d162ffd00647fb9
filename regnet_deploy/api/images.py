"""Folders of images: looked at before a network is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regnet_deploy.api.arguments import PATH, expect
from regnet_deploy.api.bundles import bundle_path
from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from regnet_deploy.checking.folder_check import FolderCheck


def check_folder(
    data: str | Path, *, bundle: str | Path | Bundle | None = None, progress: Progress | None = None
) -> FolderCheck:
    """Check a folder of images before a network is trained on it. Nothing is written into the folder.

    Every file is read and decoded once; what was read is kept in the cache folder of the user, for the next check and
    for training.

    Args:
        data: the folder, with class folders, or with ``train/``, ``val/`` and ``test/`` of such folders.
        bundle: measure too how many images a second training of this bundle uses.
        progress: receives the progress.

    Returns:
        ``findings``, each with what it means and all cases, the serious ones first; ``checked``, the result of each
        image; ``to_json()``. ``regnet_deploy.checking.page.check_page`` makes a page of it.

    Raises:
        DataError: the folder cannot be read, or its names can be understood in two ways.
        BundleError: the bundle is missing or damaged.
        MissingExtra: Pillow or ImageHash is not installed (extra ``train``).
    """
    from regnet_deploy.checking.folder_check import check_folder as check

    expect("data", data, PATH, "a folder of images")
    opened = None if bundle is None else open_bundle(bundle_path(bundle))
    return check(data, bundle=opened, progress=progress or NoProgress())
