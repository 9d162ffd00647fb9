from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from regnet_deploy.latency.measurement import (
    Execution,
    MachineState,
    MeasuredMachine,
    Measurement,
    Protocol,
    summarize,
)
from regnet_deploy.space.network import Network

NETWORK = Network((1, 1), (32, 64), (8, 8), (1.0, 1.0))
EXECUTION = Execution(
    runtime="onnxruntime", version="1.24.1", device="cpu", precision="fp32", threads=2, layout="channels_first"
)
MACHINE = MeasuredMachine(cpu="A CPU", cores=2, instructions=("avx2",), gpu=None, system="Linux 6.1")


@pytest.fixture
def make_measurement() -> Callable[..., Measurement]:
    """Return a measurement; what is given replaces its fields, ``ms`` is its median."""

    def make(ms: float = 5.0, **changes: Any) -> Measurement:
        fields: dict[str, Any] = {
            "network": NETWORK,
            "resolution": 224,
            "classes": 1000,
            "batch": 1,
            "execution": EXECUTION,
            "machine": MACHINE,
            "state": MachineState(busy_cores=0.02, cpus=2),
            "protocol": Protocol(warmup_repetitions=10, rounds=4, repetitions=12),
            "artifact_sha256": "a" * 64,
            "times": summarize([[ms * 0.9e-3, ms * 1e-3, ms * 1.1e-3]] * 4),
            "date": "2026-12-01T09:00:00+00:00",
            "regnet_deploy": "0.1.0",
        }
        return Measurement(**{**fields, **changes})

    return make
