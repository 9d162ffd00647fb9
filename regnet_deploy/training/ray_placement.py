"""How many workers of a training a Ray cluster has room for, and what each of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regnet_deploy.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """What is reserved in a cluster.

    Attributes:
        workers: number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each, 0 or 1.
    """

    workers: int
    cpus: int
    gpus: int

    def __str__(self) -> str:
        """Return it in words."""
        gpu = " and a GPU" if self.gpus else ""
        number = f"{self.workers} worker{'s' * (self.workers != 1)}"
        return f"{number} with {self.cpus} CPU{'s' * (self.cpus != 1)}{gpu}{' each' * (self.workers != 1)}"

    def waits(self, free: Mapping[str, float]) -> bool:
        """Tell whether other work of the cluster has to end first."""
        return self.workers * self.cpus > free.get("CPU", 0) or self.workers * self.gpus > free.get("GPU", 0)


def place_workers(
    nodes: Sequence[Mapping[str, float]], workers: int | None, cpus: int | None, device: str
) -> Placement:
    """Return how many workers there are and what each has.

    Args:
        nodes: resources of the machines, with ``CPU`` and ``GPU``.
        workers: None is one for each GPU, or without GPUs one for each machine.
        cpus: of each worker; None is as many as all can have.
        device: ``cpu``, ``cuda`` or ``auto``, which is CUDA where the cluster has GPUs.

    Raises:
        UsageError: the cluster has no room for them.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not gpus:
        raise UsageError("--device cuda: the cluster has no GPU; give --device cpu")
    each = int(device == "cuda" or (device == "auto" and gpus > 0))
    machines = [int(node.get("CPU", 0)) for node in nodes]
    count = workers or (gpus if each else max(1, sum(cores > 0 for cores in machines)))
    possible = [number for number in range(1, max(machines, default=0) + 1) if _room(nodes, number, each) >= count]
    chosen = cpus or (possible[-1] if possible else 1)
    if _room(nodes, chosen, each) < count:
        placement, total = Placement(count, chosen, each), sum(machines)
        has = f"{total} CPU{'s' * (total != 1)} and {gpus} GPU{'s' * (gpus != 1)} in {len(nodes)}"
        raise UsageError(
            f"the cluster has no room for {placement}: it has {has} machine{'s' * (len(nodes) != 1)}, which is room "
            f"for {_room(nodes, chosen, each)}: lower --ray-workers{' or --threads' if chosen > 1 else ''}"
        )
    return Placement(count, chosen, each)


def _room(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: int) -> int:
    """Return how many workers fit into the machines."""
    room = 0
    for node in nodes:
        places = int(node.get("CPU", 0)) // cpus
        room += min(places, int(node.get("GPU", 0))) if gpus else places
    return room
