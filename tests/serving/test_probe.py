"""The probe of the container: HTTP and HTTPS, ready and hung."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from regnet_deploy.serving import probe


@contextlib.contextmanager
def answering(ready: int = 200, live: int = 200, tls: tuple[Path, Path] | None = None) -> Iterator[int]:
    """A server with these states; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({probe.READY: ready, probe.LIVE: live}[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the attempt in HTTP

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    def call(port: object, *words: str, process: int = 0) -> int:
        monkeypatch.setenv(probe.PORT_VARIABLE, str(port))
        return probe.main(words, process)

    return call


def test_a_server_is_healthy_when_it_is_ready(ask, capsys):
    with answering() as port:
        assert ask(port) == 0
    assert capsys.readouterr().err == ""
    with answering(ready=503) as port:
        assert ask(port) == 1
    assert capsys.readouterr().err == "/v2/health/ready answers 503\n"


def test_tls_is_found_out_and_a_certificate_of_any_name_is_taken(ask, tmp_path):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    command = f"{program} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=dogs.example"
    subprocess.run([*command.split(), "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    with answering(tls=files) as port:
        assert ask(port) == 0
    with answering(tls=files, ready=503) as port:
        assert ask(port) == 1


def test_nobody_there_is_not_healthy_and_stops_nothing(ask, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert ask(port, probe.STOP_HUNG, process=os.getpid()) == 1
    assert capsys.readouterr().err == f"nothing answers on port {port}\n"


@pytest.mark.parametrize("port", ["", "http", "0", "70000", "-1"])
def test_what_is_no_port_is_one_line(ask, capsys, port):
    assert ask(port) == 1
    assert capsys.readouterr().err == f"REGNET_DEPLOY_PORT is {port!r}, which is not a port number\n"


def test_unknown_words_are_one_line(ask, capsys):
    assert ask(8000, "--stop") == 1
    assert "the only one is --stop-hung" in capsys.readouterr().err


@pytest.mark.parametrize(("live", "ends"), [(503, True), (200, False)])
def test_only_a_server_that_says_that_it_hangs_is_told_to_end(ask, live, ends):
    with subprocess.Popen(["sleep", "60"]) as process, answering(ready=503, live=live) as port:
        assert ask(port, process=process.pid) == 1
        assert process.poll() is None  # without the word nothing is stopped
        assert ask(port, probe.STOP_HUNG, process=process.pid) == 1
        if not ends:
            process.kill()
        assert process.wait(30) == -(signal.SIGTERM if ends else signal.SIGKILL)


def test_it_imports_next_to_nothing():
    code = "import sys, regnet_deploy.serving.probe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "click", "starlette", "uvicorn", "asyncio", "PIL"} & set(loaded)
