"""Triton's own load generator, unchanged, over HTTP and gRPC; PERF_ANALYZER names the program."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PERF_ANALYZER = os.environ.get("PERF_ANALYZER")

pytestmark = [
    pytest.mark.triton,
    pytest.mark.timeout(280),
    pytest.mark.skipif(PERF_ANALYZER is None, reason="needs PERF_ANALYZER, the path of Triton's perf_analyzer"),
]


@pytest.fixture
def facts(exported_bundle: Path) -> Iterator[dict[str, Any]]:
    """What a server of the tiny bundle says of itself."""
    command = [sys.executable, "-m", "regnet_deploy", "serve", str(exported_bundle), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--grpc-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_measures_this_server_as_it_does_triton(facts: dict[str, Any], protocol: str):
    address = facts["url"].removeprefix("http://") if protocol == "http" else f"127.0.0.1:{facts['grpc_port']}"
    assert PERF_ANALYZER is not None
    command = [PERF_ANALYZER, "-m", "regnet", "-u", address, "-i", protocol, "--concurrency-range", "4"]
    # So many requests, not so many milliseconds, and whatever the noise: it is not the figures that matter here.
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", "300", "-s", "999", "-b", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Throughput:" in done.stdout
    assert "queue" in done.stdout.partition("Server:")[2]  # from the statistics of the server
