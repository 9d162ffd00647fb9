"""Training on Ray: what comes of it is what comes of torchrun, whichever of its processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regnet_deploy.bundle import Bundle, create_bundle, open_bundle
from regnet_deploy.errors import DataError, MissingExtra, UsageError
from regnet_deploy.ray_cluster import RETRIES
from regnet_deploy.training import ray_process, ray_workers
from regnet_deploy.training.distributed import ALONE, ProcessGroup, ProcessLost
from regnet_deploy.training.interruption import stop_signals
from regnet_deploy.training.ray_workers import RayWorkers
from regnet_deploy.training.train import TrainOptions, train

Run = Callable[..., list[subprocess.CompletedProcess[str]]]
Start = Callable[..., subprocess.Popen[str]]

TRAIN = ["--batch-size", 9, "--crop-area", 0.5, "--device", "cpu", "--precision", "fp32", "--threads", 1]
TRAIN += ["--workers", 0, "--checkpoint-seconds", 0]


def test_the_number_of_workers_is_checked() -> None:
    with pytest.raises(UsageError, match="--ray-workers must be 1 or more, got 0"):
        RayWorkers(workers=0)


def test_without_ray_train_the_pip_command_is_named(
    bundle: Bundle, data: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[tune\]'"):
        train(bundle.path, data, {}, TrainOptions(options.execution, ray=RayWorkers()))


def test_a_ray_before_ray_train_was_rewritten_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__="2.50.1"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"--ray needs Ray 2\.51 or newer, not 2\.50\.1: pip install -U"):
        RayWorkers()("bundle", "data", {}, TrainOptions())


def test_a_worker_has_the_cores_that_are_reserved_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regnet_deploy.training.distributed.available_cores", lambda: 16)
    assert ALONE.cores == 16
    assert ProcessGroup(size=2, local_size=2, reserved_cores=3).cores == 3
    assert ProcessGroup(size=8, local_size=8, reserved_cores=3).cores == 2


def test_a_run_stops_when_who_started_it_asks() -> None:
    asked: list[bool] = []
    with stop_signals(also=lambda: bool(asked)) as stopping:
        assert not stopping()
        asked.append(True)
        assert stopping()


def test_the_worker_that_died_is_named_and_not_the_one_that_noticed() -> None:
    died = type("RayActorError", (Exception,), {"__module__": "ray.exceptions"})("The actor died\nunexpectedly")
    assert ray_process.loss_line({0: ProcessLost("another process has ended"), 1: died}) == "worker 1 died"
    assert ray_process.loss_line({0: ProcessLost("another process has ended")}) == "worker 0 died"
    assert ray_process.loss_line({2: ZeroDivisionError("a\nbug")}) == "worker 2 failed (ZeroDivisionError: a bug)"


def test_a_machine_that_does_not_see_the_folders_is_named(tmp_path: Path, data: Path) -> None:
    with ray_workers._shared_folder(tmp_path / "not" / "yet") as folder:
        assert folder.parent == tmp_path
        work: Any = SimpleNamespace(shared=str(folder), data=str(data))
        ray_process._ensure_seen(work, is_first=False)
        work.data = "https://example.invalid/shards-{0..9}.tar"
        ray_process._ensure_seen(work, is_first=False)
        work.data = str(tmp_path / "nowhere")
        ray_process._ensure_seen(work, is_first=True)  # says what is wrong with them itself
        with pytest.raises(DataError, match=r"does not see .*nowhere: the images must be at the same path"):
            ray_process._ensure_seen(work, is_first=False)
        (folder / "seen").unlink()
        with pytest.raises(DataError, match=r"does not see .*the run directory must be on a file system that all"):
            ray_process._ensure_seen(work, is_first=True)
    assert not list(tmp_path.glob(".ray-*"))


def failed_ray(cause: Exception) -> Any:
    """As much of Ray as says that a task failed."""
    ray = pytest.importorskip("ray", reason="needs Ray (extra [ray])")

    def get(reference: object) -> None:
        raise ray.exceptions.RayTaskError("fit", str(cause), cause)

    return SimpleNamespace(get=get, exceptions=ray.exceptions)


def test_workers_that_die_again_and_again_are_one_line_and_a_bug_keeps_its_traceback() -> None:
    lost = ValueError("lost")
    lost.worker_failures = {1: ProcessLost("another process has ended")}  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"^workers died {RETRIES + 1} times, now worker 1 died: the same command"):
        ray_workers._raise_failure(failed_ray(lost), None)
    lost.worker_failures = {1: ZeroDivisionError("a bug")}  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="lost") as error:
        ray_workers._raise_failure(failed_ray(lost), None)
    assert not isinstance(error.value, UsageError)
    with pytest.raises(UsageError, match=r"^Ray Train failed: ModuleNotFoundError: No module .*the same Python with"):
        ray_workers._raise_failure(failed_ray(ModuleNotFoundError("No module named 'regnet_deploy'")), None)


CLUSTER = """
import sys, ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster with two CPUs, and the environment of its processes."""
    pytest.importorskip("ray", reason="needs Ray (extra [ray])")
    pytest.importorskip("pandas", reason="needs Ray Tune (extra [tune])")
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    variables |= {"RAY_USAGE_STATS_ENABLED": "0", "TEST_CLUSTER": str(tmp_path_factory.mktemp("cluster"))}
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", CLUSTER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        assert address, head.stderr
        yield address, environment
        head.stdin.close()
        head.wait(60)


@pytest.fixture
def start(cluster: tuple[str, dict[str, str]]) -> Iterator[Start]:
    """Start `train` on the cluster with two workers."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "regnet_deploy", "train", *map(str, arguments), "--ray", cluster[0]]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=cluster[1]))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], start: str) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(start):
            return said
    raise AssertionError(said)


def workers_of(environment: dict[str, str]) -> list[int]:
    """Return the processes that train in a cluster."""
    found = []
    mark = f"TEST_CLUSTER={environment['TEST_CLUSTER']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if b"RayTrainWorker" in name and mark in variables:
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_ray_goes_on_after_kill_9_to_the_bits_of_torchrun(
    bundle: Bundle, data: Path, tmp_path: Path, start: Start, run_processes: Run, cluster: tuple[str, dict[str, str]]
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts)).path
    arguments = ["--data", data, "--epochs", 6, *TRAIN]
    assert {each.returncode for each in run_processes(2, "train", whole, *arguments)} == {0}
    process = start(bundle.path, *arguments, "--ray-workers", 2, "--json")
    until(process, "epoch 2/")
    workers = workers_of(cluster[1])
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    out, said = process.communicate(timeout=800)
    assert process.returncode == 0, said
    assert f"died: all workers start again from the last checkpoint (1 of {RETRIES} times)" in said
    assert "resuming at epoch" in said
    assert "raylet" not in said
    assert json.loads(out)["execution"]["execution"]["processes"] == 2
    assert open_bundle(bundle.path).files == open_bundle(whole).files
    assert not list(tmp_path.rglob(".ray-*"))
    assert not workers_of(cluster[1])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_with_a_checkpoint_and_torchrun_continues(
    bundle: Bundle, data: Path, tmp_path: Path, start: Start, run_processes: Run, signalled: signal.Signals
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts)).path
    arguments = ["--data", data, "--epochs", 12, *TRAIN]
    assert {each.returncode for each in run_processes(2, "train", whole, *arguments)} == {0}
    process = start(bundle.path, *arguments, "--ray-workers", 2)
    until(process, "epoch 2/")
    process.send_signal(signalled)
    out, said = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), said
    assert "regnet-deploy: interrupted: a checkpoint is written and the bundle is unchanged" in said
    continued = run_processes(2, "train", bundle.path, *arguments)
    assert {each.returncode for each in continued} == {0}, continued
    assert "resuming at epoch" in continued[0].stderr
    assert open_bundle(bundle.path).files == open_bundle(whole).files


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("more", "data_name", "said"),
    [
        (["--ray-workers", 3], "data", "regnet-deploy: the cluster has no room for 3 workers with 1 CPU each: it has"),
        (["--ray-workers", 2], "nowhere", "regnet-deploy: "),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(
    bundle: Bundle, data: Path, tmp_path: Path, start: Start, more: list[object], data_name: str, said: str
) -> None:
    process = start(bundle.path, "--data", tmp_path / data_name, *TRAIN, *more)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, ""), err
    assert err.splitlines()[-1].startswith(said)
    assert "Traceback" not in err
    assert not (tmp_path / "bundle.training").exists()
    assert not list(tmp_path.rglob(".ray-*"))
