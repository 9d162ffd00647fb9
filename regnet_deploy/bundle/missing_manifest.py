"""What is said of a folder with files of a bundle that has neither a manifest nor a copy of one."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

_WEIGHTS = re.compile(r"weights-([0-9a-f]{12})\.safetensors\Z")


def describe_missing_manifest(folder: Path) -> str:
    """Return what is missing and what can be done, with the name of the weights where they are intact."""
    gone = (
        f"{folder} has files of a bundle, but no bundle.json and no copy of it (bundle-*.json): they are deleted, or "
        "not copied yet; restore one from a backup"
    )
    weights = _intact_weights(folder)
    if weights is None:
        return f"{gone}, or make another bundle with `regnet-deploy select --gflops 4 -o FOLDER`"
    # Weights of a bundle take RGB, also those that were imported; what is not in their shapes has to be said.
    return (
        f"{gone}, or make a new bundle of {weights.name}, which is intact: `regnet-deploy import "
        f"{shlex.quote(str(weights))} --channels rgb --resolution R --labels FILE -o OTHER`, with the pixels R of the "
        "training and the class names in their order; where R is below 96, also --resize R --stem-stride 1"
    )


def _intact_weights(folder: Path) -> Path | None:
    """Return the latest file of weights in a folder whose content is that of its name."""
    try:
        files = [path for path in folder.iterdir() if _WEIGHTS.match(path.name) and path.is_file()]
        for path in sorted(files, key=lambda one: one.stat().st_mtime_ns, reverse=True):
            if path.stem == f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}":
                return path
    except OSError:  # they cannot be read: they are of no use
        return None
    return None
