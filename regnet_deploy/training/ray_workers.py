"""Training on Ray: Ray Train starts the processes, and starts them again from the last checkpoint when one dies.

A process that Ray Train started is what torchrun starts: a member of one group that trains as
:mod:`regnet_deploy.training.distributed` says, with the same weights to the bit. Checkpoints are those of every
training, in the run directory, so a run may go on with Ray, with torchrun or with one process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.errors import DataError, UsageError, require
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.ray_cluster import LOCAL, RETRIES, connected, error_line
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.interruption import nothing_begun, stop_signals
from regnet_deploy.training.ray_board import News, RayBoard
from regnet_deploy.training.ray_placement import place_workers
from regnet_deploy.training.ray_process import SEEN, Work, fit, has_died, loss_line
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.run_messages import interruption_line

_POLL_S = 0.2
#: How long the other workers have to end by themselves after one has ended with an error.
_END_S = 10.0
#: Ray Train as it is since this version.
_OLDEST = (2, 51)
_EXTRAS = "regnet-deploy[train,tune]"
#: Variables of the environment that trackers read, by the start of their names: a cluster does not have the user's.
_TRACKERS = ("MLFLOW_", "WANDB_")


@dataclass(frozen=True)
class RayWorkers:
    """Workers on Ray that train one network together; each has ``ExecutionRequest.threads`` CPUs.

    Attributes:
        address: address of a cluster (``auto``, ``host:6379``, ``ray://host:10001``); ``local`` starts Ray here.
        workers: number of workers; None is one for each GPU, or without GPUs one for each machine.
    """

    address: str = LOCAL
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            UsageError: it is below 1.
        """
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--ray-workers must be 1 or more, got {self.workers}")

    def __call__(
        self, bundle_path: str | Path, data: str | Path, recipe: Any, options: Any, progress: Progress = NoProgress()
    ) -> Bundle:
        """Train as :func:`regnet_deploy.training.train.train` does, in workers on Ray.

        SIGINT and SIGTERM end the run after a step, with a checkpoint, by KeyboardInterrupt; a second signal ends it at
        once.

        Raises:
            MissingExtra: Ray Train is not installed.
            UsageError: the cluster cannot be reached, has no room for the workers, or its machines do not see the run
                directory or the images; or workers died too often.
            RegnetDeployError: what the training raises.
        """
        ray = _ray_with_train()
        directory = options.run_dir or default_directory(bundle_path)
        with contextlib.ExitStack() as stack:
            with nothing_begun():
                stack.enter_context(connected(ray, self.address))
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                placement = place_workers(nodes, self.workers, options.execution.threads, options.execution.device)
                progress.message(f"on Ray: {placement}")
                if placement.waits(ray.available_resources()):
                    progress.message("the cluster is busy: the training begins when so much of it is free")
                folder = stack.enter_context(_shared_folder(directory))
            asked = stack.enter_context(stop_signals())
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
            board = ray.remote(num_cpus=0, scheduling_strategy=here)(RayBoard).remote()
            execution = replace(options.execution, device="cuda" if placement.gpus else "cpu")
            work = Work(
                bundle_path,
                data,
                recipe,
                replace(options, execution=execution, ray=None),
                os.getcwd(),
                str(folder),
                placement,
                {name: value for name, value in os.environ.items() if name.startswith(_TRACKERS)},
                board,
            )
            fitting = ray.remote(num_cpus=0, scheduling_strategy=here, max_retries=0)(fit).remote(work)
            try:
                files = _follow(ray, board, fitting, asked, progress)
            except KeyboardInterrupt as error:
                if error.args:
                    raise
                raise KeyboardInterrupt(_interrupted_at(directory)) from None
            finally:
                ray.cancel(fitting, force=True)  # on an existing cluster it would continue
        bundle = open_bundle(bundle_path)
        if files != bundle.files:
            raise DataError(
                f"the training has ended, but this machine does not see its result in {bundle.path}: the bundle "
                "must be on a file system that all machines of the cluster share"
            )
        return bundle


@contextlib.contextmanager
def _shared_folder(directory: Path) -> Iterator[Path]:
    """Make a folder where the run directory is, by which the workers see that they share its file system.

    Raises:
        DataError: it cannot be written.
    """
    place = directory.resolve()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        made = tempfile.TemporaryDirectory(prefix=".ray-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror}; give another --run-dir") from None
    with made as name:
        (Path(name) / SEEN).touch()
        yield Path(name)


def _follow(
    ray: Any, board: Any, fitting: Any, asked: Callable[[], bool], progress: Progress
) -> Mapping[str, Any] | None:
    """Show what the workers do until they have ended; return the files of the new bundle.

    Raises:
        RegnetDeployError: of a worker, or workers died too often.
        KeyboardInterrupt: the run was ended by a signal.
    """
    progress.step("starting workers")
    told, losses, until = False, 0, float("inf")
    while True:
        done, _ = ray.wait([fitting], timeout=_POLL_S)
        try:
            news: News = ray.get(board.news.remote())
        except ray.exceptions.RayError as error:
            raise UsageError(f"Ray failed: {error_line(error)}; the same command continues") from None
        for method, arguments in news.events:
            getattr(progress, method)(*arguments)
        for reason in news.losses:
            losses += 1
            if losses <= RETRIES:
                again = "all workers start again from the last checkpoint"
                progress.message(f"{reason}: {again} ({losses} of {RETRIES} times)")
                progress.step("starting workers")
        errors = [error for error, _ in news.ended if error is not None]
        if errors and not done and news.trains:
            until = min(until, time.monotonic() + _END_S)
        if errors and (done or not news.trains or time.monotonic() >= until):
            raise errors[0]
        if done:
            _raise_failure(ray, fitting)
            result: Mapping[str, Any] | None = news.ended[-1][1]
            return result
        if asked() and not told:
            told = True
            if not news.trains:
                raise KeyboardInterrupt
            board.stop.remote()
            progress.message("stopping after this step; a second Ctrl-C stops at once")


def _raise_failure(ray: Any, fitting: Any) -> None:
    """Raise what Ray Train failed with, if it did."""
    try:
        ray.get(fitting)
    except ray.exceptions.RayTaskError as error:
        failures = getattr(error.cause, "worker_failures", None)
        if failures is None:
            raise UsageError(
                f"Ray Train failed: {error_line(error.cause)}; every machine needs the same Python with {_EXTRAS}"
            ) from None
        if not all(has_died(failure) for failure in failures.values()):
            raise  # a bug keeps its traceback
        raise UsageError(
            f"workers died {RETRIES + 1} times, now {loss_line(failures)}: the same command continues from the last "
            "checkpoint"
        ) from None
    except ray.exceptions.RayError as error:
        raise UsageError(f"Ray failed: {error_line(error)}; the same command continues") from None


def _interrupted_at(directory: Path) -> str:
    """Return what the user can do after an interruption that did not wait for the workers."""
    checkpoint = load_checkpoint(directory)
    if checkpoint is not None:
        return interruption_line(checkpoint)
    return "the training had not begun and the bundle is unchanged: repeat the command to begin it"


def _ray_with_train() -> Any:
    for module in ("ray", "pandas", "pyarrow"):
        require(module, "tune")
    ray = require("ray", "tune")
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise UsageError(f"--ray needs Ray {oldest} or newer, not {ray.__version__}: pip install -U '{_EXTRAS}'")
    require("ray.util.scheduling_strategies", "tune")
    return ray
