"""Checklist 36-37: what has been served, refused and given up leaves nothing behind."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

MB = 10**6


def served(server: Any, tools: Any, count: int) -> None:
    body, headers = tools.binary(tools.tensor(2))
    image = tools.image()
    with server.connect() as connection:
        for number in range(count):
            if number % 4:
                request = head("/v2/models/regnet/infer", body, headers)
            else:
                request = head("/classify", image)
            connection.sendall(request)
            assert tools.read_reply(connection).status == 200


def refused(server: Any, tools: Any, count: int) -> None:
    bad = [
        head("/v2/models/regnet/infer", b'{"inputs":[' + b"1," * 1000 + b"1]}"),
        head("/v2/models/regnet/infer", bytes(1000), {"Content-Encoding": "gzip"}),
        head("/v2/models/none/infer", b""),
        head("/classify", tools.image()[:300]),
        head("/classify", b"--b\r\n", {"Content-Type": "multipart/form-data; boundary=b"}),
    ]
    connection = server.connect()
    for number in range(count):
        connection.sendall(bad[number % len(bad)])
        assert tools.read_reply(connection).status in (400, 404)
    connection.close()
    for _ in range(count // 20):
        assert server.raw(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n").status == 413


def given_up(server: Any, tools: Any, count: int) -> None:
    """Clients that go away: in the midst of a head, of a body, before the answer."""
    body, headers = tools.binary(tools.tensor(2))
    whole = head("/v2/models/regnet/infer", body, headers)
    for number in range(count):
        with contextlib.suppress(OSError), server.connect() as connection:
            connection.sendall(whole[: (50, len(whole) // 2, len(whole))[number % 3]])


def head(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode() + body


def at_once(work: Any, server: Any, tools: Any, count: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, server, tools, count // 4) for _ in range(4)]:
            done.result()


def round_of(server: Any, tools: Any, good: int, bad: int, gone: int) -> None:
    at_once(served, server, tools, good)
    at_once(refused, server, tools, bad)
    at_once(given_up, server, tools, gone)


def flat(server: Any, tools: Any, good: int, bad: int, gone: int, growth: int) -> None:
    """Make a round, then another one, behind which there must be no more than behind the first."""
    round_of(server, tools, min(good, 600), min(bad, 600), min(gone, 200))
    tools.wait_until(lambda: idle(server))
    descriptors, threads, memory = server.descriptors(), server.threads(), server.memory()
    workers = server.workers()
    round_of(server, tools, good, bad, gone)
    tools.wait_until(lambda: idle(server))
    tools.wait_until(lambda: server.descriptors() <= descriptors)
    assert server.threads() <= threads
    assert server.memory() - memory < growth
    assert server.workers() == workers
    server.answers()


def idle(server: Any) -> bool:
    lines = server.get("/metrics").body.decode().splitlines()
    inside = [line for line in lines if line.startswith("regnet_deploy_in_flight_requests")]
    assert inside
    return all(float(line.rsplit(" ", 1)[1]) == 0 for line in inside)


def test_36_and_37_memory_descriptors_and_threads_stay(server: Any, tools: Any):
    flat(server, tools, 600, 600, 200, 10 * MB)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_36_and_37_they_stay_for_a_hundred_thousand(launch: Any, tools: Any):
    server = launch("--max-body-mb", "2", "--grpc-port", "0")
    flat(server, tools, 100_000, 100_000, 10_000, 15 * MB)
