"""Servers that end while clients ask: clients that keep to their protocols lose no request."""

import contextlib
import http.client
import json
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from regnet_deploy.protobuf import messages

INFER = "/v2/models/regnet/infer"
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"


class Server:
    """A server process."""

    def __init__(self, bundle: Path, *options: str) -> None:
        command = [sys.executable, "-m", "regnet_deploy", "serve", str(bundle), "--port", "0", "--json", *options]
        command += ["--decoders", "1", "--threads", "1", "--variant", "onnx-fp32"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        facts = json.loads(line)
        self.port, self.grpc_port = int(facts["url"].rsplit(":", 1)[1]), facts["grpc_port"]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def is_ready(self) -> bool:
        with contextlib.closing(self.connect()) as connection:
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == 200
            except OSError:
                return False

    def end(self) -> str:
        """Wait for the end, which has to be a good one, and return the log."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors
        return errors


@pytest.fixture
def start(_exported: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def begin(*options: str) -> Server:
        started.append(Server(_exported, *options))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def body() -> bytes:
    values = np.zeros(3 * 24 * 24, np.float32).tolist()
    return json.dumps(
        {"inputs": [{"name": "images", "shape": [1, 3, 24, 24], "datatype": "FP32", "data": values}]}
    ).encode()


@contextlib.contextmanager
def clients(count: int, ask: Callable[[threading.Event, Counter[str]], None]) -> Iterator[Counter[str]]:
    """Have clients ask in threads until the context ends; what became of the requests is counted."""
    ended, seen = threading.Event(), Counter[str]()
    threads = [threading.Thread(target=ask, args=(ended, seen)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)


class Balancer:
    """Sends requests to servers that are ready, as a proxy does that asks them every 0.1 s."""

    def __init__(self, *servers: Server) -> None:
        self.ready = list(servers)
        self._servers, self._ended = servers, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Balancer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.ready = [server for server in self._servers if server.is_ready()]


def one(connection: http.client.HTTPConnection, seen: Counter[str]) -> bool:
    """Ask once and count what came; return whether the connection stays open."""
    try:
        connection.request("POST", INFER, body())
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        seen[type(error).__name__] += 1
        return False
    seen[str(answer.status)] += 1
    return not answer.will_close


def test_clients_that_keep_their_connections_lose_nothing(start: Callable[..., Server]):
    leaving, staying = start("--linger", "1.5"), start()

    def ask(ended: threading.Event, seen: Counter[str]) -> None:
        connection: http.client.HTTPConnection | None = None
        while not ended.is_set():
            if connection is None:
                connection = random.choice(balancer.ready).connect()
            if not one(connection, seen):
                connection.close()
                connection = None
            time.sleep(0.005)
        if connection is not None:
            connection.close()

    with Balancer(leaving, staying) as balancer, clients(8, ask) as seen:
        leaving.process.terminate()
        leaving.end()
        time.sleep(0.3)
    assert set(seen) == {"200"}, seen


def test_a_proxy_with_a_pool_of_connections_loses_nothing(start: Callable[..., Server]):
    """Like Envoy's: the one that was used last goes first, so that some are idle when the server ends."""
    leaving, staying = start("--linger", "1.5"), start()
    pools: dict[Server, list[http.client.HTTPConnection]] = {leaving: [], staying: []}

    def ask(ended: threading.Event, seen: Counter[str]) -> None:
        while not ended.is_set():
            server = random.choice(balancer.ready)
            connection = None
            while connection is None:
                try:
                    connection = pools[server].pop()
                except IndexError:
                    connection = server.connect()
                if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                    connection.close()  # the server has closed it
                    connection = None
            if one(connection, seen):
                pools[server].append(connection)
            else:
                connection.close()
            time.sleep(random.random() * 0.02)

    with Balancer(leaving, staying) as balancer, clients(8, ask) as seen:
        leaving.process.terminate()
        leaving.end()
        time.sleep(0.3)
    for pool in pools.values():
        for connection in pool:
            connection.close()
    assert set(seen) == {"200"}, seen


def test_clients_of_grpc_lose_nothing(start: Callable[..., Server]):
    """They know both servers, and go to the second one when the first refuses connections."""
    leaving, staying = start("--linger", "2", "--grpc-port", "0"), start("--grpc-port", "0")
    tensor = {"name": "images", "shape": [1, 3, 24, 24], "datatype": "FP32"}
    fields = {"model_name": "regnet", "inputs": [tensor]}
    request = messages.message("inference.ModelInferRequest", fields)
    request.raw_input_contents.append(bytes(4 * 3 * 24 * 24))
    data = request.SerializeToString()
    target = f"ipv4:127.0.0.1:{leaving.grpc_port},127.0.0.1:{staying.grpc_port}"

    def ask(ended: threading.Event, seen: Counter[str]) -> None:
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(GRPC_INFER)
            while not ended.is_set():
                try:
                    infer(data, timeout=30)
                    seen["OK"] += 1
                except grpc.RpcError as error:
                    seen[f"{error.code()} {error.details()}"] += 1  # type: ignore[attr-defined]

    with clients(8, ask) as seen:
        leaving.process.terminate()
        leaving.end()
        time.sleep(0.3)
    assert set(seen) == {"OK"}, seen


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_lose_nothing(start: Callable[..., Server], number: signal.Signals):
    server = start("--linger", "0.3")
    seen: Counter[str] = Counter()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body())}\r\n\r\n".encode()
    with contextlib.closing(server.connect()) as inside:
        inside.connect()
        inside.sock.sendall(head + body()[:-1])
        while server_in_flight(server) == 0:
            time.sleep(0.01)
        server.process.send_signal(number)
        server.process.send_signal(number)  # a closed terminal may send it twice
        time.sleep(0.5)
        inside.sock.sendall(body()[-1:])
        assert inside.sock.recv(100).startswith(b"HTTP/1.1 200 ")
    if number in (signal.SIGUSR1, signal.SIGUSR2):
        with contextlib.closing(server.connect()) as connection:
            assert one(connection, seen)
        server.process.terminate()
        assert number.name in server.end()
    else:
        assert "draining" in server.end()


def server_in_flight(server: Server) -> float:
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("regnet_deploy_in_flight_requests "))


def test_what_the_parent_has_ignored_stays_ignored(start: Callable[..., Server]):
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = start()
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert server.is_ready()
    server.process.terminate()
    assert "SIGHUP" not in server.end()
