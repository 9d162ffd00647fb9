"""Real servers on loopback for the checklist, attacked with bytes; those that no test changes are shared by all.

The program of some servers is wrapped: :data:`AUDITED` notes what the process does besides answering once it is ready,
:data:`GATED` has inferences wait, fail or die as a file says.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from PIL import Image

SIDE = 24

#: Runs the CLI under an audit hook that writes every event of note, from the moment that the file ``on`` exists.
AUDITED = """
import os, sys
log, switch = sys.argv[1], sys.argv[2]
descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
quiet = ("object.", "sys._getframe", "builtins.id", "time.sleep", "socket.__new__", "gc.", "code.__new__", "cpython.",
         "socket.getsockname", "socket.getpeername", "_thread.", "sys.setprofile", "sys.settrace")
state = {"on": False, "inside": False}
def by_import():
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return "importing "
        frame = frame.f_back
    return ""
def hook(event, arguments):
    if event.startswith(quiet) or state["inside"]:
        return
    state["inside"] = True
    try:
        if not state["on"]:
            state["on"] = os.path.exists(switch)
        if state["on"]:
            line = by_import() + event + " " + repr(arguments)[:300].replace("\\n", " ")
            os.write(descriptor, (line + "\\n").encode())
    finally:
        state["inside"] = False
del sys.argv[1:3]
sys.addaudithook(hook)
from regnet_deploy.cli.main import run
run()
"""

#: While the file ``gate`` is there inferences wait; where it says ``raise``, ``memory`` or ``exit`` they do that.
GATED = """
import os, sys, time
gate = sys.argv.pop(1)
from regnet_deploy.serving import model_version
before = model_version._run
def run(session, preprocessing, parts):
    while os.path.exists(gate):
        try:
            with open(gate) as file:
                said = file.read()
        except FileNotFoundError:
            break
        if said == "raise":
            raise RuntimeError("secret of /srv/private/model")
        if said == "memory":
            raise MemoryError
        time.sleep(0.005)
    return before(session, preprocessing, parts)
model_version._run = run
from regnet_deploy.cli.main import run as main
main()
"""


class Reply(NamedTuple):
    """An answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The line of an error, which every refusal has."""
        assert self.headers["content-type"] == "application/json", self
        assert list(self.json) == ["error"], self
        return str(self.json["error"])


class Server:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[bytes]", facts: dict[str, Any], log: Path, folder: Path) -> None:
        self.process, self.facts, self.log_file, self.folder = process, facts, log, folder
        self.url: str = facts["url"]
        host, port = self.url.split("://")[1].rsplit(":", 1)
        self.host, self.port = "127.0.0.1" if host == "0.0.0.0" else host, int(port)
        self.grpc = f"127.0.0.1:{facts['grpc_port']}"
        self.pid = process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send a request as clients do, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Reply:
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def infer(self, body: bytes | None = None, **headers: str) -> Reply:
        return self.post("/v2/models/regnet/infer", infer_body() if body is None else body, **headers)

    def raw(self, data: bytes, method: str = "GET") -> Reply:
        """Send bytes and read one answer."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # it may have answered and closed by then
                connection.sendall(data)
            return read_reply(connection, method)

    def stats(self, model: str = "regnet") -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v2/models/{model}/stats").json["model_stats"][-1]
        return found

    def answers(self) -> None:
        """Check that it is there for others, whatever it has just been sent."""
        assert self.process.poll() is None, self.log
        assert self.get("/v2/health/live").status == 200
        assert self.infer().status == 200

    def workers(self) -> list[int]:
        """Return the processes that decode."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def memory(self, kind: str = "VmRSS") -> int:
        """Return bytes of the server's process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:"))) * 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def gate(self, how: str | None) -> None:
        """Have inferences wait (``""``), fail (``raise``, ``memory``) or go on (None); of a gated server."""
        gate = self.folder / "gate"
        if how is None:
            gate.unlink(missing_ok=True)
        else:
            (self.folder / "next").write_text(how)
            (self.folder / "next").rename(gate)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def read_reply(connection: socket.socket, method: str = "GET") -> Reply:
    """Read one answer from a connection."""
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    with answer:
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until a condition holds and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def tensor(count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def infer_document(images: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """Return an infer request with JSON numbers; ``changes`` are to its input."""
    images = tensor() if images is None else images
    data = [round(float(value), 3) for value in images.ravel()]
    given = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": data, **changes}
    return {"inputs": [{name: value for name, value in given.items() if value is not None}]}


def infer_body(**changes: Any) -> bytes:
    return json.dumps(infer_document(**changes)).encode()


def binary(images: np.ndarray, shape: Any = None, size: Any = None, **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return an infer request with binary tensors: body and headers."""
    raw = images.astype("<f4").tobytes()
    one = {
        "name": "images",
        "shape": list(images.shape) if shape is None else shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw) if size is None else size},
    }
    head = json.dumps({**more, "inputs": [one]}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


def image_bytes(kind: str = "JPEG", size: tuple[int, int] = (40, 32), colour: Any = (200, 30, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


#: What a client can do wrong, in gRPC's words.
CLIENTS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
}


def grpc_call(channel: Any, method: str, data: bytes) -> Any:
    """Return the answer, None where it is that of a client's mistake."""
    ended = channel.unary_unary(method).future(data, timeout=30)
    if ended.exception() is None:
        return ended.result()
    assert ended.code() in CLIENTS_FAULT, ended
    assert ended.details()
    return None


class Tools(NamedTuple):
    """The functions of this module, for tests; with pytest's import mode they cannot be imported."""

    wait_until: Callable[..., Any] = wait_until
    grpc_call: Callable[..., Any] = grpc_call
    tensor: Callable[..., np.ndarray] = tensor
    infer_document: Callable[..., dict[str, Any]] = infer_document
    infer_body: Callable[..., bytes] = infer_body
    binary: Callable[..., tuple[bytes, dict[str, str]]] = binary
    image: Callable[..., bytes] = image_bytes
    read_reply: Callable[..., Reply] = read_reply


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


class Launcher:
    """Starts servers and ends them."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self._folder, self._bundle = folder, bundle
        self._started: list[Server] = []

    def __call__(
        self, *options: str, path: Path | None = None, wrapped: str = "", prefix: Sequence[str] = (), **popen: Any
    ) -> Server:
        """Start a server; ``wrapped`` is :data:`AUDITED` or :data:`GATED`, ``prefix`` a command that runs another."""
        folder = self._folder / f"server-{len(self._started)}"
        folder.mkdir()
        command = [sys.executable, "-m", "regnet_deploy"]
        if wrapped:
            (folder / "program.py").write_text(wrapped)
            files = ["events", "on"] if wrapped == AUDITED else ["gate"]
            command = [sys.executable, str(folder / "program.py"), *(str(folder / name) for name in files)]
        command += ["serve", str(path or self._bundle), "--port", "0", "--json", "--threads", "1", "--decoders", "1"]
        log = folder / "log"
        with log.open("wb") as errors:
            command = [*prefix, *command, *options]
            process = subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": errors, **popen})
        assert process.stdout is not None
        with process.stdout as said:
            line = said.readline()
        if not line:
            process.wait(60)
        assert line, log.read_text()
        server = Server(process, json.loads(line), log, folder)
        self._started.append(server)
        return server

    def end(self) -> None:
        for server in self._started:
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait(60)


Launch = Callable[..., Server]


@pytest.fixture
def launch(_exported: Path, tmp_path: Path) -> Iterator[Launch]:
    """Starts servers for one test."""
    launcher = Launcher(tmp_path, _exported)
    yield launcher
    launcher.end()


@pytest.fixture(scope="session")
def launch_shared(_exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts servers for several tests."""
    launcher = Launcher(tmp_path_factory.mktemp("shared"), _exported)
    yield launcher
    launcher.end()


@pytest.fixture(scope="session")
def server(launch_shared: Launch) -> Server:
    """A server as it comes, with small limits, its process watched from the first request on."""
    limits = ["--max-body-mb", "2", "--max-megapixels", "0.25", "--max-batch", "8", "--grpc-port", "0"]
    started = launch_shared(*limits, "--log-format", "json", "--log-requests", wrapped=AUDITED)
    (started.folder / "on").touch()
    return started


@pytest.fixture
def launch_gated(launch: Launch) -> Launch:
    """Starts gated servers for one test."""
    return partial(launch, wrapped=GATED)


@pytest.fixture(scope="session")
def _gated(launch_shared: Launch) -> Server:
    return launch_shared("--batch", "4", "--max-queue", "4", "--grpc-port", "0", wrapped=GATED)


@pytest.fixture
def gated(_gated: Server) -> Iterator[Server]:
    """A server whose inferences wait when a test says so; four images may wait, and then run together."""
    _gated.gate(None)
    yield _gated
    _gated.gate(None)


@pytest.fixture(scope="session")
def bomb() -> bytes:
    """1 MB of gzip that unpacks to 1 GB: one block of it again and again, as nobody takes a checksum that far."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    made = head + block * 1000 + packer.compress(b"end") + packer.flush()
    assert 0.9e6 < len(made) < 1.2e6
    assert len(gzip.GzipFile(fileobj=io.BytesIO(head + block * 2)).read(2**21)) == 2**21
    return made


@pytest.fixture(scope="module")
def channel(server: Any) -> Any:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened
