"""Runs trials on Ray, on this machine or on a cluster, several at a time, each with its own resources."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import RegnetDeployError, UsageError, require
from regnet_deploy.populations.store import FAILED, Trial, TrialOutcome
from regnet_deploy.ray_cluster import LOCAL, RETRIES, connected, error_line
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.sweeping.trial import TrialCallback, run_trial
from regnet_deploy.training.recipe import Recipe

_POLL_S = 1.0
_REQUIREMENT = "every machine needs the same Python with regnet-deploy[sweep,ray] installed"


@dataclass(frozen=True)
class RayExecutor:
    """An executor for :func:`regnet_deploy.sweeping.sweep.sweep`.

    Attributes:
        address: address of a cluster (``auto``, ``host:6379``, ``ray://host:10001``); ``local`` starts one here.
        cpus: CPUs of a trial, and its number of threads.
        gpus: GPUs of a trial; with 0.25, four trials share a GPU.
    """

    address: str = LOCAL
    cpus: float = 1.0
    gpus: float = 0.0

    def __call__(
        self, trials: Iterable[Trial], images: SweepImages, recipe: Recipe, execution: Execution, on_step: TrialCallback
    ) -> Generator[tuple[Trial, TrialOutcome], None, None]:
        """Yield each trial with its outcome, in the order of their completion.

        A trial whose worker is killed is repeated; it failed if the worker is killed every time. On an existing
        cluster, its own setting ``RAY_task_oom_retries`` limits the repetitions after Ray killed a worker for lack of
        memory. Every machine needs the same Python and regnet-deploy, and images that do not fit into memory must be at
        the same path.

        Raises:
            MissingExtra: Ray is not installed.
            UsageError: the cluster cannot be reached, or no machine of it has the resources of a trial.
        """
        ray = require("ray", "ray")
        with connected(ray, self.address):
            self.check_resources(ray)
            threads = max(1, int(self.cpus))
            run = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(run_in_worker)
            board = ray.remote(num_cpus=0)(ProgressBoard).remote()
            shared = _put(ray, images)
            pending, by_number = iter(trials), {}
            running: dict[Any, Trial] = {}
            try:
                while True:
                    for trial in itertools.islice(pending, self._max_submitted(ray) - len(running)):
                        running[run.remote(trial, shared, recipe, execution, threads, board)] = trial
                        by_number[trial.number] = trial
                    if not running:
                        return
                    completed, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
                    for number, (fraction, rate) in _result(ray, board.take.remote()).items():
                        if number in by_number:
                            on_step(by_number[number], fraction, rate)
                    for reference in completed:
                        trial = running.pop(reference)
                        outcome = _outcome(ray, reference)
                        del by_number[trial.number]
                        yield trial, outcome
            finally:
                for reference in running:  # on an existing cluster they would continue
                    ray.cancel(reference, force=True)

    def _max_submitted(self, ray: Any) -> int:
        """Return how many trials to submit: twice as many as can run, so that no worker is idle."""
        available = ray.cluster_resources()
        slots = available.get("CPU", 1.0) / self.cpus
        if self.gpus:
            slots = min(slots, available.get("GPU", 0.0) / self.gpus)
        return 2 * max(1, int(slots))

    def check_resources(self, ray: Any) -> None:
        """Raise if no machine of the cluster has the resources of a trial."""
        available = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0):
                raise UsageError(
                    f"a trial needs {wanted:g} {name}s, and no machine of the cluster has as many "
                    f"(the cluster has {available.get(name, 0.0):g}): lower --{name.lower()}s-per-trial"
                )


class ProgressBoard:
    """Progress of the running trials: an actor that the workers write to and the driver reads."""

    def __init__(self) -> None:
        self._updates: dict[int, tuple[float, float]] = {}

    def put(self, number: int, fraction: float, rate: float) -> None:
        """Set the completed fraction of a trial, and its images/s."""
        self._updates[number] = (fraction, rate)

    def take(self) -> dict[int, tuple[float, float]]:
        """Return the updates since the last call."""
        updates, self._updates = self._updates, {}
        return updates


def run_in_worker(
    trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int, board: Any
) -> TrialOutcome:
    """Run a trial in a worker process of Ray."""
    import torch

    last_update = 0.0

    def on_step(fraction: float, rate: float) -> None:
        nonlocal last_update
        now = time.monotonic()
        if now - last_update >= _POLL_S:
            last_update = now
            board.put.remote(trial.number, fraction, rate)

    torch.set_num_threads(threads)
    # Processes that load images share the CPUs of their trial.
    return run_trial(trial, images, recipe, execution, on_step, max_workers=threads)


def _put(ray: Any, images: SweepImages) -> Any:
    try:
        return ray.put(images)
    except ray.exceptions.RayError as error:
        raise UsageError(
            f"the images do not fit into Ray's memory: {error_line(error)}; run the sweep without --ray"
        ) from None


def _outcome(ray: Any, reference: Any) -> TrialOutcome:
    """Return the outcome of a trial: a failure if its worker died every time."""
    try:
        outcome: TrialOutcome = _result(ray, reference)
    except _worker_errors(ray) as error:
        return TrialOutcome(FAILED, message=f"its worker died {RETRIES + 1} times: {error_line(error)}")
    return outcome


def _result(ray: Any, reference: Any) -> Any:
    """Return the result of a task.

    Raises:
        RegnetDeployError: raised by the task.
        UsageError: a machine of the cluster cannot run it, or Ray failed.
    """
    try:
        return ray.get(reference)
    except _worker_errors(ray):
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RegnetDeployError):
            raise error.cause from None  # without the traceback of the worker
        if isinstance(error.cause, ImportError):
            raise UsageError(f"{error_line(error.cause)} on a machine of the cluster: {_REQUIREMENT}") from None
        raise
    except ray.exceptions.RayError as error:
        raise UsageError(f"Ray failed: {error_line(error)}; run the same command again to continue") from None


def _worker_errors(ray: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that Ray raises if a worker died."""
    return (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
