"""A folder is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regnet_deploy.durable_files import exchange
from regnet_deploy.errors import UsageError
from regnet_deploy.targets import output_folder as module
from regnet_deploy.targets.output_folder import MARK, ensure_free, write_folders

FILES = {"a/b/c.txt": b"1", "d": b"2", MARK: b"{}"}


def write_folder(folder: Path, files: dict[str, bytes], *, force: bool = False) -> None:
    write_folders({folder: files}, force=force)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_is_there_and_readable_by_others(tmp_path):
    write_folder(tmp_path / "new" / "out", FILES)
    assert files_of(tmp_path / "new" / "out") == FILES
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new" / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", FILES)
    assert files_of(tmp_path / "out") == FILES


def test_what_was_made_before_is_replaced_only_when_asked(tmp_path):
    write_folder(tmp_path / "out", {**FILES, "old": b""})
    with pytest.raises(UsageError, match="--force"):
        write_folder(tmp_path / "out", FILES)
    assert "old" in files_of(tmp_path / "out")
    write_folder(tmp_path / "out", FILES, force=True)
    assert files_of(tmp_path / "out") == FILES


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "precious").write_text("1")
    with pytest.raises(UsageError, match="not made by"):
        write_folder(tmp_path, FILES, force=True)
    assert (tmp_path / "precious").read_text() == "1"


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a folder"):
            ensure_free(tmp_path / name, force=True)


@pytest.mark.parametrize("there", [False, True])
def test_a_link_stays_one_and_its_folder_is_written(tmp_path, there):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/out")
    if there:
        write_folder(tmp_path / "disk" / "out", {**FILES, "old": b""})
    write_folder(tmp_path / "out", FILES, force=there)
    assert (tmp_path / "out").is_symlink()
    assert files_of(tmp_path / "disk" / "out") == FILES
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


def test_a_full_disk_leaves_what_was_there_before(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", FILES)

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UsageError, match="No space left on device; nothing was changed"):
        write_folder(tmp_path / "out", {"other": b"1", MARK: b"{}"}, force=True)
    assert files_of(tmp_path / "out") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(params=["exchange", "renames"])
def way(request, monkeypatch):
    """With and without a system that exchanges two folders in one step."""
    if request.param == "renames":
        monkeypatch.setattr(module, "exchange", lambda first, second: False)
    return request.param


@pytest.mark.usefixtures("way")
def test_what_is_replaced_is_gone_and_nothing_is_left(tmp_path):
    write_folder(tmp_path / "out", {**FILES, "old": b""})
    write_folder(tmp_path / "out", FILES, force=True)
    assert files_of(tmp_path / "out") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_at_any_moment_a_folder_is_the_earlier_or_the_new_one(tmp_path):
    """The process dies at each of its steps; between them the folder is never away."""
    program = """
import os, signal, sys
from pathlib import Path
from regnet_deploy import durable_files
from regnet_deploy.targets import output_folder as module
moment, count = int(sys.argv[2]), 0
def dying(real):
    def call(*arguments, **more):
        global count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    return call
module.exchange = dying(module.exchange)
for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
module.write_folders({Path(sys.argv[1]): {"a/b": b"new", "c": b"new", module.MARK: b"{}"}}, force=True)
"""
    codes, moment = [], 0
    while 0 not in codes:
        moment += 1
        folder = tmp_path / str(moment) / "out"
        write_folder(folder, FILES)
        codes.append(subprocess.run([sys.executable, "-c", program, folder, str(moment)]).returncode)
        assert files_of(folder) in (FILES, {"a/b": b"new", "c": b"new", MARK: b"{}"})
    assert len(codes) > 10
    assert set(codes) == {0, -9}


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "exchange", lambda first, second: False)
    write_folder(tmp_path / "out", FILES)
    rename = os.rename

    def once(source: Path, target: Path) -> None:
        if Path(target).name == "out" and not Path(source).name.endswith("-old"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", once)
    with pytest.raises(UsageError, match="Input/output error"):
        write_folder(tmp_path / "out", {"other": b"", MARK: b""}, force=True)
    assert files_of(tmp_path / "out") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", [1, 2])
def test_an_interruption_behind_an_exchange_leaves_every_folder_as_it_was(tmp_path, monkeypatch, moment):
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        write_folder(folder, FILES)
    done = []

    def interrupted(first: Path, second: Path) -> bool:
        result = exchange(first, second)
        done.append(second)
        if len(done) == moment:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(module, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folders({folder: {"other": b"", MARK: b""} for folder in folders}, force=True)
    assert [files_of(folder) for folder in folders] == [FILES, FILES]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_an_interruption_between_two_renames_leaves_every_folder_as_it_was(tmp_path, monkeypatch, moment):
    """Ctrl-C right behind a rename: the old folder is aside, and nothing has replaced it yet."""
    monkeypatch.setattr(module, "exchange", lambda first, second: False)
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        write_folder(folder, FILES)
    rename, done = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(target)
        if len(done) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folders({folder: {"other": b"", MARK: b""} for folder in folders}, force=True)
    assert [files_of(folder) for folder in folders] == [FILES, FILES]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_of_several_folders_none_is_written_where_the_last_cannot_be(tmp_path):
    (tmp_path / "file").write_text("1")
    with pytest.raises(UsageError, match="nothing was changed"):
        write_folders({tmp_path / "a": FILES, tmp_path / "file" / "b": FILES})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_put_back_is_kept_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "exchange", lambda first, second: False)
    write_folder(tmp_path / "out", FILES)
    rename = os.rename

    def once(source: Path, target: Path) -> None:
        if Path(target).name == "out":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", once)
    with pytest.raises(UsageError, match=r"its earlier content is in .*-old now"):
        write_folder(tmp_path / "out", {"other": b"", MARK: b""}, force=True)
    (kept,) = tmp_path.iterdir()
    assert files_of(kept) == FILES
