"""Trials on Ray: on this machine or on a cluster, several at a time, with resources for each."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import RegnetDeployError, UsageError, require
from regnet_deploy.populations.store import FAILED, Outcome, Trial
from regnet_deploy.sweeping.local_executor import Watch
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.training.execution import Execution
from regnet_deploy.training.recipe import Recipe

LOCAL = "local"
#: How often Ray runs a trial again whose worker process died.
RETRIES = 3
_LOOK_S = 1.0
_ANSWERS_S = 5.0
_NEEDED = "every one needs the same Python with regnet-deploy[sweep,ray] installed"


@dataclass(frozen=True)
class RayExecutor:
    """An executor for :func:`regnet_deploy.sweeping.sweep.sweep`.

    Attributes:
        address: of a cluster (``auto``, ``host:6379``, ``ray://host:10001``); ``local`` starts one here.
        cpus: CPUs of a trial, which are its threads too.
        gpus: GPUs of a trial; 0.25 puts four of them on each.
    """

    address: str = LOCAL
    cpus: float = 1.0
    gpus: float = 0.0

    def __call__(
        self, trials: Iterable[Trial], images: SweepImages, recipe: Recipe, execution: Execution, watch: Watch
    ) -> Generator[tuple[Trial, Outcome], None, None]:
        """Yield each trial with its outcome as soon as it has one, in the order in which they end.

        A trial whose worker is killed is run again, and failed when it was killed every time. On a cluster of others
        it is their setting (``RAY_task_oom_retries``) how often one is that Ray itself killed for want of memory. Every
        machine needs the same Python and regnet-deploy, and images that do not fit into memory at the same path.

        Raises:
            MissingExtra: Ray is not installed.
            UsageError: the cluster cannot be reached, or can never give a trial what it asks for.
        """
        ray = require("ray", "ray")
        with _connected(ray, self.address):
            self._ensure_resources(ray)
            threads = max(1, int(self.cpus))
            run = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(run_in_worker)
            board = ray.remote(num_cpus=0)(ProgressBoard).remote()
            shared = _put(ray, images)
            left, by_number = iter(trials), {}
            running: dict[Any, Trial] = {}
            try:
                while True:
                    for trial in itertools.islice(left, self._at_a_time(ray) - len(running)):
                        running[run.remote(trial, shared, recipe, execution, threads, board)] = trial
                        by_number[trial.number] = trial
                    if not running:
                        return
                    ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_S)
                    for number, (share, rate) in _returned(ray, board.take.remote()).items():
                        if number in by_number:
                            watch(by_number[number], share, rate)
                    for reference in ended:
                        trial = running.pop(reference)
                        outcome = _outcome(ray, reference)
                        del by_number[trial.number]
                        yield trial, outcome
            finally:
                for reference in running:  # on a cluster of others they would go on without us
                    ray.cancel(reference, force=True)

    def _at_a_time(self, ray: Any) -> int:
        """Return how many trials to hand to Ray: as many as can run, and as many again, so that none waits for us."""
        there = ray.cluster_resources()
        slots = there.get("CPU", 1.0) / self.cpus
        if self.gpus:
            slots = min(slots, there.get("GPU", 0.0) / self.gpus)
        return 2 * max(1, int(slots))

    def _ensure_resources(self, ray: Any) -> None:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0):
                raise UsageError(
                    f"a trial is to have {wanted:g} {name}s, and no machine of the cluster has as many "
                    f"(all together {there.get(name, 0.0):g}): give fewer with --{name.lower()}s-per-trial"
                )


class ProgressBoard:
    """How far the running trials are; an actor that they write to and the driver reads."""

    def __init__(self) -> None:
        self._news: dict[int, tuple[float, float]] = {}

    def put(self, number: int, share: float, rate: float) -> None:
        """Take the share of a trial that is done, and images/s."""
        self._news[number] = (share, rate)

    def take(self) -> dict[int, tuple[float, float]]:
        """Return what was put since the last time."""
        news, self._news = self._news, {}
        return news


def run_in_worker(
    trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int, board: Any
) -> Outcome:
    """Run a trial in a process of Ray's."""
    import torch

    from regnet_deploy.sweeping.trial import run_trial

    told = 0.0

    def heard(share: float, rate: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _LOOK_S:
            told = now
            board.put.remote(trial.number, share, rate)

    torch.set_num_threads(threads)
    # Processes that load images share the CPUs of their trial.
    return run_trial(trial, images, recipe, execution, heard, most_workers=threads)


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to Ray and leave it again; a local one ends with this process however that ends.

    Ray's dashboard, which runs whatever it is sent, is not started, and nothing is reported to anyone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # by default without end
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own default from its next version on
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"address": "local", "include_dashboard": False}
    else:
        _ensure_answer(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"no Ray at {address}: {reason:.300}; is it started there, and does it ask for a token "
            "(RAY_AUTH_MODE=token)? --ray alone starts one"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _ensure_answer(address: str) -> None:
    """Refuse a host and port that nobody listens on: Ray tries for minutes and then ends the process itself.

    Raises:
        UsageError: nobody does. Addresses of other forms are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_S).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"no Ray at {address}: {reason}; is it started there? --ray alone starts one") from None


def _put(ray: Any, images: SweepImages) -> Any:
    try:
        return ray.put(images)
    except ray.exceptions.RayError as error:
        raise UsageError(f"the images do not fit into Ray's memory: {_line(error)}; sweep without --ray") from None


def _outcome(ray: Any, reference: Any) -> Outcome:
    """Return the outcome of a trial: that its worker died, where it died each time."""
    try:
        outcome: Outcome = _returned(ray, reference)
    except _lost(ray) as error:
        return Outcome(FAILED, message=f"its worker died {RETRIES + 1} times: {_line(error)}")
    return outcome


def _returned(ray: Any, reference: Any) -> Any:
    """Return what a task returned.

    Raises:
        RegnetDeployError: as the task raised it.
        UsageError: a machine of the cluster cannot run it, or Ray lost it.
    """
    try:
        return ray.get(reference)
    except _lost(ray):
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RegnetDeployError):
            raise error.cause from None  # as it was said, without the traceback of the worker
        if isinstance(error.cause, ImportError):
            raise UsageError(f"{_line(error.cause)} on a machine of the cluster: {_NEEDED}") from None
        raise
    except ray.exceptions.RayError as error:
        raise UsageError(f"Ray gave up: {_line(error)}; the same command goes on with what is left") from None


def _lost(ray: Any) -> tuple[type[Exception], ...]:
    """Return the errors that say that a worker died."""
    return (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
