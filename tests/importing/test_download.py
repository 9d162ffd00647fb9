"""Downloads: checked, resumed after every kind of interruption, and nothing in place that is not complete."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import pytest
from hub_server import HubServer

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.importing.download import (
    PARTIAL,
    NotFound,
    Order,
    Remote,
    Unreachable,
    _Redirects,
    check_url,
    fetch,
    shown_url,
)

DATA = bytes(range(256)) * 1200
Fetch = Callable[..., Path]


@pytest.fixture
def fetch_file(hub: HubServer, tmp_path: Path) -> Fetch:
    """Fetch files/a.bin of the server into the folder ``got``, with a check of its digest."""
    hub.files["files/a.bin"] = DATA

    def call(progress: Any = None, **options: Any) -> Path:
        def verify(file: Path, remote: Remote) -> None:
            if file.read_bytes() != DATA:
                raise DataError("it is not what was wanted")

        path = tmp_path / "got" / "a.bin"
        settings = {"url": f"{hub.url}/files/a.bin", "place": lambda _: path, "verify": verify}
        return fetch(Order(**{**settings, "folder_variable": "HF_HOME", **options}), progress)

    return call


def part(tmp_path: Path) -> Path:
    return tmp_path / "got" / f"a.bin{PARTIAL}"


def test_a_file_is_downloaded_once_and_its_progress_is_shown(
    fetch_file: Fetch, hub: HubServer, recorded_progress: Any
) -> None:
    path = fetch_file(recorded_progress)
    assert path.read_bytes() == DATA
    assert [each.name for each in path.parent.iterdir()] == ["a.bin"]
    assert recorded_progress.steps == [("downloading a.bin, MB", len(DATA) / 1e6)]
    assert recorded_progress.updates[-1][1] == len(DATA) / 1e6
    assert fetch_file() == path
    assert hub.sent == ["files/a.bin"] * 2


def test_lost_connections_are_continued_where_they_ended(
    fetch_file: Fetch, hub: HubServer, recorded_progress: Any
) -> None:
    hub.cut = [100_000, 50_000, 0, 10]
    assert fetch_file(recorded_progress).read_bytes() == DATA
    ranges = [each[2] for each in hub.requests if each[2]]
    assert ranges == ["bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150010-"]
    assert "the connection to 127.0.0.1" in recorded_progress.text


def test_the_next_call_continues_after_the_server_gave_up(fetch_file: Fetch, hub: HubServer, tmp_path: Path) -> None:
    hub.cut = [1000, 0, 0, 0]
    with pytest.raises(DataError, match=r"; the same command continues where it stopped\Z"):
        fetch_file()
    assert part(tmp_path).stat().st_size == 1000
    assert not (tmp_path / "got" / "a.bin").exists()
    assert fetch_file().read_bytes() == DATA
    assert hub.requests[-1][2] == "bytes=1000-"


@pytest.mark.parametrize("start", [b"", b"z" * 10, DATA[:-1], DATA, DATA + b"more"])
def test_any_part_that_is_there_ends_in_the_right_file_or_is_removed(
    fetch_file: Fetch, tmp_path: Path, start: bytes
) -> None:
    part(tmp_path).parent.mkdir()
    part(tmp_path).write_bytes(start)
    if start.startswith(b"z"):  # of another file
        with pytest.raises(DataError, match="it is not what was wanted"):
            fetch_file()
        assert not list((tmp_path / "got").iterdir())
    assert fetch_file().read_bytes() == DATA
    assert not part(tmp_path).exists()


def test_a_server_without_parts_sends_the_whole_file(fetch_file: Fetch, hub: HubServer) -> None:
    hub.ranges, hub.cut = False, [1000]
    assert fetch_file().read_bytes() == DATA


def test_a_part_of_another_place_is_refused(fetch_file: Fetch, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.cut = [1000]
    monkeypatch.setattr("regnet_deploy.importing.download.re", SimpleNamespace(match=lambda *_: None))
    with pytest.raises(DataError, match="sends another part of the file than the one that is missing"):
        fetch_file()


def test_busy_servers_are_asked_again(fetch_file: Fetch, hub: HubServer) -> None:
    hub.statuses["files/a.bin"] = [503, 429, 500]
    assert fetch_file().read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, NotFound, r"/files/a.bin does not exist \(HTTP 404\): check the name"),
        (401, DataError, r"/files/a.bin may not be read \(HTTP 401\): download it with a program that can log in"),
        (403, DataError, r"may not be read \(HTTP 403\)"),
        (416, DataError, r"/files/a.bin cannot be downloaded: HTTP 416"),
        (418, DataError, r"/files/a.bin cannot be downloaded: HTTP 418"),
        (503, Unreachable, r"127\.0\.0\.1 cannot answer at present \(HTTP 503 Service Unavailable\)\Z"),
    ],
)
def test_refusals_are_one_line(
    fetch_file: Fetch, hub: HubServer, tmp_path: Path, status: int, kind: type[Exception], said: str
) -> None:
    hub.statuses["files/a.bin"] = [status] * 9
    with pytest.raises(kind, match=said):
        fetch_file()
    assert not (tmp_path / "got").exists()


def test_a_web_page_in_place_of_the_file_is_said_and_not_kept(
    fetch_file: Fetch, hub: HubServer, tmp_path: Path
) -> None:
    hub.page = True
    with pytest.raises(DataError, match="answered with a web page, not a file"):
        fetch_file()
    assert not (tmp_path / "got" / "a.bin").exists()
    hub.page = False
    assert fetch_file().read_bytes() == DATA


def test_another_content_than_promised_is_removed(fetch_file: Fetch, hub: HubServer, tmp_path: Path) -> None:
    hub.wrong = True
    with pytest.raises(DataError, match="it is not what was wanted"):
        fetch_file()
    assert not list((tmp_path / "got").iterdir())


def test_an_empty_file_is_refused(fetch_file: Fetch, hub: HubServer, tmp_path: Path) -> None:
    hub.files["files/a.bin"] = b""
    with pytest.raises(DataError, match=r"/files/a\.bin is empty"):
        fetch_file()
    assert not list((tmp_path / "got").iterdir())


def test_a_file_whose_end_is_not_told_is_not_taken_for_complete_later(fetch_file: Fetch, hub: HubServer) -> None:
    hub.lengths = False
    hub.files["files/a.bin"] = DATA[:100]
    fetch_file(verify=lambda *_: None)
    hub.files["files/a.bin"] = DATA
    assert fetch_file().read_bytes() == DATA
    assert len(hub.requests) == 2


def test_a_server_that_does_not_answer_is_asked_some_times(
    fetch_file: Fetch, monkeypatch: pytest.MonkeyPatch, recorded_progress: Any
) -> None:
    monkeypatch.setattr("regnet_deploy.importing.download._TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin"
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1 does not answer: timed out\Z"):
            fetch_file(recorded_progress, url=url)
    assert recorded_progress.messages == ["127.0.0.1 does not answer: timed out; trying again"] * 3


def test_a_server_that_is_not_there_is_said_at_once(fetch_file: Fetch) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 cannot be reached: Connection refused; behind a proxy set"):
        fetch_file(url="http://127.0.0.1:9/a.bin")
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid cannot be reached"):
        fetch_file(url="https://no-such-host.invalid/a.bin")


def test_a_proxy_of_the_environment_is_used(fetch_file: Fetch, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(Unreachable):
        fetch_file()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch_file().read_bytes() == DATA


def test_the_token_goes_to_its_own_host_alone(fetch_file: Fetch, hub: HubServer) -> None:
    hub.files["o/n/w.bin"], hub.token = DATA, "hf_secret"
    fetch_file(url=f"{hub.url}/o/n/resolve/main/w.bin", token="hf_secret")
    assert [(host, authorization) for host, _, _, authorization in hub.requests] == [
        ("127.0.0.1", "Bearer hf_secret"),
        ("localhost", None),
    ]


def test_the_headers_of_the_hub_are_read_before_its_redirect(fetch_file: Fetch, hub: HubServer, tmp_path: Path) -> None:
    hub.files["o/n/w.bin"] = DATA
    seen: list[Remote] = []
    fetch_file(
        url=f"{hub.url}/o/n/resolve/main/w.bin",
        place=lambda remote: seen.append(remote) or tmp_path / "got" / "a.bin",  # type: ignore[func-returns-value]
    )
    assert seen[0].validator == hashlib.sha256(DATA).hexdigest()
    assert (seen[0].size, len(seen[0].commit)) == (len(DATA), 40)


def test_a_full_disk_is_said_before_and_while_it_fills(
    fetch_file: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(DataError, match=r"a.bin needs 0 MB more, and .* set HF_HOME to a folder on another disk"):
            fetch_file()
    assert not (tmp_path / "got" / "a.bin").exists()
    assert fetch_file().read_bytes() == DATA


_CHILD = """
import sys
from pathlib import Path
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.importing.download import Order, fetch
path = Path(sys.argv[2])
try:
    fetch(Order(sys.argv[1], lambda _: path, lambda *_: None, "HF_HOME"))
except (RegnetDeployError, KeyboardInterrupt) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def child(hub: HubServer, tmp_path: Path, prelude: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", prelude + _CHILD, f"{hub.url}/files/a.bin", str(tmp_path / "got" / "a.bin")],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_continues(fetch_file: Fetch, hub: HubServer, tmp_path: Path, end: signal.Signals) -> None:
    hub.chunk_pause = 0.5
    with child(hub, tmp_path) as process:
        while not (part(tmp_path).exists() and part(tmp_path).stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(DataError, match="another process downloads"):
            fetch_file()
        process.send_signal(end)
        _, said = process.communicate(timeout=30)
    if end == signal.SIGINT:
        assert "MB are kept, and the same command continues" in said
    have = part(tmp_path).stat().st_size
    assert 0 < have < len(DATA)
    hub.chunk_pause = 0
    assert fetch_file().read_bytes() == DATA
    assert hub.requests[-1][2] == f"bytes={have}-"


def test_a_write_that_fails_is_one_line_and_the_part_is_kept(fetch_file: Fetch, hub: HubServer, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with child(hub, tmp_path, limit) as process:
        _, said = process.communicate(timeout=30)
    assert f"DataError: cannot write {part(tmp_path)}: File too large; set HF_HOME to another folder" in said
    assert part(tmp_path).stat().st_size == 100_000
    assert fetch_file().read_bytes() == DATA


def test_a_folder_that_cannot_be_made_is_one_line(fetch_file: Fetch, tmp_path: Path) -> None:
    (tmp_path / "got").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*/got: File exists; set HF_HOME to another folder"):
        fetch_file()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/a.pth", "cannot be downloaded: give an http or https address"),
        ("https:///a.pth", "is no address"),
        ("https://host/a b.pth", "is no address"),
        ("https://host:port/a.pth", "is no address"),
        ("https://[::1/a.pth", "is no address"),
        ("https://user:secret@host/a.pth", "holds a user name or password"),
    ],
)
def test_addresses_that_cannot_be_used_are_one_line(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        check_url(url)
    assert "secret" not in str(error.value)


def test_an_address_is_sent_encoded_and_shown_without_its_signature() -> None:
    assert check_url("https://host/ü.pth?a=b%20c#part") == "https://host/%C3%BC.pth?a=b%20c"
    assert shown_url("https://host/a.pth?X-Signature=1#x") == "https://host/a.pth"


def redirected(handler: _Redirects, origin: str, target: str) -> Request | None:
    first = Request(origin)
    handler.authorize(first)
    return handler.redirect_request(first, None, 302, "Found", Message(), target)


def test_nothing_is_fetched_over_a_redirect_that_is_not_encrypted() -> None:
    with pytest.raises(DataError, match="https://a/b redirects to http://c/d, which is not encrypted"):
        redirected(_Redirects(""), "https://a/b", "http://c/d?secret")


@pytest.mark.parametrize(
    ("target", "sent"),
    [("https://a/new", True), ("https://b/new", False), ("https://a:444/new", False), ("https://a.b/new", False)],
)
def test_a_redirect_on_the_same_host_keeps_the_token(target: str, sent: bool) -> None:
    request = redirected(_Redirects("hf_secret"), "https://a/old", target)
    assert request is not None
    assert request.has_header("Authorization") == sent
