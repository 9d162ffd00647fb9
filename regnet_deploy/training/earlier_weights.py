"""Earlier weights: a bundle whose weights a run replaces is kept in the run directory, unless the new are better."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from pathlib import Path

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.reading import MANIFEST
from regnet_deploy.bundle.training import Training
from regnet_deploy.durable_files import sync, sync_folder
from regnet_deploy.errors import DataError
from regnet_deploy.models.weights import FILE
from regnet_deploy.progress import Progress

_TEMPORARY = ".incomplete-earlier"


def is_worth_keeping(bundle: Bundle, training: Training, weights: bytes) -> bool:
    """Tell whether the weights of a bundle are kept when those of a run replace them.

    They are not if there are none, if the new ones are the same bytes, or if the new ones are better on the same
    validation images. Accuracies on other images cannot be compared.

    Args:
        bundle: before the new weights are written.
        training: of the new weights.
        weights: the new ones, as they will be stored.
    """
    if not bundle.is_trained or bundle.files[FILE].sha256 == hashlib.sha256(weights).hexdigest():
        return False
    before = bundle.manifest.training
    return before is None or not _same_images(before, training) or training.best.val_top1 <= before.best.val_top1


def keep_earlier(bundle: Bundle, directory: Path, progress: Progress) -> Path:
    """Copy a bundle into the run directory, by hard links where the file system has them, and return the copy.

    The files of a bundle are never changed in place, so a link stays what it is. The copy is a bundle with all that
    was made with its weights: every command opens it, and moved to the old place it is as before.

    Raises:
        DataError: it cannot be written.
    """
    temporary = directory / _TEMPORARY
    try:
        kept = _free_name(bundle, directory)
        if not kept.exists():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name in [*(stored.name for stored in bundle.files.values()), MANIFEST]:
                _link_or_copy(bundle.path / name, temporary / name)
            sync_folder(temporary)
            temporary.rename(kept)
            sync_folder(directory)
    except OSError as error:
        raise DataError(
            f"cannot keep the earlier weights in {directory}: {error.strerror}; the bundle is unchanged: free some "
            "space, then repeat the command"
        ) from None
    before = bundle.manifest.training
    reached = f" ({before.best.val_top1:.2%} of its validation images)" if before else ""
    progress.message(
        f"the earlier weights{reached} are kept, with all that was made with them, as the bundle {kept}: to return to "
        f"them, move it to {bundle.path}"
    )
    return kept


def _same_images(before: Training, after: Training) -> bool:
    return (before.data.digest, before.data.split) == (after.data.digest, after.data.split)


def _free_name(bundle: Bundle, directory: Path) -> Path:
    """Return the folder of the copy: a new one, or the one that has this very bundle already."""
    manifest = (bundle.path / MANIFEST).read_bytes()
    for number in itertools.count(1):
        name = f"earlier-{bundle.files[FILE].sha256[:12]}{f'-{number}' if number > 1 else ''}"
        kept = directory / name
        if not kept.exists() or (kept / MANIFEST).read_bytes() == manifest:
            return kept
    raise AssertionError("unreachable")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            sync(file.fileno())
