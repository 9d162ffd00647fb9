"""The folder in which regnet-deploy keeps what it cannot make again without effort, such as measurements."""

from __future__ import annotations

from pathlib import Path

from regnet_deploy.user_cache import user_folder


def data_folder() -> Path:
    """Return the folder below ``$XDG_DATA_HOME`` or ``~/.local/share``. It may not exist or be writable.

    For a user without a home folder the path is below ``/dev/null``, as that of a cache.
    """
    return user_folder("XDG_DATA_HOME", "~/.local/share") / "regnet-deploy"
