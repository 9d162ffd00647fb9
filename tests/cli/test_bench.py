"""The command `bench` on a real server."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import update_bundle
from regnet_deploy.load_testing.server_process import running_server


@pytest.fixture(scope="module")
def url(_exported: Path) -> Iterator[str]:
    """A server of the bundle."""
    with running_server(_exported, ["--variant", "onnx-fp32"]) as url:
        yield url


def test_rates_are_told_as_a_table_with_a_picture(cli: Any, exported_bundle: Path, url: str, tmp_path: Path):
    picture, words = tmp_path / "rates.png", ["--rate", "20,40", "--duration", "0.4", "--warmup", "0.1"]
    done = cli("bench", exported_bundle, "--url", url, *words, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert "16 golden images as tensors" in done.stdout
    assert "wrote" in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_rates_as_json_add_up_and_answers_are_right(cli: Any, exported_bundle: Path, url: str, kind: str):
    words = ["--rate", "30", "--duration", "0.5", "--warmup", "0", "--arrivals", "constant", "--kind", kind, "--json"]
    done = cli("bench", exported_bundle, "--url", url, *words)
    (row,) = json.loads(done.stdout)["rates"]
    assert row["requests"] == row["ok"] == row["latency"]["count"] == 15
    assert row["offered"] == 30
    printed = json.loads(done.stdout)
    assert printed["served"]["variant"] == "onnx-fp32"
    assert [printed[name] for name in ("duration_s", "warmup_s", "timeout_s", "connections")] == [0.5, 0, 10, 256]
    assert printed["machine"]["versions"]["regnet-deploy"]


def test_rates_of_its_own_follow_the_capacity(cli: Any, exported_bundle: Path, url: str):
    done = cli("bench", exported_bundle, "--url", url, "--duration", "0.3", "--warmup", "0", "--json")
    assert "capacity: " in done.stderr
    printed = json.loads(done.stdout)
    assert len(printed["rates"]) == 8
    assert printed["capacity"]["achieved"] > 0


def test_a_closed_loop_tells_the_capacity(cli: Any, exported_bundle: Path, url: str):
    done = cli("bench", exported_bundle, "--url", url, "--closed", "2", "--duration", "0.2", "--warmup", "0")
    assert done.returncode == 0
    assert "2 in flight" in done.stdout


def test_answers_that_are_wrong_are_told_and_are_exit_code_3(cli: Any, exported_bundle: Path, url: str):
    words = ["--rate", "40", "--duration", "0.5", "--warmup", "0"]
    with mixing_proxy(url, after=16) as mixing:
        done = cli("bench", exported_bundle, "--url", mixing, *words)
    assert done.returncode == 3
    assert "16 golden images as tensors" in done.stdout  # the report comes first
    assert "*" in done.stdout or "0.0" in done.stdout
    assert "answers were wrong: those of another image" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("regnet-deploy: ")


def test_what_the_percentiles_leave_out_and_why_connections_failed_is_said(cli: Any, exported_bundle: Path, url: str):
    words = ["--rate", "40", "--duration", "0.5", "--warmup", "0"]
    with mixing_proxy(url, after=16, hangs_up=True) as mixing:
        done = cli("bench", exported_bundle, "--url", mixing, *words)
    assert done.returncode == 2, done.stderr
    assert "16 golden images as tensors" in done.stdout  # the report comes first
    assert re.match(
        r"regnet-deploy: \d+ of 20 requests failed \(\d+ connection; the last connection: .*\), at http",
        done.stderr.splitlines()[-1],
    )
    assert "connections failed, the last one with: the connection was closed before the answer" in done.stderr
    assert "percentiles (*) are of the" in done.stderr
    assert "of 20 are left out" in done.stderr


def test_a_picture_of_nothing_is_not_drawn_and_that_is_said(cli: Any, exported_bundle: Path, url: str, tmp_path: Path):
    words = ["--rate", "40", "--duration", "0.2", "--warmup", "0", "--timeout", "0.01", "--plot", tmp_path / "x.png"]
    with mixing_proxy(url, after=16, delay_s=0.1) as slow:
        done = cli("bench", exported_bundle, "--url", slow, *words)
    assert done.returncode == 2  # every request ran into its timeout
    assert "requests failed (" in done.stderr
    assert not (tmp_path / "x.png").exists()


@contextlib.contextmanager
def mixing_proxy(url: str, after: int, hangs_up: bool = False, delay_s: float = 0.0) -> Iterator[str]:
    """What answers as the server does, but from some inferences on with the answer before it, late, or every other."""
    bodies: list[tuple[bytes, str]] = []
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            self.pass_on(self.rfile.read(int(self.headers["content-length"])))

        def pass_on(self, body: bytes | None) -> None:
            asked = urllib.request.Request(url + self.path, body, dict(self.headers))
            with lock, urllib.request.urlopen(asked) as answer:
                given = answer.read(), answer.headers.get("inference-header-content-length", "")
                if body is not None:
                    bodies.append(given)
                late = len(bodies) > after
                if late and not hangs_up and not delay_s:
                    given = bodies[-2]
            time.sleep(delay_s if late else 0.0)
            if late and hangs_up and len(bodies) % 2:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("content-length", str(len(given[0])))
            if given[1]:
                self.send_header("inference-header-content-length", given[1])
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(given[0])

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_an_interrupted_run_prints_what_it_has(start_cli: Any, exported_bundle: Path, url: str):
    words = ["--rate", "50,60", "--duration", "60", "--json"]
    process = start_cli("bench", exported_bundle, "--url", url, *words)
    before = inferences(url)
    while inferences(url) < before + 50:  # the golden images are 16: the load has begun
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.endswith("regnet-deploy: interrupted\n")
    (row,) = json.loads(printed)["rates"]
    assert row["interrupted"]
    assert row["offered"] == 50


def inferences(url: str) -> int:
    with urllib.request.urlopen(f"{url}/v2/models/regnet/stats") as answer:
        (one,) = json.load(answer)["model_stats"]
    return int(one["inference_stats"]["success"]["count"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rate", "fast"], "'fast' is neither auto nor a list of rates such as 20,50,100"),
        (["--rate", "10,-1"], "has a rate that is not above 0"),
        (["--rate", "10", "--closed", "4"], "give one of them"),
        (["--closed", "4", "--plot", "x.png"], "--plot shows latency by rate"),
        (["--closed", "4", "--arrivals", "constant"], "--arrivals has no effect with --closed"),
        (["--closed", "4", "--seed", "1"], "--seed has no effect with --closed"),
        (["--closed", "4", "--connections", "9"], "--connections has no effect with --closed"),
        (["--rate", "1000000", "--duration", "86400"], "more than the 5000000 requests"),
        (["--rate", "0.1", "--duration", "5"], "is less than one request: give a --duration of 10 s"),
        (["--plot", "x.gif"], "a figure is written as"),
        (["--url", "ftp://x"], "--url 'ftp://x' is not the address of a server"),
        (["--url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--token-file", "nowhere"], "cannot read the token file nowhere"),
        (["--images", "nowhere"], "no image folder at nowhere"),
        (["--duration", "nan"], "--duration"),
    ],
)
def test_what_cannot_be_is_one_line(cli_error: Any, exported_bundle: Path, tmp_path: Path, words: list[str], says: str):
    assert says in cli_error("bench", exported_bundle, *words, cwd=tmp_path)


def test_more_connections_than_open_files_are_one_line(cli_error: Any, exported_bundle: Path):
    prelude = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))"
    line = cli_error("bench", exported_bundle, "--connections", "4000", prelude=prelude)
    assert "--connections 4000 needs 4032 open files and this process may have 128" in line


def test_a_wrong_model_and_a_bundle_without_golden_set_are_one_line(cli_error: Any, exported_bundle: Path, url: str):
    assert "no model 'other'" in cli_error("bench", exported_bundle, "--url", url, "--name", "other")
    update_bundle(exported_bundle, {}, drop=("golden", "golden.safetensors"))
    assert "export --onnx" in cli_error("bench", exported_bundle, "--url", url)
