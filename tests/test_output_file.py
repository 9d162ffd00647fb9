"""Files that a user names are written through links, and nothing else than a regular file is replaced."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.output_file import PAGE_SUFFIXES, check_output_file, staged_files, write_output_file


def test_a_new_file_has_the_permissions_of_a_new_file(tmp_path: Path):
    (tmp_path / "plain").write_bytes(b"")
    write_output_file(tmp_path / "a.html", b"page")
    assert (tmp_path / "a.html").read_bytes() == b"page"
    assert (tmp_path / "a.html").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["a.html", "plain"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_the_file_keeps_its_permissions(tmp_path: Path, there: bool):
    (tmp_path / "site").mkdir()
    target = tmp_path / "site" / "card.html"
    if there:
        target.write_bytes(b"earlier")
        target.chmod(0o640)
    (tmp_path / "second").symlink_to("site/card.html")
    (tmp_path / "a.html").symlink_to("second")
    path = check_output_file(tmp_path / "a.html", PAGE_SUFFIXES, "a page")
    write_output_file(path, b"page")
    assert (tmp_path / "a.html").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert target.read_bytes() == b"page"
    assert os.listdir(tmp_path / "site") == ["card.html"]
    if there:
        assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("through", ["itself", "a link"])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder"])
def test_what_is_not_a_regular_file_is_refused_and_stays(tmp_path: Path, kind: str, through: str):
    path = tmp_path / "a.html"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a folder":
            path.mkdir()
        else:
            server.bind(str(path))
        given = path if through == "itself" else tmp_path / "link.html"
        if given != path:
            given.symlink_to(path)
        before = path.stat()
        for use in (lambda: check_output_file(given, PAGE_SUFFIXES, "a page"), lambda: write_output_file(given, b"x")):
            with pytest.raises(UsageError, match=f"{given} (is|leads to) {kind}: give the name of a file"):
                use()
        assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)


def test_a_device_is_refused(tmp_path: Path):
    (tmp_path / "a.html").symlink_to("/dev/null")
    with pytest.raises(UsageError, match=r"a\.html leads to a device"):
        check_output_file(tmp_path / "a.html", PAGE_SUFFIXES, "a page")


@pytest.mark.parametrize("name", ["card.pdf", "card", "card.html.gz", "html"])
def test_another_format_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UsageError, match=rf"a page is written as \.html or \.htm, got {name}: give a name"):
        check_output_file(tmp_path / name, PAGE_SUFFIXES, "a page")


def test_links_that_lead_nowhere_are_one_line(tmp_path: Path):
    (tmp_path / "a.html").symlink_to("b.html")
    (tmp_path / "b.html").symlink_to("a.html")
    with pytest.raises(UsageError, match="Too many levels of symbolic links"):
        check_output_file(tmp_path / "a.html", PAGE_SUFFIXES, "a page")
    (tmp_path / "c.html").symlink_to("no/such/folder/c.html")
    with pytest.raises(UsageError, match="whose folder does not exist"):
        write_output_file(tmp_path / "c.html", b"page")


@pytest.mark.parametrize("name", ["a" * 300 + ".html", "b" * 300 + "/a.html", "link.html"])
def test_a_name_that_is_too_long_is_one_line(tmp_path: Path, name: str):
    (tmp_path / "link.html").symlink_to("c" * 255 + "/" + "d" * 256 + "/a.html")
    for use in (
        lambda: check_output_file(tmp_path / name, PAGE_SUFFIXES, "a page"),
        lambda: write_output_file(tmp_path / name, b"x"),
    ):
        with pytest.raises(UsageError, match=r"File name too long; give another file|whose folder does not exist"):
            use()


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may read any

    monkeypatch.setattr("pathlib.Path.stat", denied)
    for use in (
        lambda: check_output_file(tmp_path / "a.html", PAGE_SUFFIXES, "a page"),
        lambda: write_output_file(tmp_path / "a.html", b"x"),
    ):
        with pytest.raises(UsageError, match=r"cannot write .*a\.html: Permission denied; give another file"):
            use()


def test_a_failure_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.html").write_bytes(b"earlier")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regnet_deploy.durable_files.os.write", full)
    with pytest.raises(UsageError, match=r"cannot write .*a\.html: No space left on device"):
        write_output_file(tmp_path / "a.html", b"page")
    monkeypatch.undo()
    assert (tmp_path / "a.html").read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["a.html"]


def test_a_file_that_is_closed_to_writing_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.html").write_bytes(b"earlier")
    monkeypatch.setattr("regnet_deploy.output_file.os.access", lambda path, mode: False)  # root may write any
    with pytest.raises(UsageError, match="Permission denied"):
        write_output_file(tmp_path / "a.html", b"page")
    assert (tmp_path / "a.html").read_bytes() == b"earlier"


def test_staged_files_get_their_names_together_and_the_first_one_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b").write_bytes(b"earlier")
    (tmp_path / "b").chmod(0o640)
    renamed: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (renamed.append(Path(new).name), replace(old, new)))
    with staged_files() as stage:
        assert stage(tmp_path / "a", b"first").read_bytes() == b"first"
        stage(tmp_path / "b", b"second")
        assert (tmp_path / "b").read_bytes() == b"earlier"
        assert not (tmp_path / "a").exists()
    assert renamed == ["b", "a"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"first", "b": b"second"}
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("fault", ["in the block", "a name"])
def test_staged_files_leave_nothing_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str):
    def fail_for_first(old: str | Path, new: str | Path) -> None:
        if Path(new).name == "a":
            raise OSError(28, "No space left on device")
        Path(old).rename(new)

    def write() -> None:
        with staged_files() as stage:
            stage(tmp_path / "a", b"first")
            stage(tmp_path / "b", b"second")
            if fault == "in the block":
                raise UsageError("no")

    monkeypatch.setattr(os, "replace", fail_for_first)
    with pytest.raises(UsageError, match="cannot write .*: No space left" if fault == "a name" else "no"):
        write()
    assert os.listdir(tmp_path) == []
