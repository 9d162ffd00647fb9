"""How many workers of a training a cluster has room for."""

from __future__ import annotations

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.training.ray_placement import Placement, place_workers

#: A head without CPUs for work, and two machines.
CPUS = [{"CPU": 0.0}, {"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0}]
GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "device", "expected"),
    [
        (CPUS, None, None, "auto", Placement(2, 2, 0)),
        (CPUS, 3, None, "auto", Placement(3, 2, 0)),
        (CPUS, 1, None, "cpu", Placement(1, 4, 0)),
        (CPUS, 6, 1, "cpu", Placement(6, 1, 0)),
        (GPUS, None, None, "auto", Placement(6, 8, 1)),
        (GPUS, 4, None, "cuda", Placement(4, 10, 1)),
        (GPUS, None, 2, "auto", Placement(6, 2, 1)),
        (GPUS, None, None, "cpu", Placement(3, 32, 0)),
    ],
)
def test_workers_get_what_the_machines_have(
    nodes: list[dict[str, float]], workers: int | None, cpus: int | None, device: str, expected: Placement
) -> None:
    assert place_workers(nodes, workers, cpus, device) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "device", "said"),
    [
        (CPUS, 7, None, "auto", "no room for 7 workers with 1 CPU each: it has 6 CPUs and 0 GPUs in 3 machines, which"),
        (CPUS, 7, None, "auto", "which is room for 6: lower --ray-workers"),
        (CPUS, 3, 4, "cpu", "which is room for 1: lower --ray-workers or --threads"),
        (CPUS, None, None, "cuda", "--device cuda: the cluster has no GPU; give --device cpu"),
        (GPUS, 7, None, "auto", "no room for 7 workers with 1 CPU and a GPU each: it has 112 CPUs and 6 GPUs in 3"),
        ([{"CPU": 0.0}], None, None, "auto", "no room for 1 worker with 1 CPU: it has 0 CPUs and 0 GPUs in 1 machine,"),
    ],
)
def test_workers_without_room_are_one_line(
    nodes: list[dict[str, float]], workers: int | None, cpus: int | None, device: str, said: str
) -> None:
    with pytest.raises(UsageError) as error:
        place_workers(nodes, workers, cpus, device)
    assert said in str(error.value)


def test_a_training_waits_for_what_others_use() -> None:
    assert not Placement(2, 2, 0).waits({"CPU": 4.0})
    assert Placement(2, 2, 0).waits({"CPU": 3.0})
    assert Placement(2, 1, 1).waits({"CPU": 4.0, "GPU": 1.0})
    assert Placement(2, 1, 1).waits({"CPU": 4.0})
