"""A lock is held by one process; a file system without locks stops nobody."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.file_lock import file_lock

HOLDING = """
import sys
from pathlib import Path
from regnet_deploy.file_lock import file_lock
with file_lock(Path(sys.argv[1]), busy="busy", unwritable="{}"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_of_another_process_is_busy_until_that_ends(tmp_path: Path):
    path = tmp_path / "lock"
    words = [sys.executable, "-c", HOLDING, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="it is busy"), file_lock(path, busy="it is busy", unwritable="{}"):
            pass
        process.kill()
    with file_lock(path, busy="it is busy", unwritable="{}"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_said_to_be_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    def fails(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("regnet_deploy.file_lock.fcntl.lockf", fails)
    entered = []
    with file_lock(tmp_path / "lock", busy="busy", unwritable="{}"):
        entered.append(1)
    assert entered


def test_a_defect_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("regnet_deploy.file_lock.fcntl.lockf", fails)
    lock = file_lock(tmp_path / "lock", busy="busy", unwritable="cannot lock: {}")
    with pytest.raises(DataError, match="cannot lock: Input/output error"), lock:
        pass
