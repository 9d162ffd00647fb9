"""One process at a time: a lock that goes with the process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from regnet_deploy.errors import DataError


@contextlib.contextmanager
def file_lock(lock: Path, *, busy: str, unwritable: str) -> Iterator[None]:
    """Hold a lock file while something is under way; forked processes do not inherit the hold.

    Args:
        lock: the file, made where it is not there.
        busy: what to say if another process holds it.
        unwritable: what to say if it cannot be made; ``{}`` in it is the reason.

    Raises:
        DataError: either.
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
