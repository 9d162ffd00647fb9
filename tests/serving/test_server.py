"""The server as a process of its own, asked by Triton's own client."""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import open_variant


class Server:
    """A running server and what it said of itself."""

    def __init__(self, process: "subprocess.Popen[str]", facts: dict[str, Any]) -> None:
        self.process = process
        self.facts = facts
        self.url: str = facts["url"]
        self.address = self.url.removeprefix("http://")
        self.host, port = self.address.rsplit(":", 1)
        self.port = int(port)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def end(self) -> tuple[int, str]:
        """Wait for the end and return the exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


Start = Callable[..., Server]


@contextlib.contextmanager
def starting(environment: dict[str, str], default: Path) -> Iterator[Start]:
    processes = []

    def start(*options: str, bundle: Path = default) -> Server:
        command = [sys.executable, "-m", "regnet_deploy", "serve", str(bundle), "--port", "0", "--json", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return Server(process, json.loads(line))

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def start(exported_bundle: Path, without_torch: dict[str, str]) -> Iterator[Start]:
    """Starts servers on free ports, where torch cannot be imported; ends them after the test."""
    with starting({**without_torch}, exported_bundle) as start:
        yield start


@pytest.fixture(scope="module")
def shared(_exported: Path) -> Iterator[Server]:
    """A server for all tests that leave it as it was."""
    with starting({**os.environ}, _exported) as start:
        yield start("--decoders", "1", "--variant", "onnx-fp32")


@pytest.fixture(scope="module")
def hasty(_exported: Path) -> Iterator[Server]:
    """Another one, which waits half a second for what is to be read."""
    with starting({**os.environ}, _exported) as start:
        yield start("--decoders", "1", "--read-timeout", "0.5")


def floats(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 24, 24)).astype(np.float32)


def triton(server: Server) -> Any:
    import tritonclient.http

    return tritonclient.http.InferenceServerClient(server.address)


def triton_input(images: np.ndarray, binary: bool = True) -> Any:
    from tritonclient.http import InferInput

    datatype = "UINT8" if images.dtype == np.uint8 else "FP32"
    tensor = InferInput("images", list(images.shape), datatype)
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def test_tritons_client_works_unchanged(start: Start, exported_bundle: Path):
    from tritonclient.http import InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    server = start("--name", "my-net")
    images = floats(3)
    bundle = open_bundle(exported_bundle)
    wanted, labels = open_variant(bundle, server.facts["variant"]).run(images), bundle.parts["labels"]
    with contextlib.closing(triton(server)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("my-net")
        assert client.is_model_ready("my-net", "1")
        assert not client.is_model_ready("other")
        assert not client.is_model_ready("my-net", "2")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("my-net")
        assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 24, 24]}]
        for binary in (True, False):
            for packing in (None, "gzip", "deflate"):
                answer = client.infer(
                    "my-net",
                    [triton_input(images, binary)],
                    outputs=[InferRequestedOutput("logits", binary_data=binary)],
                    request_id=f"request {packing}",
                    request_compression_algorithm=packing,
                    response_compression_algorithm=packing,
                )
                np.testing.assert_allclose(answer.as_numpy("logits"), wanted, rtol=1e-5, atol=1e-5)
                assert answer.get_response()["id"] == f"request {packing}"
        answer = client.infer("my-net", [triton_input(images)])  # all outputs, all defaults
        np.testing.assert_allclose(answer.as_numpy("logits"), wanted, rtol=1e-5, atol=1e-5)
        answer = client.infer("my-net", [triton_input(images)], outputs=[InferRequestedOutput("logits", class_count=2)])
        best = int(wanted[0].argmax())
        assert answer.as_numpy("logits")[0, 0].decode().split(":")[1:] == [str(best), labels[best]]
        for model, tensor, status in (
            ("other", triton_input(images), "404"),
            ("my-net", triton_input(floats(33)), "400"),
            ("my-net", triton_input(images.astype(np.uint8)), "400"),
            ("my-net", triton_input(np.zeros((1, 3, 8, 8), np.float32)), "400"),
        ):
            with pytest.raises(InferenceServerException) as error:
                client.infer(model, [tensor])
            assert error.value.status() == status
        assert client.is_server_ready()
    server.process.terminate()
    assert server.end()[0] == 0


def test_tritons_client_of_asyncio_works_unchanged(start: Start):
    import asyncio

    import tritonclient.http.aio

    server, images = start(), floats(2)

    async def ask() -> tuple[bool, np.ndarray]:
        async with tritonclient.http.aio.InferenceServerClient(server.address) as client:
            answer = await client.infer("regnet", [triton_input(images)])
            return await client.is_model_ready("regnet"), answer.as_numpy("logits")

    with warnings.catch_warnings():
        # The client leaves the response of is_model_ready open; aiohttp warns of it when it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        ready, logits = asyncio.run(ask())
        gc.collect()
    assert ready
    assert logits.shape == (2, 6)


def test_while_it_lingers_it_answers_and_says_that_it_is_not_ready(start: Start):
    server = start("--linger", "1.5")
    server.process.terminate()
    wait_until(lambda: server.status("/v2/health/ready") == 503)
    assert post(server, infer_body()) == 200  # though nobody was inside
    assert server.status("/v2/health/live") == 200
    code, errors = server.end()
    assert code == 0
    assert errors.index("leaving") < errors.index("draining")


def test_pixels_can_be_sent_as_they_are(start: Start, exported_bundle: Path):
    server = start("--variant", "onnx-fp32-uint8")
    golden = load_golden(open_bundle(exported_bundle))
    with contextlib.closing(triton(server)) as client:
        answer = client.infer("regnet", [triton_input(golden.images)])
    np.testing.assert_allclose(answer.as_numpy("logits"), golden.logits, rtol=1e-4, atol=1e-4)


def test_an_image_is_posted_as_curl_does(shared: Server):
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(stream, "JPEG")
    request = urllib.request.Request(shared.url + "/classify?k=2", stream.getvalue())
    request.add_header("Content-Type", "application/x-www-form-urlencoded")
    with urllib.request.urlopen(request, timeout=20) as answer:
        document = json.load(answer)
    assert len(document["predictions"]) == 2
    assert document["predictions"][0]["probability"] >= document["predictions"][1]["probability"]


def test_each_of_many_clients_gets_its_own_answer(shared: Server, exported_bundle: Path):
    session = open_variant(open_bundle(exported_bundle), "onnx-fp32")

    def ask(seed: int) -> None:
        images = floats(1 + seed % 3, seed)
        with contextlib.closing(triton(shared)) as client:
            for turn in range(5):
                answer = client.infer("regnet", [triton_input(images)], request_id=f"{seed}.{turn}")
                assert answer.get_response()["id"] == f"{seed}.{turn}"
                np.testing.assert_allclose(answer.as_numpy("logits"), session.run(images), rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(32)))


def test_it_says_where_it_is_and_listens_on_loopback_only(start: Start):
    server = start()
    assert server.host == "127.0.0.1"
    assert server.facts["golden"]["passed"] is True
    assert server.facts["device"] == "cpu"
    with open(f"/proc/{server.process.pid}/net/tcp") as table:
        local = [row.split()[1] for row in table if row.split()[3] == "0A"]  # listening
    assert f"0100007F:{server.port:04X}" in local
    assert f"00000000:{server.port:04X}" not in local
    server.process.terminate()
    code, errors = server.end()
    assert code == 0
    warning, ready, metrics, draining = errors.splitlines()
    assert "not trained" in warning
    assert metrics == f"metrics: {server.url}/metrics"
    assert "draining" in draining
    assert ready.startswith(f"ready: {server.url} ")


def send_slowly(server: Server, body: bytes) -> socket.socket:
    """Send the head of a request and half of its body."""
    connection = socket.create_connection((server.host, server.port), timeout=30)
    head = f"POST /v2/models/regnet/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[: len(body) // 2])
    return connection


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def infer_body() -> bytes:
    images = floats(1)
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_inside_finish(start: Start, number: signal.Signals):
    server = start("--max-in-flight", "1")
    body = infer_body()
    with send_slowly(server, body) as connection:
        # The request is inside when there is no room for another one.
        wait_until(lambda: post(server, b"{}") == 503)
        server.process.send_signal(number)
        wait_until(lambda: server.status("/v2/health/ready") == 503)
        assert server.status("/v2/health/live") == 200
        assert post(server, infer_body()) == 503
        assert server.process.poll() is None
        connection.sendall(body[len(body) // 2 :])
        assert receive_all(connection).startswith(b"HTTP/1.1 200 ")
    assert server.end()[0] == 0


def test_requests_that_do_not_finish_are_cut_off_and_said(start: Start):
    server = start("--drain", "0.3", "--max-in-flight", "1")
    with send_slowly(server, infer_body()) as connection:
        wait_until(lambda: post(server, b"{}") == 503)
        server.process.terminate()
        answer = receive_all(connection)
        code, errors = server.end()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"error":"the server is stopping, and this request was cut off"}')
    assert code == 2
    assert "1 requests were cut off after 0.3 s of draining" in errors
    assert "Traceback" not in errors


def test_a_second_signal_ends_at_once(start: Start):
    server = start("--max-in-flight", "1")
    with send_slowly(server, infer_body()):
        wait_until(lambda: post(server, b"{}") == 503)
        server.process.terminate()
        wait_until(lambda: server.status("/v2/health/ready") == 503)
        server.process.terminate()
        code, errors = server.end()
    assert code == 2
    assert "cut off by a second SIGTERM" in errors
    assert "Traceback" not in errors


def post(server: Server, body: bytes) -> int:
    request = urllib.request.Request(server.url + "/v2/models/regnet/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_body_that_is_too_large_gets_its_answer_and_the_server_goes_on(start: Start):
    server = start("--max-body-mb", "0.1")
    for head in ("Content-Length: 3000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((server.host, server.port), timeout=30) as connection:
            connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            chunk = b"186a0\r\n" + bytes(100_000) + b"\r\n" if "chunked" in head else bytes(100_000)
            for _ in range(30):
                connection.sendall(chunk)
            if "chunked" in head:
                connection.sendall(b"0\r\n\r\n")
            answer = receive_all(connection)  # the server closes
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'{"error":"the body is larger than 100,000 bytes"}' in answer
    assert server.status("/v2/health/ready") == 200


def test_a_refusal_whose_client_stays_does_not_keep_the_server(start: Start):
    server = start()
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
        server.process.terminate()
        code, errors = server.end()
    assert code == 0
    assert "Traceback" not in errors
    assert "Cancel" not in errors


def test_a_body_that_does_not_come_is_not_waited_for(start: Start):
    server = start("--read-timeout", "0.2")
    with send_slowly(server, infer_body()) as connection:
        assert receive_all(connection).startswith(b"HTTP/1.1 408 ")
    assert post(server, infer_body()) == 200


def test_what_is_not_http_is_refused_and_the_server_goes_on(shared: Server):
    for data in (
        b"\x16\x03\x01 tls?\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"\x00" * 100,
    ):
        with socket.create_connection((shared.host, shared.port), timeout=30) as connection:
            connection.sendall(data)
            assert receive_all(connection).startswith(b"HTTP/1.1 400 ")
    assert shared.status("/v2/health/ready") == 200


def test_a_read_only_bundle_is_served(start: Start, exported_bundle: Path):
    for path in (*exported_bundle.iterdir(), exported_bundle):
        os.chmod(path, path.stat().st_mode & ~0o222)
    try:
        before = sorted(path.name for path in exported_bundle.iterdir())
        server = start()
        assert post(server, infer_body()) == 200
        assert sorted(path.name for path in exported_bundle.iterdir()) == before
    finally:
        os.chmod(exported_bundle, 0o755)


def test_answers_agree_with_the_network_of_the_bundle(start: Start, exported_bundle: Path):
    """From the pixels of the golden set to the answer of the server, by another way than its own replay."""
    bundle = open_bundle(exported_bundle)
    golden, preprocessing = load_golden(bundle), Preprocessing.from_json(bundle.parts["preprocessing"])
    server = start("--threads", "1", "--variant", "onnx-fp32")
    with contextlib.closing(triton(server)) as client:
        answer = client.infer("regnet", [triton_input(normalize(golden.images, preprocessing))])
    np.testing.assert_allclose(answer.as_numpy("logits"), golden.logits, rtol=1e-3, atol=1e-4)


def test_heads_that_do_not_come_are_not_waited_for(hasty: Server):
    beginnings = [
        b"",
        b"G",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Slow: 1\r\n",
        b"GET /v2/health/live HTTP/1.1\r\n",
    ]
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((hasty.host, hasty.port), timeout=30))
            for _ in range(25)
            for _ in beginnings
        ]
        for i, connection in enumerate(connections):
            connection.sendall(beginnings[i % len(beginnings)])
        for connection in connections:
            assert connection.recv(100) == b""  # closed by the server
    assert post(hasty, infer_body()) == 200


def ask_if_live(connection: socket.socket) -> None:
    """Ask on a connection that is kept alive, and read the whole answer."""
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b'{"live":true}'):
        received = connection.recv(1000)
        assert received, answer
        answer += received


def test_a_head_that_trickles_is_not_waited_for(hasty: Server):
    with socket.create_connection((hasty.host, hasty.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(300):
            try:
                connection.sendall(b"X-Slow: 1\r\n")
            except OSError:  # reset or broken pipe, whichever comes first
                return
            time.sleep(0.05)
        pytest.fail("it was waited for")


@pytest.mark.parametrize(
    ("beginning", "flood"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: " + b"b" * 60_000 + b"\r\n"),  # fields without end
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"b" * 60_000),  # one field without end
        (b"GET /", b"a" * 60_000),  # a path without end
        (b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: bbb\r\n" * 6000),
    ],
    ids=["fields", "field", "path", "trailers"],
)
def test_a_head_or_trailers_without_end_are_cut_off(shared: Server, beginning: bytes, flood: bytes):
    sent = 0
    connection = socket.create_connection((shared.host, shared.port), timeout=30)
    with connection, contextlib.suppress(OSError):  # reset or broken pipe: it was cut off
        connection.sendall(beginning)
        for _ in range(1000):
            connection.sendall(flood)
            sent += len(flood)
    assert sent < 30_000_000  # what the sockets' buffers hold, and no more
    assert server_answers(shared)


@pytest.mark.parametrize("beginning", [b"GET / HT", b"\r\n"])
def test_a_second_head_that_does_not_come_is_not_waited_for_either(hasty: Server, beginning: bytes):
    with socket.create_connection((hasty.host, hasty.port), timeout=30) as connection:
        for _ in range(2):  # kept alive between requests for longer than a head may take
            ask_if_live(connection)
            time.sleep(0.8)
        connection.sendall(beginning)
        assert connection.recv(1000) == b""


def test_a_request_that_takes_its_time_after_its_head_is_not_cut_off(start: Start):
    server = start("--read-timeout", "1")
    body = infer_body()
    with send_slowly(server, body) as connection:
        time.sleep(0.6)
        connection.sendall(body[len(body) // 2 :])
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_for_one_more_connection_the_one_that_is_idle_longest_is_closed(start: Start):
    server = start("--max-connections", "3")
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection((server.host, server.port), timeout=30))
            ask_if_live(connection)
            idle.append(connection)
        for connection in idle:  # they are in use, and none of them is closed for one more
            ask_if_live(connection)
        assert server.status("/v2") == 200  # when one has been idle for half a second
        assert idle[0].recv(100) == b""
        ask_if_live(idle[2])


def server_answers(server: Server) -> bool:
    try:
        return server.status("/v2/health/ready") == 200
    except OSError:
        return False


def test_bodies_that_are_too_much_together_are_told_to_come_back(start: Start):
    server = start("--max-body-mb", "1", "--max-bodies-mb", "1")
    with send_slowly(server, bytes(1_000_000)):  # half of it stays in flight
        wait_until(lambda: post(server, bytes(900_000)) == 503)
        assert post(server, infer_body()) == 200
    wait_until(lambda: post(server, bytes(900_000)) == 400)


def test_a_proof_that_ends_in_something_else_is_one_error(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    from regnet_deploy.errors import ServerError
    from regnet_deploy.serving.core_settings import CoreSettings
    from regnet_deploy.serving.listeners import Listeners, bind
    from regnet_deploy.serving.server import serve
    from regnet_deploy.serving.server_core import ServerCore

    def exhausted(images: np.ndarray) -> np.ndarray:
        raise MemoryError("4 GB")

    core = ServerCore(exported_bundle, CoreSettings(decoders=1))
    monkeypatch.setattr(core.opened[0].session, "run", exhausted)
    with bind("127.0.0.1", 0) as bound, pytest.raises(ServerError, match="could not be replayed: MemoryError 4 GB"):
        serve(core, Listeners(bound), 1, lambda ready: pytest.fail("it was announced"))


def healthy(port: int) -> bool:
    """Run the health check of the image."""
    recipe = (Path(__file__).parents[2] / "Dockerfile").read_text()
    check = recipe[recipe.index("HEALTHCHECK") :]
    arguments = json.loads(check[check.index("[") : check.index("\nENTRYPOINT")])
    assert arguments[0] == "python"
    environment = {**os.environ, "REGNET_DEPLOY_PORT": str(port)}
    done = subprocess.run([sys.executable, *arguments[1:]], env=environment, capture_output=True, check=False)
    return done.returncode == 0


def test_the_health_check_of_the_image_follows_the_port(shared: Server):
    assert healthy(shared.port)
    with socket.create_server(("127.0.0.1", 0)) as free:
        unused = free.getsockname()[1]
    assert not healthy(unused)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that its own key has signed."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = f"{program} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


def test_https_a_token_and_metrics_on_a_port_of_their_own(start: Start, certificate: tuple[Path, Path], tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(
        *("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])),
        *("--token-file", str(token), "--metrics-port", str(port)),
    )
    assert server.url.startswith("https://")
    assert healthy(server.port)  # with the token and TLS, of which the health check is told nothing
    assert server.facts["metrics"] == f"http://127.0.0.1:{port}/metrics"
    context = ssl.create_default_context(cafile=certificate[0])

    def ask(path: str, *headers: tuple[str, str]) -> int:
        request = urllib.request.Request(server.url + path, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    right = ("authorization", "Bearer 0123456789abcdef0123")
    assert ask("/v2/health/ready") == 200
    assert ask("/v2/models/regnet") == 401
    assert ask("/v2/models/regnet", right) == 200
    assert ask("/metrics", right) == 404  # on their own port alone
    with urllib.request.urlopen(server.facts["metrics"], timeout=20) as answer:
        assert b"regnet_deploy_requests" in answer.read()
    with socket.create_connection((server.url.split("/")[2].split(":")[0], int(server.url.rsplit(":", 1)[1]))) as plain:
        plain.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not plain.recv(1000).startswith(b"HTTP/1.1 200")  # nothing in the clear


def test_versions_are_swapped_under_load_without_a_failed_request(start: Start, exported_bundle: Path, tmp_path: Path):
    """A bundle that changes in its place, and a new version beside another."""
    models = tmp_path / "models"
    shutil.copytree(exported_bundle, models / "cats" / "1")
    shutil.copytree(exported_bundle, models / "dogs")
    server = start("--poll", "0.1", "--variant", "onnx-fp32", "--log-format", "json", bundle=models)
    ended = threading.Event()
    images = floats(2)

    seen: dict[str, set[str]] = {"cats": set(), "dogs": set()}

    def ask(model: str) -> list[str]:
        versions = []
        with contextlib.closing(triton(server)) as client:
            while not ended.is_set():
                answer = client.infer(model, [triton_input(images)])
                assert answer.as_numpy("logits").shape == (2, 6)
                versions.append(answer.get_response()["model_version"])
                seen[model].add(versions[-1])
        return versions

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, model) for model in ("cats", "dogs")]
        try:
            wait_until(lambda: all("1" in versions for versions in seen.values()))
            update_bundle(models / "dogs", {"labels": [f"class {number}" for number in range(6)]})
            shutil.copytree(models / "cats" / "1", models / "cats" / "2")
            wait_until(
                lambda: all("2" in versions or one.done() for versions, one in zip(seen.values(), asking, strict=True))
            )
        finally:
            ended.set()
        for answers in (one.result(30) for one in asking):  # which raise what the clients did
            assert answers == sorted(answers)
            assert set(answers) == {"1", "2"}
    server.process.terminate()
    code, errors = server.end()
    assert code == 0
    assert errors.count('"event":"swapped"') == 2


def test_it_accepts_as_many_connections_as_files_may_be_open(start: Start, exported_bundle: Path):
    """Beyond them requests get 503, and health is answered; the start says it."""
    command = ["prlimit", "--nofile=64:64", sys.executable, "-m", "regnet_deploy", "serve", str(exported_bundle)]
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit and setpriv (util-linux)")
    process = subprocess.Popen(
        [*command, "--port", "0", "--json", "--decoders", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    server = Server(process, json.loads(process.stdout.readline()))
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            one = stack.enter_context(socket.create_connection((server.host, server.port), timeout=30))
            one.sendall(head)
        assert server.status("/v2/health/live") == 200
        one.settimeout(30)
        assert one.recv(100).startswith(b"HTTP/1.1 503 ")
    wait_until(lambda: post(server, infer_body()) == 200)
    process.terminate()
    code, errors = server.end()
    assert code == 0
    assert "few_open_files" in errors
    assert "ulimit -n" in errors
    assert "cannot be accepted" not in errors


def test_too_few_files_for_one_connection_are_one_line(exported_bundle: Path):
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit and setpriv (util-linux)")
    command = ["prlimit", "--nofile=30:30", sys.executable, "-m", "regnet_deploy", "serve", str(exported_bundle)]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "the process may open 30 files, too few for a server" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_every_address_is_that_of_both_families_for_http_and_grpc(start: Start):
    import grpc

    server = start("--host", "0.0.0.0", "--grpc-port", "0")
    assert server.url.startswith("http://0.0.0.0:")
    hosts = ["::ffff:127.0.0.1"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        hosts.append("::1")
    for host in hosts:
        with socket.create_connection((host, server.port), timeout=30) as connection:
            ask_if_live(connection)
        with grpc.insecure_channel(f"[{host}]:{server.facts['grpc_port']}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=30) == b"\x08\x01"


def test_a_name_is_the_same_address_for_http_and_grpc(start: Start):
    server = start("--host", "localhost", "--grpc-port", "0")
    local = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{server.process.pid}/net/{table}") as lines:
            rows = [row.split() for row in lines]
        listening = [row[1].split(":") for row in rows[1:] if row[3] == "0A"]
        ports = (server.port, server.facts["grpc_port"])
        local |= {host.removeprefix("0000000000000000FFFF0000") for host, port in listening if int(port, 16) in ports}
    assert len(local) == 1


def test_an_idle_connection_is_kept_for_as_long_as_said(start: Start):
    server = start("--keep-alive", "0.3")
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        ask_if_live(connection)
        ask_if_live(connection)
        assert connection.recv(100) == b""
