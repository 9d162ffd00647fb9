"""What is wrong with the files of a bundle, and what an interrupted command left among them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from regnet_deploy.bundle.reading import MANIFEST, STORED_NAME, Bundle, copy_name, read_file, serialize
from regnet_deploy.durable_files import TEMPORARY
from regnet_deploy.errors import BundleError


def find_damage(bundle: Bundle) -> list[str]:
    """Return one line for each file that is missing, damaged or not in the manifest."""
    problems = []
    for logical in sorted(bundle.files):
        try:
            bundle.read(logical)
        except BundleError as error:
            problems.append(str(error))
    copy = damaged_copy(bundle)
    known = {stored.name for stored in bundle.files.values()} | {MANIFEST}
    for entry in sorted(bundle.path.iterdir()):
        if entry.name in known or entry.name.startswith(TEMPORARY) or _is_whole(entry):
            continue
        if entry == copy:
            problems.append(f"{entry} is damaged: `regnet-deploy verify{bundle.argument} --repair` writes it again")
        else:
            problems.append(f"{entry} is not part of the bundle: delete it or keep it elsewhere")
    return problems


def damaged_copy(bundle: Bundle) -> Path | None:
    """Return the path of the copy of the manifest where it is damaged; bundles of early versions have none."""
    copy = bundle.path / copy_name(serialize(bundle.parts, bundle.files))
    return copy if os.path.lexists(copy) and not _is_whole(copy) else None


def find_leftovers(bundle: Bundle) -> list[Path]:
    """Return the files that a command which was interrupted left in the folder; the next that writes deletes them."""
    known = {stored.name for stored in bundle.files.values()} | {copy_name(serialize(bundle.parts, bundle.files))}
    entries = [entry for entry in sorted(bundle.path.iterdir()) if entry.name not in known]
    return [entry for entry in entries if entry.name.startswith(TEMPORARY) or _is_whole(entry)]


def _is_whole(path: Path) -> bool:
    """Return whether a file has the name of a stored file, and content that belongs to the name."""
    name = STORED_NAME.match(path.name)
    try:
        return name is not None and hashlib.sha256(read_file(path)).hexdigest().startswith(name[1])
    except OSError:
        return False
