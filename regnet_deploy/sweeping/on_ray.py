"""Trials on Ray: on this machine or on a cluster, several at a time, with resources for each."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import RegnetDeployError, UsageError, require
from regnet_deploy.populations.store import FAILED, Outcome, Trial
from regnet_deploy.sweeping.data import SweepImages
from regnet_deploy.sweeping.in_process import Watch
from regnet_deploy.training.execution import Execution
from regnet_deploy.training.recipe import Recipe

LOCAL = "local"
#: How often Ray runs a trial again whose worker process died.
RETRIES = 3
_LOOK_S = 1.0
_ANSWERS_S = 5.0


@dataclass(frozen=True)
class OnRay:
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
    ) -> Iterator[tuple[Trial, Outcome]]:
        """Yield each trial with its outcome as soon as it has one, in the order in which they end.

        A trial whose worker is killed is run again, and failed when it was killed every time.

        Raises:
            MissingExtra: Ray is not installed.
            UsageError: the cluster cannot be reached, or can never give a trial what it asks for.
        """
        ray = require("ray", "ray")
        with _connected(ray, self.address):
            self._ensure_resources(ray)
            threads = max(1, int(self.cpus))
            run = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(run_in_worker)
            shared = ray.put(images)
            running = {run.remote(trial, shared, recipe, execution, threads): trial for trial in trials}
            try:
                while running:
                    ended, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_S)
                    for reference in ended:
                        trial = running.pop(reference)
                        yield trial, _outcome(ray, reference)
            finally:
                for reference in running:  # on a cluster of others they would go on without us
                    ray.cancel(reference, force=True)

    def _ensure_resources(self, ray: Any) -> None:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0):
                raise UsageError(
                    f"a trial is to have {wanted:g} {name}s, and no machine of the cluster has as many "
                    f"(all together {there.get(name, 0.0):g}): give fewer with --{name.lower()}s-per-trial"
                )


def run_in_worker(trial: Trial, images: SweepImages, recipe: Recipe, execution: Execution, threads: int) -> Outcome:
    """Run a trial in a process of Ray's."""
    import torch

    from regnet_deploy.sweeping.trial import run_trial

    torch.set_num_threads(threads)
    return run_trial(trial, images, recipe, execution)


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to Ray and leave it again; a local one ends with this process however that ends.

    Ray's dashboard, which runs whatever it is sent, is not started, and nothing is reported to anyone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
        raise UsageError(f"no Ray at {address}: {reason:.300}; is it started there? --ray alone starts one") from None
    try:
        yield
    finally:
        ray.shutdown()


def _ensure_answer(address: str) -> None:
    """Refuse a host and port that nobody listens on: Ray tries for two minutes and then ends the process itself.

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


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        return Outcome(FAILED, message=f"its worker died {RETRIES + 1} times: {' '.join(str(error).split())[:300]}")
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RegnetDeployError):
            raise error.cause from None  # as it was said, without the traceback of the worker
        raise
    return outcome
