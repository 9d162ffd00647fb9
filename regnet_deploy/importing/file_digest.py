"""The digest of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_of(file: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file as hexadecimal digits.

    Args:
        file: which is read in pieces.
        algorithm: a name of ``hashlib``.
    """
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()
