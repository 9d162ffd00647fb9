"""The folder in which regnet-deploy keeps what it can make again, one below it for each purpose."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(purpose: str) -> Path:
    """Return the folder for a purpose: below ``$XDG_CACHE_HOME``, or ``~/.cache``. It may not exist or be writable.

    A user without a home folder, as in some containers, has none: the path is below ``/dev/null`` then, where every
    access is an OSError. Otherwise ``~`` would become a folder in the working directory.
    """
    return user_folder("XDG_CACHE_HOME", "~/.cache") / "regnet-deploy" / purpose


def user_folder(variable: str, default: str) -> Path:
    """Return a base folder of the user: that of the variable of XDG, else the default, which starts with ``~``."""
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):  # the specification of XDG: relative paths are ignored
        base = os.path.expanduser(default)
    return Path(base if os.path.isabs(base) else os.devnull)


def other_cache(variable: str, default: str) -> Path:
    """Return the folder of another program's cache: that of its variable, else the default in the caches of the user.

    Args:
        variable: of the environment, such as ``TORCH_HOME``.
        default: name below ``$XDG_CACHE_HOME`` or ``~/.cache``, such as ``torch``.
    """
    given = os.environ.get(variable) or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/{default}"
    path = os.path.expandvars(os.path.expanduser(given))
    return Path(os.devnull) / default if path.startswith("~") else Path(path)  # a user without a home folder
