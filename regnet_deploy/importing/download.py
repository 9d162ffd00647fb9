"""Downloads a file over HTTP: resumed where it stopped, checked, and put in place as a whole.

It is written on the standard library rather than on huggingface_hub (22 MB with what it needs): that library does not
compare a file with its SHA-256, and plain addresses need the same resumption, so it would come on top of this module.
Proxies are those of the environment (``https_proxy``, ``no_proxy``), certificates those of OpenSSL (``SSL_CERT_FILE``).
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import io
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from regnet_deploy import __version__
from regnet_deploy.durable_files import lock, sync
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.progress import NoProgress, Progress

#: End of the name of a file that is not complete.
PARTIAL = ".regnet-deploy-partial"
#: Attempts in a row that bring nothing, and seconds before the second one; the pause doubles.
_ATTEMPTS, _PAUSE_S = 4, 1.0
#: Seconds without a byte after which a connection is given up.
_TIMEOUT_S = 15.0
_CHUNK = 1 << 20
_TEMPORARY_STATUS = {408, 429, 500, 502, 503, 504}


class NotFound(DataError):
    """The server does not have the file (HTTP 404)."""


class Unreachable(DataError):
    """The server cannot be reached, or does not answer."""


class _Interrupted(DataError):
    """The transfer ended early, or the server asks to try again."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file before its content.

    Attributes:
        size: bytes; None where the server does not say it.
        validator: changes with the content: the hub's ``X-Linked-Etag``, else the ETag or the date; "" without any, and
            where the end of the file cannot be told from a lost connection.
        commit: of the hub's repository; "" elsewhere.
    """

    size: int | None
    validator: str
    commit: str


@dataclass(frozen=True)
class Order:
    """A file to download.

    Attributes:
        url: http or https address.
        place: returns the path of the file, from what the server says of it; where it exists, nothing is transferred
        verify: raises DataError if a downloaded file is not the one that is wanted; it is removed then.
        folder_variable: environment variable that moves the folder of the file.
        token: sent to the host of the address, and to no other.
        denied: what to do about HTTP 401 or 403.
        replace: whether a file at the path is replaced. It is replaced, too, where the server sends no validator.
    """

    url: str
    place: Callable[[Remote], Path]
    verify: Callable[[Path, Remote], None]
    folder_variable: str
    token: str = ""
    denied: str = "download it with a program that can log in, and import the file"
    replace: bool = False


def check_url(url: str) -> str:
    """Return an address as it is sent, without its fragment.

    Raises:
        UsageError: it is not http or https, has no host, or holds a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url} is no address: {error}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise UsageError(
            f"{url} cannot be downloaded: give an http or https address, or download it and import the file"
        )
    if not host or re.search(r"[\x00-\x20\x7f]", url):
        raise UsageError(f"{url!r} is no address: give one such as https://host/weights.pth")
    if parts.username is not None:
        raise UsageError("the address holds a user name or password: download the file and import it")
    return quote(parts._replace(fragment="").geturl(), safe="%/:=&?~+!$,;'@()*[]")


def shown_url(url: str) -> str:
    """Return an address without its query, which may hold a signature."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def fetch(order: Order, progress: Progress | None = None) -> Path:
    """Download a file, unless it is there, and return its path.

    What was received stays beside the path when the download ends early; the next call continues.

    Raises:
        NotFound: the server does not have the file.
        Unreachable: the server cannot be reached, or does not answer.
        DataError: it refuses, fails repeatedly, or sends another file; the file cannot be written; or another process
            downloads it.
    """
    shown, attempt, total = progress or NoProgress(), 0, 0
    while True:
        received = [0]
        try:
            return _fetch_once(order, shown, received)
        except (_Interrupted, Unreachable) as error:
            total += received[0]
            attempt = 1 if received[0] else attempt + 1
            if not total and (isinstance(error, Unreachable) or attempt == _ATTEMPTS):
                raise Unreachable(str(error)) from None
            if attempt == _ATTEMPTS:
                raise DataError(f"{error}; the same command continues where it stopped") from None
            shown.message(f"{error}; trying again")
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))


def _fetch_once(order: Order, progress: Progress, received: list[int]) -> Path:
    with _opened(order) as (response, remote):
        path = order.place(remote)
        if path.is_file() and remote.validator and not order.replace:
            return path
        name = Path(urlsplit(order.url).path).name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path.parent, error, order) from None
        with _partial_file(path, order) as file:
            have = os.fstat(file.fileno()).st_size if remote.validator else 0
            _check_space(path.parent, (remote.size or 0) - have, name, order)
            progress.step(f"downloading {name}, MB", None if remote.size is None else remote.size / 1e6)
            if have and have == remote.size:
                pass  # it was interrupted between the last byte and the check
            elif have:
                with _opened(order, start=have) as (rest, _):
                    _receive(
                        rest, file, have if _continues(rest, have, remote) else 0, remote, order, progress, received
                    )
            else:
                _receive(response, file, 0, remote, order, progress, received)
            partial = Path(str(file.name))
            try:
                if not os.fstat(file.fileno()).st_size:
                    raise DataError(f"{shown_url(order.url)} is empty")
                order.verify(partial, remote)
            except DataError:
                partial.unlink()
                raise
            try:
                sync(file.fileno())
                os.replace(partial, path)
            except OSError as error:
                raise _unwritable(path, error, order) from None
    return path


def _receive(
    response: Any,
    file: io.FileIO,
    start: int,
    remote: Remote,
    order: Order,
    progress: Progress,
    received: list[int],
) -> None:
    """Write what a response brings, from the byte ``start`` on."""
    shown, done = shown_url(order.url), start
    try:
        os.ftruncate(file.fileno(), start)
        file.seek(start)
        while chunk := _read(response, shown):
            if done == 0:
                _refuse_page(response, chunk, shown)
            view = memoryview(chunk)
            while view:  # a file without a buffer may take less than it is given
                written = file.write(view)
                view, done = view[written:], done + written
            received[0] += len(chunk)
            progress.update(done / 1e6)
    except OSError as error:
        raise _unwritable(Path(str(file.name)), error, order) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done / 1e6:.1f} MB are kept, and the same command continues") from None
    if remote.size is not None and done < remote.size:
        raise _Interrupted(
            f"the connection to {urlsplit(shown).hostname} ended after {done:,} of {remote.size:,} bytes"
        )
    if remote.size is not None and done > remote.size:
        raise DataError(f"{shown} has {remote.size:,} bytes, and the server sent {done:,}: try again later")


def _read(response: Any, shown: str) -> bytes:
    try:
        data: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection to {urlsplit(shown).hostname} was lost: {_reason(error)}") from None
    return data


def _continues(response: Any, start: int, remote: Remote) -> bool:
    """Return whether a response is the rest of the file; False is the whole file."""
    if response.status != 206:
        return False
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start or (remote.size and found[2] not in ("*", str(remote.size))):
        raise DataError(f"{shown_url(response.url)} sends another part of the file than the one that is missing")
    return True


@contextlib.contextmanager
def _opened(order: Order, start: int = 0) -> Iterator[tuple[Any, Remote]]:
    """Send a request and follow its redirects; a part that the server does not have is asked for as the whole file."""
    headers = {"User-Agent": f"regnet-deploy/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(order.url, headers=headers)
    if start:
        request.add_header("Range", f"bytes={start}-")
    redirects = _Redirects(order.token)
    redirects.authorize(request)
    shown = shown_url(order.url)
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            with _opened(order) as opened:
                yield opened
            return
        raise _status_error(order, error) from None
    except urllib.error.URLError as error:
        raise _connection_error(redirects.host, error.reason) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError | ConnectionError | http.client.HTTPException):
            raise _Interrupted(f"{redirects.host} does not answer: {_reason(error)}") from None
        raise _connection_error(redirects.host, error) from None
    with response:
        first, last = redirects.first or response.headers, response.headers
        size = first.get("X-Linked-Size") or (last.get("Content-Length") if not start else None)
        if last.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{shown} is sent compressed, although it was asked for as it is: download it yourself")
        validator = first.get("X-Linked-Etag") or last.get("ETag") or last.get("Last-Modified") or ""
        if not size and not response.chunked and not first.get("X-Repo-Commit"):
            validator = ""
        yield (
            response,
            Remote(
                int(size) if size and size.isdecimal() else None,
                validator.removeprefix("W/").strip('"'),
                first.get("X-Repo-Commit", ""),
            ),
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects: never from https to http, and with the token on its own host alone."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._origin: tuple[str, str] | None = None
        self.first: Message | None = None
        self.host: str | None = None

    def authorize(self, request: urllib.request.Request) -> None:
        """Add the token if the request goes to the host of the first request."""
        parts = urlsplit(request.full_url)
        origin, self.host = (parts.scheme, parts.netloc), parts.hostname
        self._origin = self._origin or origin
        if self._token and origin == self._origin:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the next request; the first headers of the hub tell what the file is."""
        if self.first is None and (headers.get("X-Linked-Etag") or headers.get("X-Repo-Commit")):
            self.first = headers
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise DataError(f"{shown_url(req.full_url)} redirects to {shown_url(newurl)}, which is not encrypted")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.authorize(request)
        return request


@contextlib.contextmanager
def _partial_file(path: Path, order: Order) -> Iterator[io.FileIO]:
    """Open the part of a file that is there, and hold it against other processes."""
    partial = path.with_name(path.name + PARTIAL)
    while True:
        try:
            file = open(partial, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115
        except OSError as error:
            raise _unwritable(partial, error, order) from None
        with file:
            try:
                lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another process downloads {shown_url(order.url)}: wait until it is done") from None
            if partial.exists() and partial.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return
            # another process put it in place between opening and locking


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _check_space(folder: Path, needed: int, name: str, order: Order) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{name} needs {needed / 1e6:,.0f} MB more, and {folder} has {free / 1e6:,.0f} MB free: free some, or set "
            f"{order.folder_variable} to a folder on another disk"
        )


def _refuse_page(response: Any, start: bytes, shown: str) -> None:
    page = start.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page or response.headers.get_content_type() == "text/html":
        raise DataError(
            f"{shown} answered with a web page, not a file: give the address of the file itself (on the hub "
            "hf:OWNER/NAME), or log in with a browser, download it, and import the file"
        )


def _status_error(order: Order, error: urllib.error.HTTPError) -> DataError:
    shown, code = shown_url(order.url), error.code
    if code == 404 or code == 410:
        return NotFound(f"{shown} does not exist (HTTP {code}): check the name")
    if code in (401, 403):
        return DataError(f"{shown} may not be read (HTTP {code}): {order.denied}")
    if code == 407:
        return DataError("the proxy wants a login (HTTP 407): set https_proxy to http://USER:PASSWORD@HOST:PORT")
    if code in _TEMPORARY_STATUS:
        return _Interrupted(f"{urlsplit(shown).hostname} cannot answer at present (HTTP {code} {error.reason})")
    return DataError(f"{shown} cannot be downloaded: HTTP {code} {_reason(error.reason)}")


def _connection_error(host: str | None, reason: object) -> DataError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DataError(
            f"the certificate of {host} cannot be verified ({reason.verify_message}): set SSL_CERT_FILE to the "
            "certificates of your network"
        )
    if isinstance(reason, TimeoutError | ConnectionResetError | http.client.RemoteDisconnected):
        return _Interrupted(f"{host} does not answer: {_reason(reason)}")
    return Unreachable(
        f"{host} cannot be reached: {_reason(reason)}; behind a proxy set https_proxy, or download the file elsewhere "
        "and import it"
    )


def _unwritable(path: Path, error: OSError, order: Order) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror}; set {order.folder_variable} to another folder, or run the same "
        "command again to continue"
    )


def _reason(error: object) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:200]
