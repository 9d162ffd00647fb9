"""On Ray a sweep has the results that it has in one process, whichever of its processes are killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import DataError, MissingExtra, UsageError
from regnet_deploy.populations.store import DONE, FAILED, Trial, TrialOutcome
from regnet_deploy.sweeping import ray_executor
from regnet_deploy.sweeping.ray_executor import RayExecutor, run_in_worker
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.sweeping.trial import run_locally, run_trial
from regnet_deploy.training.recipe import Recipe

Results = Callable[[dict[int, TrialOutcome]], dict[int, dict[str, Any]]]
Run = Callable[[RayExecutor, list[Trial]], dict[int, TrialOutcome]]

#: What Ray leaves open or is deprecated in it is Ray's.
pytestmark = [
    pytest.mark.alone,  # Ray gives its processes 30 s to start
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray, with workers that find this package; shut down at the end whatever became of the test.

    Tests in other processes wait for it: two clusters that start at once may time out.
    """
    ray = pytest.importorskip("ray", reason="needs Ray (extra [ray])")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield ray
        ray.shutdown()


@pytest.fixture
def run(images: SweepImages, recipe: Recipe, execution: Execution) -> Run:
    def call(executor: Any, trials: list[Trial]) -> dict[int, TrialOutcome]:
        ended = executor(trials, images, recipe, execution, lambda trial, fraction, rate: None)
        return {trial.number: outcome for trial, outcome in ended}

    return call


def killed_once(
    trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int, board: Any
) -> TrialOutcome:
    """As `run_in_worker`, but the first process that has trial 1 is killed in the middle of it."""
    mark = Path(os.environ["TEST_MARK"])
    if trial.number == 1 and not mark.exists():

        def on_step(fraction: float, rate: float) -> None:
            if fraction > 0.4:
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

        run_trial(trial, images, recipe, execution, on_step)
    return run_in_worker(trial, images, recipe, execution, threads, board)


def killed_always(
    trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int, board: Any
) -> TrialOutcome:
    """Outcomes of their own, but trial 1 is the end of every process."""
    if trial.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return TrialOutcome(DONE, float(trial.number))


def images_gone(
    trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int, board: Any
) -> TrialOutcome:
    raise DataError("none of the training images can be read any more")


def by_value(function: Callable[..., TrialOutcome], monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    """Have a function of this file run in the workers, which cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    monkeypatch.setattr(ray_executor, "run_in_worker", function)


def test_results_are_those_of_one_process_though_a_worker_is_killed_in_the_middle_of_a_trial(
    ray: Any, run: Run, trials: list[Trial], results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MARK", str(tmp_path / "mark"))
    by_value(killed_once, monkeypatch, ray)
    found = run(RayExecutor(), trials[:4])
    assert (tmp_path / "mark").exists()
    assert sorted(found) == [0, 1, 2, 3]
    assert results(found) == results(run(run_locally, trials[:4]))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_trial_that_kills_every_worker_has_failed_and_the_others_go_on(
    ray: Any, run: Run, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_value(killed_always, monkeypatch, ray)
    found = run(RayExecutor(), trials[:3])
    assert {number: outcome.state for number, outcome in found.items()} == {0: DONE, 1: FAILED, 2: DONE}
    assert found[1].message.startswith("its worker died 4 times: ")
    assert "\n" not in found[1].message


def test_what_a_worker_says_for_the_user_is_said_as_it_is(
    ray: Any, run: Run, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_value(images_gone, monkeypatch, ray)
    with pytest.raises(DataError) as error:
        run(RayExecutor(), trials[:2])
    assert str(error.value) == "none of the training images can be read any more"
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (RayExecutor(cpus=4096.0), "a trial needs 4096 CPUs, and no machine of the cluster has as many"),
        pytest.param(RayExecutor(gpus=64.0), "lower --gpus-per-trial", marks=pytest.mark.slow),
    ],
)
def test_resources_that_no_machine_has_are_one_line(
    ray: Any, run: Run, trials: list[Trial], executor: RayExecutor, said: str
) -> None:
    with pytest.raises(UsageError) as error:
        run(executor, trials)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not ray.is_initialized()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "no-such-host.invalid:6379"])
def test_an_address_that_refuses_connections_is_one_line_at_once(
    ray: Any, run: Run, trials: list[Trial], address: str
) -> None:
    address, start = address.format(port=free_port()), time.monotonic()
    with pytest.raises(UsageError) as error:
        run(RayExecutor(address), trials)
    assert str(error.value).startswith(f"cannot connect to Ray at {address}: ")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "h\x00st:1", f"{'a' * 70}.x:1"])
def test_an_invalid_address_is_one_line(ray: Any, run: Run, trials: list[Trial], address: str) -> None:
    with pytest.raises(UsageError, match="cannot connect to Ray at"):
        run(RayExecutor(address), trials)


@pytest.mark.parametrize("kind", [Exception, TimeoutError, "RaySystemError"])
def test_a_ray_that_does_not_start_in_time_is_one_line(
    ray: Any, run: Run, trials: list[Trial], monkeypatch: pytest.MonkeyPatch, kind: type[Exception] | str
) -> None:
    def too_slow(**_: object) -> None:
        raised = getattr(ray.exceptions, kind) if isinstance(kind, str) else kind
        raise raised("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(UsageError, match=r"^cannot start Ray on this machine: .*timed out during startup") as error:
        run(RayExecutor(), trials)
    assert "\n" not in str(error.value)


def test_a_mistake_in_the_call_of_ray_keeps_its_traceback(
    ray: Any, run: Run, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(**_: object) -> None:
        raise TypeError("init() got an unexpected keyword argument")

    monkeypatch.setattr(ray, "init", mistaken)
    with pytest.raises(TypeError):
        run(RayExecutor(), trials)


@pytest.mark.slow
def test_an_executor_that_is_closed_leaves_nothing_running(
    ray: Any, trials: list[Trial], images: SweepImages, recipe: Recipe, execution: Execution
) -> None:
    longer = [replace(trial, epochs=2000) for trial in trials[:3]]
    ended = RayExecutor()([trials[3], *longer], images, recipe, execution, lambda trial, fraction, rate: None)
    assert next(iter(ended))[0].number == 3
    with contextlib.closing(ended):  # type: ignore[type-var]
        pass
    assert not ray.is_initialized()


def test_without_ray_the_pip_command_is_named(run: Run, trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[ray\]'"):
        run(RayExecutor(), trials)
