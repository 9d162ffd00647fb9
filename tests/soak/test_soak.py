"""Half an hour of everything at once against one server: no wrong answer, none lost, nothing that grows.

Marked `soak`. SOAK_MINUTES is how long (30); SOAK_REPORT names a file for the report as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
READ_TIMEOUT_S, DRAIN_S = 5.0, 20.0

#: What may grow in the second half. 8 MB are less than a hundred bytes for each request of 15 minutes, and less than a
#: tenth of what the versions that are put in that time would take if they were kept; allocators take such steps. Of the
#: children only those that live count, and one is killed every 5 s: the tree moves by more. A thread more would be one
#: that a version left behind; the few files more are connections that a burst had just opened.
GROWTH = {"rss": 8e6, "tree": 24e6, "threads": 1.5, "files": 6.0}
#: Minutes below which growth is reported and not judged: a server warms up, allocator and thread pools fill.
JUDGED_FROM = 10.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(int(MINUTES * 60 + 600))]


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Server:
    """The one server, its ports and its log."""

    def __init__(self, repository: Path, log: Path) -> None:
        options = ["--port", "0", "--grpc-port", "0", "--metrics-port", "0", "--poll", "0.5", "--json"]
        options += ["--variant", "onnx-fp32", "--device", "cpu", "--decoders", "2", "--max-batch", "8"]
        options += ["--max-queue", "16", "--max-in-flight", "64", "--max-connections", "128", "--max-body-mb", "1"]
        options += ["--max-bodies-mb", "16", "--read-timeout", f"{READ_TIMEOUT_S:g}", "--drain", f"{DRAIN_S:g}"]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "regnet_deploy", "serve", str(repository), *options],
                stdout=subprocess.PIPE,
                stderr=output,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, log.read_text()
        facts = json.loads(line)
        self.port = int(facts["url"].rsplit(":", 1)[1])
        self.grpc_port = facts["grpc_port"]
        self.metrics = facts["metrics"]


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    """Half an hour is not spent by `pytest` alone."""
    if "SOAK_MINUTES" not in os.environ and "soak" not in request.config.option.markexpr:
        pytest.skip("takes half an hour")


@pytest.fixture
def modules() -> dict[str, ModuleType]:
    names = ("books", "disturbances", "traffic", "worlds")
    return {name: load(HERE / f"{name}.py", f"soak_{name}") for name in names} | {
        "tiny": load(HERE.parent / "conftest.py", "soak_tiny")
    }


@pytest.fixture
def world(modules: dict[str, ModuleType], tmp_path: Path) -> Any:
    (tmp_path / "made").mkdir()
    return modules["worlds"].make_world(tmp_path / "made", modules["tiny"])


@pytest.fixture
def server(world: Any, tmp_path: Path) -> Iterator[Server]:
    repository = tmp_path / "models"
    shutil.copytree(world.bundles[1], repository / "moving" / "1")
    shutil.copytree(world.bundles[1], repository / "inplace")
    one = Server(repository, tmp_path / "server.log")
    yield one
    if one.process.poll() is None:
        one.process.kill()
    one.process.communicate()


def test_nothing_is_wrong_lost_or_growing(server: Server, world: Any, modules: dict[str, Any], tmp_path: Path):
    books_of, traffic, worlds = modules["books"], modules["traffic"], modules["worlds"]
    books, stop, pid = books_of.Books(), threading.Event(), server.process.pid
    field = traffic.Field(server.port, server.grpc_port, world, books, stop, READ_TIMEOUT_S)
    samples = books_of.Samples(pid)
    time.sleep(1)
    idle = samples.take()
    swaps = modules["disturbances"].Swaps(field, tmp_path / "models", worlds, traffic.MOVING, traffic.IN_PLACE)
    work = [
        (client, (field, 100 * kind + number))
        for kind, (client, count) in enumerate(traffic.CLIENTS)
        for number in range(count)
    ]
    work += [
        (modules["disturbances"].kill_decoders, (field, books, pid, books_of.children_of, 5.0)),
        (swaps.run, (3.0,)),
        (scrape, (server.metrics, books, stop)),
    ]
    threads = [threading.Thread(target=guarded, args=(books, *one), daemon=True) for one in work]
    start, cpu = time.monotonic(), books_of.cpu_s(pid)
    for thread in threads:
        thread.start()
    every = min(10.0, MINUTES * 60 / 12)
    while time.monotonic() - start < MINUTES * 60 and server.process.poll() is None:
        stop.wait(every)
        samples.take()
    busy = (books_of.cpu_s(pid) - cpu) / (time.monotonic() - start)
    stop.set()
    for thread in threads:
        thread.join(60)
    left = [thread.name for thread in threads if thread.is_alive()]
    grown = {what: samples.growth(what) for what in GROWTH}
    time.sleep(READ_TIMEOUT_S + 2)  # what vanished or was slow has been noticed by then
    after = books_of.Samples(pid).take()
    live_at_end = server.process.poll() is None
    code = end(server, world)
    report = {
        "minutes": MINUTES,
        "exit_code": code,
        "server_cores_busy": round(busy, 2),
        "growth_in_second_half": {what: round(value, 1) for what, value in grown.items()},
        "idle_before": vars(idle),
        "idle_after": vars(after),
        "samples": samples.to_json(),
        **books.to_json(),
    }
    show(report)
    if "SOAK_REPORT" in os.environ:
        Path(os.environ["SOAK_REPORT"]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    assert live_at_end, server.log.read_text()[-3000:]
    assert not books.failures, "\n".join(books.failures[:20])
    assert not left, f"clients that do not come back: {left}"
    assert len(books.lost_to_kills) <= len(books.kills)
    assert all(any(0 <= lost - kill < 5 for kill in books.kills) for lost in books.lost_to_kills)
    # Idle again, the server holds what it held: pools of threads may have filled.
    assert after.threads <= idle.threads + 4 + (os.cpu_count() or 1)
    assert after.files <= idle.files + 4
    if MINUTES >= JUDGED_FROM:
        assert all(grown[what] <= most for what, most in GROWTH.items()), grown
    said = server.log.read_text()
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]
    assert code == 0, said[-3000:]


def guarded(books: Any, work: Any, arguments: tuple[Any, ...]) -> None:
    """Run a client; one that breaks is a failure of the test."""
    try:
        work(*arguments)
    except Exception as error:
        books.fail(f"{getattr(work, '__name__', work)} broke: {type(error).__name__} {error}")


def scrape(url: str, books: Any, stop: threading.Event) -> None:
    """Read the metrics as Prometheus does."""
    import urllib.request

    while not stop.is_set():
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                found = len(re.findall(rb"^[a-z]\S* \S+$", answer.read(), re.M))
            books.note("metrics", "200" if found > 20 else f"{found} lines")
        except OSError as error:
            books.fail(f"metrics: {error}")
        stop.wait(5)


def end(server: Server, world: Any) -> int:
    """Send SIGTERM while requests are inside, and return the exit code; those inside get their answers."""
    import http.client

    if server.process.poll() is not None:
        return int(server.process.returncode)
    body, length = world.tensors[0].binary
    inside = []
    for _ in range(4):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.putrequest("POST", "/v2/models/moving/infer")
        connection.putheader("Inference-Header-Content-Length", str(length))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[:100])
        inside.append(connection)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    statuses = []
    for connection in inside:
        connection.send(body[100:])
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
        connection.close()
    code = server.process.wait(DRAIN_S + 30)
    assert statuses == [200] * len(inside)
    return code


def show(report: dict[str, Any]) -> None:
    """Print what is worth reading."""
    print(f"\n{report['minutes']:g} min; server {report['server_cores_busy']} cores busy; exit {report['exit_code']}")
    for kind, outcomes in report["requests"].items():
        times = report["latency_ms"].get(kind, {})
        told = " ".join(f"{name} {value} ms" for name, value in times.items())
        print(f"  {kind:15} {' '.join(f'{outcome}: {count}' for outcome, count in outcomes.items()):60} {told}")
    print(f"  decode processes killed {report['decode_processes_killed']}, requests lost {report['lost_to_kills']}")
    print(f"  done to it: {report['events']}")
    print(f"  growth in the second half: {report['growth_in_second_half']}")
    print("  s, MB, MB with children, threads, files, processes:")
    samples = report["samples"]
    for sample in samples[:: max(1, len(samples) // 24)]:
        print(f"    {sample}")
    for failure in report["failures"][:20]:
        print(f"  FAILED {failure}")
