"""Shards on a server are downloaded once, by a real server on loopback; nothing is asked for that nobody named."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images import remote_files
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.open_table import open_table
from regnet_deploy.user_cache import cache_folder


def shard(name: str, size: int = 1000) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for label in ("cat", "dog"):
            for suffix, content in (("png", f"{name} {label}".encode().ljust(size, b".")), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{label}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


class Server:
    """Files by path, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ranges, self.tags, self.cut = True, True, 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(send=False)

            def do_GET(self) -> None:
                self.answer(send=True)

            def answer(self, send: bool) -> None:
                wanted = self.headers.get("Range")
                path = self.path.partition("?")[0]
                owner.requests.append((self.command, path, wanted))
                if path not in owner.files:
                    self.send_error(404)
                    return
                content = owner.files[path]
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if owner.ranges else None
                if found:
                    first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                    content = content[first : last + 1]
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                if owner.tags:
                    self.send_header("ETag", tag)
                self.end_headers()
                if send:
                    if owner.cut and not found:
                        content, owner.cut = content[: owner.cut], 0
                        self.close_connection = True
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def gets(self) -> list[tuple[str, str | None]]:
        return [(path, wanted) for method, path, wanted in self.requests if method == "GET"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_files, "_PAUSE_S", 0.0)
    monkeypatch.setattr(remote_files, "_ASKED_S", 0.0)
    server = Server()
    server.files = {f"/d/{name}.tar": shard(name) for name in ("train-0", "train-1", "val-0", "x-0")}
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def test_shards_are_downloaded_once_and_this_is_said(server: Server, recorded_progress) -> None:
    value = f"{server.url}/d/train-{{0..1}}.tar::{server.url}/d/val-0.tar"
    found = list_images(value, progress=recorded_progress)
    assert found.train == {label: tuple(f"train-{i}.tar/{label}.png" for i in (0, 1)) for label in ("cat", "dog")}
    assert found.origin("val") == "val of the tar shards"
    assert found.source.read(0).startswith(b"train-0 cat.")
    host = server.url.removeprefix("http://")
    assert f"downloading 3 files, 0.0 MB, from {host} to {cache_folder('downloads')}" in recorded_progress.text
    assert len(server.gets()) == 3
    again = list_images(Path(value))  # as the command line gives it, with one slash of two
    assert (again.source.names, len(server.gets())) == (found.source.names, 3)
    assert list_images(found.root).source.names == found.source.names  # a run remembers it by this, without the server


def test_a_server_is_not_asked_again_and_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_ASKED_S", 600)
    url = f"{server.url}/d/x-0.tar"
    list_images(url)
    asked = len(server.requests)
    list_images(url)
    assert len(server.requests) == asked


def test_a_changed_shard_is_downloaded_again(server: Server, recorded_progress) -> None:
    url = f"{server.url}/d/x-0.tar"
    list_images(url)
    server.files["/d/x-0.tar"] = shard("other")
    assert list_images(url, progress=recorded_progress).source.read(0).startswith(b"other cat")
    assert f"{url} has changed on the server" in recorded_progress.text


def test_a_local_file_that_was_altered_is_downloaded_again(server: Server) -> None:
    url = f"{server.url}/d/x-0.tar"
    found = list_images(url)
    file = found.root / "x-0.tar"
    os.utime(file, ns=(1, 1))
    list_images(url)
    assert len(server.gets()) == 1  # its digest is that of the download
    file.write_bytes(file.read_bytes().replace(b"x-0 cat", b"x-0 CAT"))
    assert list_images(url).source.read(0).startswith(b"x-0 cat")
    assert len(server.gets()) == 2


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("tags", [True, False])
def test_a_transfer_that_was_cut_continues_where_it_stopped(
    server: Server, ranges: bool, tags: bool, recorded_progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "_CHUNK", 2**16)
    server.files["/d/x-0.tar"] = shard("x-0", 2**21)
    server.ranges, server.tags, server.cut = ranges, tags, 2**21
    found = list_images(f"{server.url}/d/x-0.tar", progress=recorded_progress)
    assert "trying again" in recorded_progress.text
    assert (found.root / "x-0.tar").read_bytes() == server.files["/d/x-0.tar"]
    assert sorted(path.name for path in found.root.iterdir()) == [".lock", "x-0.tar", "x-0.tar.download.json"]
    starts = [wanted for _, wanted in server.gets()]
    assert any(re.match(r"bytes=[1-9]", wanted or "") for wanted in starts) == tags


def test_processes_of_one_training_wait_for_the_one_that_downloads(server: Server, recorded_progress) -> None:
    url = f"{server.url}/d/x-0.tar"
    folder = list_images(url).root
    with (folder / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN))
        timer.start()
        assert len(list_images(url, progress=recorded_progress).source.names) == 2
        timer.join()
    assert "waiting for another process, which downloads to" in recorded_progress.text


def test_a_part_of_another_version_is_dropped(server: Server) -> None:
    url = f"{server.url}/d/x-0.tar"
    folder = list_images(url).root
    (folder / "x-0.tar").rename(folder / "x-0.tar.part")
    with (folder / "x-0.tar.part").open("r+b") as file:
        file.truncate(700)
    (folder / "x-0.tar.part.download.json").write_text('{"ETag": "\\"of another\\""}')
    assert list_images(url).source.read(0).startswith(b"x-0 cat")


def test_what_was_downloaded_is_used_where_the_server_is_gone(server: Server, recorded_progress) -> None:
    url = f"{server.url}/d/x-0.tar"
    names = list_images(url).source.names
    server.files.clear()
    assert list_images(url, progress=recorded_progress).source.names == names
    assert f"{url} cannot be reached: the file that was downloaded is used" in recorded_progress.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}/d/gone.tar", "/d/gone.tar cannot be read: 404"),
        ("{}/d/gone.tar?signature=secret", "/d/gone.tar cannot be read: 404"),
        ("http://127.0.0.1:9/x.tar", "http://127.0.0.1:9/x.tar cannot be read: Cannot connect to host 127.0.0.1:9"),
        ("{}/d/", "names no file of images: give those on the server, as https://host/shards-{000..009}.tar"),
        ("{}/d/x-0.tar::local.tar", "local.tar is not on a server, as others of this list are"),
        ("{}/../x-0.tar", "has .. in its path"),
        ("http://[bad/x.tar", "http://[bad/x.tar is no address: Invalid IPv6 URL"),
        ("http://host/\udcff.tar", "is no address: 'utf-8' codec can't encode"),
        ("http://[::1]:9/x.tar", "http://[::1]:9/x.tar cannot be read: "),
        ("file:///data/x.tar", "/data/x.tar is not on a server: give the path alone"),
        ("{}/d/x-0.tar?key=1::{}/d/x-0.tar?key=2", "differ in what stands behind ? alone"),
        ("{}/d/x-0.tar::{}/d/x.parquet", "and others of this list are .tar and .parquet files: give one kind"),
        ("nosuch://host/x.tar", "nosuch://host/x.tar cannot be read: Protocol not known: nosuch"),
    ],
)
def test_each_fault_has_its_line(server: Server, value: str, message: str) -> None:
    with pytest.raises((DataError, UsageError)) as error:
        list_images(value.replace("{}", server.url))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_files_in_deep_folders_are_not_lost(server: Server) -> None:
    server.files = {
        "/train/a/b/c/d/0.tar": shard("one"),
        "/train/1.tar": shard("two"),
        "/val/cache-0.tar": shard("val"),
    }
    found = list_images("::".join(f"{server.url}{path}" for path in server.files))
    assert [len(names) for names in found.train.values()] == [2, 2]
    assert found.val == {"cat": ("val/cache-0.tar/cat.png",), "dog": ("val/cache-0.tar/dog.png",)}


@pytest.mark.parametrize(
    "value", ["https://h/x-{0..1}.tar::s3://b/y.tar#label=kind", "http://[::1]:8/x.tar", "data/a.tar::b"]
)
def test_addresses_are_shown_as_they_were_written(value: str) -> None:
    assert remote_files.as_written("::".join(str(Path(each)) for each in remote_files.separated(value))) == value
    assert remote_files.as_written(str(Path(value))) == value


def test_a_slow_transfer_has_no_limit_but_silence(server: Server) -> None:
    remote = remote_files._ask(f"{server.url}/d/x-0.tar", Path("x-0.tar"))
    assert remote is not None
    timeout = remote.system.client_kwargs["timeout"]
    assert (timeout.total, timeout.sock_read) == (None, remote_files._SILENT_S)


def test_a_read_only_cache_that_has_the_files_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, recorded_progress
) -> None:
    url = f"{server.url}/d/x-0.tar"
    before = list_images(url)
    server.files.clear()
    monkeypatch.setattr(remote_files.os, "access", lambda *_: False)
    monkeypatch.setattr(remote_files, "_alone", None)
    assert list_images(url, progress=recorded_progress).train == before.train
    assert "is read-only: the files that were downloaded are used" in recorded_progress.text


def test_a_full_disk_is_said_before_the_transfer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = remote_files.shutil.disk_usage("/")
    monkeypatch.setattr(
        remote_files.shutil, "disk_usage", lambda _: usage._replace(free=10) if hasattr(usage, "_replace") else usage
    )
    with pytest.raises(DataError, match=r"MB free, and 0 MB are to be downloaded: set XDG_CACHE_HOME"):
        list_images(f"{server.url}/d/x-0.tar")
    assert not server.gets()


def test_other_file_systems_are_read_likewise(server: Server) -> None:
    """S3 and the like need packages and accounts; fsspec's file system in memory has the same interface."""
    memory = fsspec.filesystem("memory")
    for name, content in server.files.items():
        memory.pipe(f"/bucket{name}", content)
    found = list_images("memory://bucket/d/train-{0..1}.tar")
    assert len(found.source.names) == 4
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("value", ["data", "a.tar::b.tar", "/data/x-{0..1}.tar", "c:/data"])
def test_paths_are_no_addresses(value: str) -> None:
    assert not remote_files.is_remote(value)
    for name in ("http://h/x.tar", "https:/h/x.tar", "s3://b/x.tar", "a.tar::gs://b/x.tar", "/https:/h/x.tar"):
        assert remote_files.is_remote(name)


def test_columns_of_a_remote_table_are_named_behind_its_address(server: Server) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": [b"x", b"y"], "kind": ["cat", "dog"]}), file)
    server.files["/d/x.parquet"] = file.getvalue()
    table = open_table(f"{server.url}/d/x.parquet#label=kind")
    assert table is not None
    assert list(table.train) == ["cat", "dog"]
