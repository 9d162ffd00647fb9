"""A server that speaks the protocol of the Hugging Face hub, and the other side of redirects: a CDN on another host."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class HubServer:
    """What is served, how, and what was asked.

    Attributes:
        url: of the hub, http://127.0.0.1:PORT; the CDN has the host name localhost, and files that belong to no
            repository are below /files/.
        files: path such as ``owner/name/model.safetensors`` or ``files/a.pth`` -> content.
        requests: (host, path, Range, Authorization) of each request.
        statuses: path -> statuses of its next answers, before those of the content.
        cut: numbers of bytes after which the connections are closed of the first content, and of the next ones that are
            asked for as parts.
        page: whether a web page is the answer to everything.
        ranges: whether parts of files are sent.
        lengths: whether the length of a content is sent; else the end of the connection is its end.
        token: what the hub wants in Authorization, if anything.
        chunk_pause: seconds between two parts of 64 KiB.
        wrong: whether the content is not what its digest says.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    page: bool = False
    ranges: bool = True
    lengths: bool = True
    token: str = ""
    chunk_pause: float = 0.0
    wrong: bool = False

    @property
    def sent(self) -> list[str]:
        """Paths that were asked for."""
        return [path for _, path, _, _ in self.requests]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run a server in a thread."""
    state = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].lstrip("/")
            host = self.headers["Host"].partition(":")[0]
            state.requests.append((host, path, self.headers["Range"], self.headers["Authorization"]))
            if state.statuses.get(path):
                self.answer(state.statuses[path].pop(0), b"{}")
            elif state.page:
                self.answer(200, b"<!DOCTYPE html><title>Log in</title>", {"Content-Type": "text/html"})
            elif path.startswith("cdn/"):
                self.content(next(data for data in state.files.values() if digest(data) == path[4:]), {"ETag": '"md5"'})
            elif path in state.files and path.startswith("files/"):
                data = state.files[path]
                self.content(data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
            else:
                self.resolve(path)

        def resolve(self, path: str) -> None:
            if state.token and self.headers["Authorization"] != f"Bearer {state.token}":
                return self.answer(401, b"Invalid username or password.")
            repository, _, file = path.partition("/resolve/")
            data = state.files.get(f"{repository}/{file.partition('/')[2]}")
            if data is None:
                return self.answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            headers = {"X-Repo-Commit": COMMIT}
            if file.endswith(".json"):
                sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                return self.content(data, headers | {"ETag": f'"{sha1}"'})
            headers |= {"X-Linked-Etag": f'"{digest(data)}"', "X-Linked-Size": str(len(data)), "ETag": '"other"'}
            location = f"{state.url.replace('127.0.0.1', 'localhost')}/cdn/{digest(data)}?signature=secret"
            return self.answer(302, b"Found", headers | {"Location": location})

        def content(self, data: bytes, headers: dict[str, str]) -> None:
            wanted = self.headers["Range"]
            if state.wrong:
                data = bytes(len(data))
            start, status = 0, 200
            if wanted and state.ranges:
                start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
                if start >= len(data):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self.answer(status, data[start:], headers, cuttable=True)

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cuttable: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if state.lengths or not cuttable:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if cuttable and state.cut and (self.headers["Range"] or len(state.requests) == 1):
                self.wfile.write(body[: state.cut.pop(0)])
                self.close_connection = True
                return
            try:
                for at in range(0, len(body), 1 << 16):
                    self.wfile.write(body[at : at + (1 << 16)])
                    time.sleep(state.chunk_pause)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was stopped, as a test wants it

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
