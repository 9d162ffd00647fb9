"""Several processes that train one network together: who reads what, what they add up, and what they agree on.

Launchers (torchrun, Kubernetes, Ray Train) start the processes and name their place in environment variables; there is
no launcher here. Each step has the same images whatever the number of processes: each process reads its share of every
batch. What is chosen is either computed from sums over all processes, which are equal to the bit in each of them, or
decided by the first process and sent to the others. A single process is a group of size 1: it sends nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import DataError, RegnetDeployError, UsageError
from regnet_deploy.training.store_part import Store, part_of_this_start

T = TypeVar("T")

#: What launchers set for every process that belongs to a group.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How long a process waits for the first one, which checks the images before a run and tests its weights at the end.
#: A process that dies is noticed at once: its connections are closed.
_TIMEOUT = datetime.timedelta(days=1)
#: How long a process waits for the gradients of the others, and to be connected to them.
STEP_TIMEOUT = datetime.timedelta(minutes=10)
#: How long the processes wait for each other when they start.
_START_TIMEOUT = datetime.timedelta(minutes=10)
#: Time between two agreements on the end of a run, and the most steps between them.
_AGREE_S, _MOST_STEPS = 0.5, 4
_ERROR, _SIGNALLED = "regnet-deploy/error", "regnet-deploy/signalled"


class ProcessLost(DataError):
    """A process of the group has ended. Nothing is wrong with the images."""


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: number of this process, from 0; the first one writes all files and messages.
        size: number of processes.
        local_rank: number of this process among those of its machine.
        local_size: number of processes on this machine.
        control: connection for everything but gradients, on the CPU; None with one process.
        store: of the launcher, by which a process tells the others why it ends; None if there is none.
        reserved_cores: cores that are kept for this process; None where no launcher keeps any.
        stopping: whether who started this process asks for the end of the run.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: dist.ProcessGroup | None = None
    store: Store | None = None
    reserved_cores: int | None = None
    stopping: Callable[[], bool] = bool

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Cores for this process: its share of those that the processes of this machine may use."""
        return max(1, min(available_cores() // self.local_size, self.reserved_cores or sys.maxsize))

    def share(self, batch: list[T]) -> list[T]:
        """Return this process's share of a batch: every ``size``-th of its images."""
        return batch[self.rank :: self.size] if self.size > 1 else batch

    def sum(self, values: Iterable[float]) -> list[float]:
        """Return the sums of these values over all processes, in float64.

        Raises:
            ProcessLost: a process has ended.
        """
        if self.size == 1:
            return list(values)
        sums = torch.tensor(list(values), dtype=torch.float64)
        with _noticing_loss():
            dist.all_reduce(sums, group=self.control)
        return cast(list[float], sums.tolist())

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in their order.

        Raises:
            ProcessLost: a process has ended.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _noticing_loss():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """Run a function in the first process alone, and return its result in every process.

        An error for the user, and an interruption, is raised in every process.

        Raises:
            ProcessLost: a process has ended.
        """
        if self.size == 1:
            return function()
        sent: list[Any] = [None, None]
        if self.is_first:
            try:
                sent[0] = function()
            except (RegnetDeployError, KeyboardInterrupt) as error:
                sent[1] = error
        received = list(sent) if self.is_first else [None, None]
        with _noticing_loss():
            dist.broadcast_object_list(received, src=0, group=self.control)
        result, raised = sent if self.is_first else received
        if raised is not None:
            raise raised
        return cast(T, result)

    def agreed(self, flag: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that tells whether the flag is set in any process; each calls it equally often.

        The processes do not ask each other at every call, but at least every :data:`_MOST_STEPS` calls.
        """
        return flag if self.size == 1 else _Agreement(self, flag)

    def heard(self, flag: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that tells whether the flag is set here, or has been found set so by another process.

        Each process may call it at any time. Processes without a store do not hear of each other.
        """
        return flag if self.store is None else _Hearing(self.store, flag)


#: The group of a single process.
ALONE = ProcessGroup()


class _Agreement:
    """Tells whether a flag is set in any process of a group."""

    def __init__(self, group: ProcessGroup, flag: Callable[[], bool]) -> None:
        self._group, self._flag = group, flag
        self._skip, self._calls, self._since = 0, 0, time.perf_counter()
        self._answer = False

    def __call__(self) -> bool:
        self._calls += 1
        if self._answer or self._skip:
            self._skip = max(0, self._skip - 1)
            return self._answer
        now = time.perf_counter()
        rate = self._calls / max(1e-9, now - self._since)
        proposed = min(_MOST_STEPS, max(1, int(_AGREE_S * rate))) if self._group.is_first else 0
        set_in, interval = self._group.sum([self._flag(), proposed])
        self._answer, self._skip = set_in > 0, int(interval) - 1
        self._calls, self._since = 0, now
        return self._answer


class _Hearing:
    """Tells whether a flag is set, or another process has found its own set, as it wrote into the store."""

    def __init__(self, store: Store, flag: Callable[[], bool]) -> None:
        self._store, self._flag = store, flag
        self._answer, self._asked = False, -math.inf

    def __call__(self) -> bool:
        if self._answer:
            return True
        with contextlib.suppress(RuntimeError):  # the store is gone: the sums notice what else has ended
            if self._flag():
                self._answer = True
                self._store.set(_SIGNALLED, "1")
            elif time.monotonic() - self._asked >= _AGREE_S:
                self._asked = time.monotonic()
                self._answer = self._store.check([_SIGNALLED])
        return self._answer


def ensure_shared(batch: int, group: ProcessGroup, sync_bn: bool) -> None:
    """Check that each process has two images or more of each step, for batch norm, or one if that is over all of them.

    Raises:
        UsageError: it has not.
    """
    needed = 1 if sync_bn else 2
    if group.size > 1 and batch < needed * group.size:
        raise UsageError(
            f"a step has {batch} images and there are {group.size} processes, of which each needs {needed} or more: "
            f"start {batch // needed} or fewer, or give --batch-size {needed * group.size} or more"
            + ("" if sync_bn else ", or --sync-bn")
        )


def is_launched() -> bool:
    """Tell whether a launcher has started this process as one of several."""
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def is_first_process() -> bool:
    """Tell whether this process is to print results: the only one, or the first of those that a launcher started."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that a launcher started with this one, while the context is open.

    An error for the user in one process is raised in the others too.

    Args:
        device: ``cpu`` or ``cuda``: gradients are added up by Gloo or by NCCL.

    Raises:
        UsageError: the environment variables of the launcher cannot be used, the first process cannot be reached, or
            this machine has fewer GPUs than processes.
    """
    if dist.is_available() and dist.is_initialized():  # by Ray Train
        yield _joined(device, None)
        return
    if not is_launched():
        yield ALONE
        return
    store = _start(device)
    try:
        group = _joined(device, store)
        with _failing_together(group):
            yield group
    finally:
        dist.destroy_process_group()


def _start(device: str) -> Store:
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    _use_gpu(device)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        shared: Store = next(rendezvous("env://", rank, size, timeout=_START_TIMEOUT))[0]
        store = part_of_this_start(shared, rank, size, _START_TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STEP_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"process {rank} of {size} cannot reach the others at {address}: {_reason(error)}; start them with torchrun"
        ) from None
    return store


def _joined(device: str, store: Store | None) -> ProcessGroup:
    _use_gpu(device)
    return ProcessGroup(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=_number("LOCAL_RANK", 0),
        local_size=_number("LOCAL_WORLD_SIZE", 1),
        control=dist.new_group(backend="gloo", timeout=_TIMEOUT) if dist.get_world_size() > 1 else None,
        store=store,
    )


def _use_gpu(device: str) -> None:
    if device != "cuda":
        return
    gpus, number = torch.cuda.device_count(), _number("LOCAL_RANK", 0)
    if number >= gpus:
        raise UsageError(
            f"this machine has {gpus} GPU{'s' * (gpus != 1)} and at least {number + 1} processes: start as many "
            "processes as GPUs (--nproc-per-node), or give --device cpu"
        )
    torch.cuda.set_device(number)


def _number(name: str, usual: int | None = None) -> int:
    text = os.environ.get(name, "" if usual is None else str(usual))
    if not text.isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}, not a number of processes: start with torchrun")
    return int(text)


@contextlib.contextmanager
def _noticing_loss() -> Iterator[None]:
    """Turn the failure of a collective operation into one line: the connection to another process is closed."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of this training has ended ({_reason(error)}): the same command continues from the last "
            "checkpoint"
        ) from None


def add_up(values: torch.Tensor) -> dist.Work:
    """Begin to replace the values by their sums over all processes; :func:`wait_for` ends it.

    Raises:
        ProcessLost: a process has ended.
    """
    with _noticing_loss():
        return cast(dist.Work, dist.all_reduce(values, async_op=True))


def wait_for(work: dist.Work) -> None:
    """Wait for the sums of :func:`add_up`; on a GPU, only what is queued there afterwards waits.

    Raises:
        ProcessLost: a process has ended.
    """
    with _noticing_loss():
        work.wait()


@contextlib.contextmanager
def _failing_together(group: ProcessGroup) -> Iterator[None]:
    """Raise the error of the process that fails in the others too, in place of the loss that they notice."""
    store = group.store
    try:
        yield
    except ProcessLost as lost:
        raise _told_by(store) or lost from None
    except (RegnetDeployError, KeyboardInterrupt) as error:
        if store is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(RuntimeError):  # the store is gone: the others notice that this process is
                store.set(_ERROR, json.dumps({"interrupted": interrupted, "text": str(error)}))
        raise


def _told_by(store: Store | None) -> BaseException | None:
    """Return the error that another process ended with; None if it said nothing."""
    if store is None:
        return None
    try:
        told = json.loads(store.get(_ERROR)) if store.check([_ERROR]) else None
    except RuntimeError:  # the store has ended with the first process
        return None
    if told is None:
        return None
    return KeyboardInterrupt(told["text"]) if told["interrupted"] else DataError(told["text"])


def _reason(error: BaseException) -> str:
    """Return the last part of what PyTorch says, without places in its source."""
    text = " ".join(str(error).split()).rpartition("] ")[2] or type(error).__name__
    return text[:120].rstrip(". ")
