"""The folder in which regnet-deploy keeps what it can make again, one below it for each purpose."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(purpose: str) -> Path:
    """Return the folder for a purpose: below ``$XDG_CACHE_HOME``, or ``~/.cache``. It may not exist or be writable."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "regnet-deploy" / purpose
