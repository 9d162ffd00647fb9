"""A lock file: one process holds it at a time, and the system releases it when the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from regnet_deploy.errors import DataError


@contextlib.contextmanager
def file_lock(lock: Path, *, busy: str, unwritable: str) -> Iterator[None]:
    """Hold a lock file in a context; forked processes do not inherit the lock.

    Args:
        lock: the file; it is created if it does not exist.
        busy: error message if another process holds it.
        unwritable: error message if it cannot be created; ``{}`` in it is the reason.

    Raises:
        DataError: another process holds it, or it cannot be created.
    """
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(unwritable.format(error.strerror)) from None
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(busy) from None
        yield
    finally:
        os.close(handle)
