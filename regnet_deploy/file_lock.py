"""A lock file: one process holds it at a time, and the system releases it when the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from regnet_deploy.durable_files import NO_LOCKS
from regnet_deploy.errors import DataError


@contextlib.contextmanager
def file_lock(lock: Path, *, busy: str, unwritable: str) -> Iterator[None]:
    """Hold a lock file in a context; forked processes do not inherit the lock.

    On a file system without locks nothing is locked: the work goes on, and two processes do not notice each other.

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
        except BlockingIOError:
            raise DataError(busy) from None
        except OSError as error:
            if error.errno == errno.EACCES:  # as some systems say that it is held
                raise DataError(busy) from None
            if error.errno not in NO_LOCKS:
                raise DataError(unwritable.format(error.strerror)) from None
        yield
    finally:
        os.close(handle)
