"""The command `tune`: what it writes and when it does not; for real in a slow test."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.measurements import ServerSetting, Serving
from regnet_deploy.load_testing.tuning import LoadTrial
from regnet_deploy.runtimes.tuned_settings import machine_summary, tuned_settings


class Running:
    """A server that bears 100 images/s at 20 ms, and half as many again with pixels as input."""

    def __init__(self, setting: ServerSetting) -> None:
        self.bears = 150.0 if setting.variant == "onnx-fp32-uint8" else 100.0

    def capacity(self) -> float:
        return 2 * self.bears

    def measure(self, rate: float) -> LoadTrial:
        return LoadTrial(rate, rate, 20 * rate / self.bears, 0)


@pytest.fixture
def fake_servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Running]], None]:
    """Measurements without a server."""

    def use(running: type[Running] = Running) -> None:
        @contextlib.contextmanager
        def start(setting: ServerSetting) -> Iterator[Running]:
            yield running(setting)

        monkeypatch.setattr(
            "regnet_deploy.load_testing.bundle_tuning.ServerStarter.start", lambda starter, setting: start(setting)
        )

    return use


def test_what_was_found_is_written_and_holds_on_this_machine(cli: Any, exported_bundle: Path, fake_servers: Any):
    fake_servers()
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime")
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(exported_bundle)
    part = bundle.parts["serving"]
    assert part["machine"] == machine_summary().to_json()
    assert part["settings"]["variant"] == "onnx-fp32-uint8"
    assert 140 < part["rate"] <= 150
    assert len(part["rows"]) >= 4
    found = tuned_settings(bundle)
    assert isinstance(found, Serving)
    assert found.settings.variant == "onnx-fp32-uint8"
    assert "tune" in bundle.parts["environment"]
    assert "selected: the simplest" in done.stdout
    assert "uses these settings on this machine" in done.stderr


def test_json_is_what_was_written(cli: Any, exported_bundle: Path, fake_servers: Any):
    fake_servers()
    done = cli("tune", exported_bundle, "--variant", "onnx-fp32", "--runtime", "onnxruntime", "--json")
    printed = json.loads(done.stdout)
    assert printed["written"]
    assert {name: printed[name] for name in open_bundle(exported_bundle).parts["serving"]} == open_bundle(
        exported_bundle
    ).parts["serving"]
    assert {row["setting"]["variant"] for row in printed["rows"]} == {"onnx-fp32"}


def test_a_dry_run_writes_nothing(cli: Any, exported_bundle: Path, fake_servers: Any, snapshot: Any):
    fake_servers()
    before = snapshot(exported_bundle)
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime", "--dry-run")
    assert done.returncode == 0
    assert "nothing was written" in done.stderr
    assert snapshot(exported_bundle) == before


def test_a_limit_that_nothing_keeps_writes_nothing(cli: Any, exported_bundle: Path, fake_servers: Any, snapshot: Any):
    class Slow(Running):
        def measure(self, rate: float) -> LoadTrial:
            return LoadTrial(rate, rate, 50.0, 0)

    fake_servers(Slow)
    before = snapshot(exported_bundle)
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime")
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert "regnet-deploy: no setting stays within a p99 of 20 ms here: the lowest p99 was 50.0 ms" in last
    assert snapshot(exported_bundle) == before


def test_an_interrupt_leaves_the_bundle_as_it_was(cli: Any, exported_bundle: Path, fake_servers: Any, snapshot: Any):
    class Interrupted(Running):
        def measure(self, rate: float) -> LoadTrial:
            raise KeyboardInterrupt

    fake_servers(Interrupted)
    before = snapshot(exported_bundle)
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime")
    assert done.returncode == 130
    assert "nothing was written" in done.stderr
    assert done.stderr.endswith("as it was\nregnet-deploy: interrupted\n")
    assert snapshot(exported_bundle) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--variant", "onnx-fp3"], "did you mean onnx-fp32?"),
        (["--p99-ms", "0"], "--p99-ms"),
        (["--p99-ms", "1e6"], "--p99-ms"),  # a trial takes ten times as long
        (["--runtime", "tensorrt", "--device", "cpu"], "--device cpu was requested"),
        (["--runtime", "tensorrt"], "tensorrt"),
        (["--max-executors", "0"], "--max-executors"),
    ],
)
def test_what_cannot_be_is_one_line(cli_error: Any, exported_bundle: Path, words: list[str], says: str):
    assert says in cli_error("tune", exported_bundle, *words)


@pytest.mark.slow
def test_real_servers_are_tuned_and_the_settings_are_served(cli_process: Any, exported_bundle: Path):
    words = ["--p99-ms", "150", "--duration", "1", "--runtime", "onnxruntime", "--variant", "onnx-fp32", "--json"]
    words += ["--max-executors", "1", "--accept-doubtful"]  # other tests run at the same time
    done = cli_process("tune", exported_bundle, *words)
    assert done.returncode == 0, done.stderr
    part = open_bundle(exported_bundle).parts["serving"]
    assert part["rate"] > 0
    assert isinstance(tuned_settings(open_bundle(exported_bundle)), Serving)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    ("number", "measures"),
    [
        (signal.SIGINT, False),
        (signal.SIGINT, True),
        (signal.SIGTERM, True),
        (signal.SIGHUP, True),
        (signal.SIGKILL, False),
        (signal.SIGKILL, True),
    ],
)
def test_however_it_is_ended_no_server_is_left(
    start_cli: Any, exported_bundle: Path, snapshot: Any, number: Any, measures: bool
):
    before = snapshot(exported_bundle)
    words = ["--runtime", "onnxruntime", "--duration", "0.5", "--p99-ms", "50"]
    with start_cli("tune", exported_bundle, *words) as process:
        wait_until(lambda: servers_of(exported_bundle))
        if measures:  # the first setting is done, and the next one's server runs
            assert process.stderr is not None
            while "images/s" not in (line := process.stderr.readline()):
                assert line
            wait_until(lambda: servers_of(exported_bundle))
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (-9 if number == signal.SIGKILL else 130, ""), said
    if number == signal.SIGKILL:
        wait_until(lambda: not servers_of(exported_bundle))
    assert not servers_of(exported_bundle)
    assert snapshot(exported_bundle) == before


def servers_of(bundle: Path) -> list[str]:
    """Return the processes that serve a bundle; an argument of theirs is a program of several lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = process.joinpath("cmdline").read_text(errors="replace").split("\0")
            if "serve" in words and str(bundle) in words:
                found.append(process.name)
    return found


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other programs have used the machine."""
    monkeypatch.setattr("regnet_deploy.load_testing.bundle_tuning.OtherLoad.contended_cores", lambda load: 1e3)
    monkeypatch.setattr(Running, "__init__", lambda self, setting: setattr(self, "bears", 100.0))


def test_a_result_that_other_programs_may_have_decided_is_shown_and_not_written(
    cli: Any, exported_bundle: Path, fake_servers: Any, monkeypatch: pytest.MonkeyPatch, snapshot: Any
):
    doubtful(monkeypatch)
    fake_servers()
    before = snapshot(exported_bundle)
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["written"] is False
    assert "other programs used 1000.0 of" in json.loads(done.stdout)["doubts"][0]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("regnet-deploy: the result is doubtful and was not written: other programs used 1000.0 of")
    assert "--accept-doubtful" in last
    assert snapshot(exported_bundle) == before


def test_a_doubtful_result_is_written_where_that_is_asked_for(
    cli: Any, exported_bundle: Path, fake_servers: Any, monkeypatch: pytest.MonkeyPatch
):
    doubtful(monkeypatch)
    fake_servers()
    done = cli("tune", exported_bundle, "--runtime", "onnxruntime", "--accept-doubtful")
    assert done.returncode == 0, done.stderr
    assert open_bundle(exported_bundle).manifest.serving is not None
