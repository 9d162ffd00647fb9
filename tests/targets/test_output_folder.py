"""A folder is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


def test_a_file_and_a_link_are_not_replaced(tmp_path):
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a folder"):
            ensure_free(tmp_path / name, force=True)


def test_a_full_disk_leaves_what_was_there_before(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", FILES)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left on device; nothing was changed"):
        write_folder(tmp_path / "out", {"other": b"", MARK: b""}, force=True)
    assert files_of(tmp_path / "out") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_an_interruption_between_two_renames_leaves_every_folder_as_it_was(tmp_path, monkeypatch, moment):
    """Ctrl-C right behind a rename: the old folder is aside, and nothing has replaced it yet."""
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
