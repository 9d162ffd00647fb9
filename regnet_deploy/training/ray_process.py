"""What runs in the processes of a Ray cluster: Ray Train, and the training in each worker that it starts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regnet_deploy.errors import DataError, RegnetDeployError, require
from regnet_deploy.images.remote_files import as_written, is_remote
from regnet_deploy.progress import NoProgress
from regnet_deploy.ray_cluster import RETRIES, error_line
from regnet_deploy.training.distributed import STEP_TIMEOUT, ProcessGroup, ProcessLost, process_group
from regnet_deploy.training.ray_board import BoardProgress, StopRequest
from regnet_deploy.training.ray_placement import Placement

#: A file of the shared folder.
SEEN = "seen"


@dataclass(frozen=True)
class Work:
    """What each worker does.

    Attributes:
        bundle_path, data, recipe, options: arguments of ``train``.
        working_directory: of the user's process: relative paths are relative to it.
        shared: a folder that exists while the training runs, beside or in the run directory.
        placement: what the worker has.
        environment: variables of the trackers.
        board: where it tells what happens.
    """

    bundle_path: str | Path
    data: str | Path
    recipe: Any
    options: Any
    working_directory: str
    shared: str
    placement: Placement
    environment: Mapping[str, str]
    board: Any


def fit(work: Work) -> None:
    """Run Ray Train; this is a task of its own because Ray Train blocks the thread that calls it, and takes SIGINT."""
    ray: Any = require("ray", "tune")
    ray_train: Any = require("ray.train", "tune")
    ray_torch: Any = require("ray.train.torch", "tune")
    placement, board = work.placement, work.board

    class Losses(ray_train.UserCallback):  # type: ignore[misc]  # a class of an optional library
        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            ray.get(board.lose.remote(loss_line(worker_exceptions)))

    trainer = ray_torch.TorchTrainer(
        _run_worker,
        train_loop_config={"work": work},
        torch_config=ray_torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if placement.gpus else "gloo", timeout_s=int(STEP_TIMEOUT.total_seconds())
        ),
        scaling_config=ray_train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus),
            resources_per_worker={"CPU": placement.cpus, **({"GPU": placement.gpus} if placement.gpus else {})},
        ),
        run_config=ray_train.RunConfig(
            name="train",
            storage_path=work.shared,
            failure_config=ray_train.FailureConfig(max_failures=RETRIES),
            callbacks=[Losses()],
        ),
    )
    trainer.fit()


def _run_worker(config: Mapping[str, Work]) -> None:
    """Train in one worker. Errors for the user go to the board, all others start the workers again."""
    from regnet_deploy.training.train import train

    ray = require("ray", "tune")
    work = config["work"]
    if ray.get(work.board.is_done.remote()):
        return  # another worker died after the end of the training, which is not to begin anew
    rank = require("ray.train", "tune").get_context().get_world_rank()
    os.environ.update(work.environment)
    if os.path.isdir(work.working_directory):
        os.chdir(work.working_directory)

    @contextlib.contextmanager
    def join(device: str) -> Iterator[ProcessGroup]:
        stopping = StopRequest(work.board) if rank == 0 else bool
        with process_group(device) as group:
            yield replace(group, reserved_cores=work.placement.cpus, stopping=stopping)

    progress = BoardProgress(work.board) if rank == 0 else NoProgress()
    try:
        _ensure_seen(work, is_first=rank == 0)
        bundle = train(work.bundle_path, work.data, work.recipe, work.options, progress, join)
    except ProcessLost:
        raise
    except (RegnetDeployError, KeyboardInterrupt) as error:
        ray.get(work.board.end.remote(error))
        return
    if rank == 0:
        ray.get(work.board.end.remote(None, bundle.files))


def _ensure_seen(work: Work, *, is_first: bool) -> None:
    host, shared = socket.gethostname(), Path(work.shared)
    if not (shared / SEEN).is_file():
        raise DataError(
            f"{host} does not see {shared.parent}: the run directory must be on a file system that all machines of the "
            "cluster share, at the same path"
        )
    # What is wrong with the images is said by the first worker.
    if not is_first and not is_remote(as_written(str(work.data))) and not os.path.exists(work.data):
        raise DataError(
            f"{host} does not see {work.data}: the images must be at the same path on all machines of the cluster"
        )


def has_died(error: Exception) -> bool:
    """Tell whether a worker, or another of its group, died, so that this error is not one of the program."""
    return isinstance(error, ProcessLost) or type(error).__module__.partition(".")[0] == "ray"


def loss_line(failures: Mapping[int, Exception]) -> str:
    """Return which worker ended and why; one that only noticed the end of another is named if there is no other."""
    rank, error = min(failures.items(), key=lambda item: (isinstance(item[1], ProcessLost), item[0]))
    if has_died(error):
        return f"worker {rank} died"
    return f"worker {rank} failed ({error_line(error):.200})"
