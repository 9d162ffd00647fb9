"""Measurements that a rule makes up instead of a clock, for tests of what is done with them."""

from collections.abc import Callable, Sequence
from typing import Any

from regnet_deploy import __version__
from regnet_deploy.latency.machine_state import measured_machine
from regnet_deploy.latency.measurement import Execution, MachineState, Measurement, Protocol, Times
from regnet_deploy.latency.measuring import Setup
from regnet_deploy.latency.operators import COLUMNS, network_work
from regnet_deploy.space.network import Network

#: ms per unit of work of the machine of these tests.
COSTS = {"operators": 0.01, "pointwise_macs": 1e-8, "grouped_macs": 4e-8, "addition_elements": 1e-7}


def rule_ms(network: Network, setup: Setup) -> float:
    """Return the time of a network on the machine of these tests."""
    work = network_work([network], setup.resolution, setup.classes, setup.batch)[0]
    return float(sum(cost * work[list(COLUMNS).index(name)] for name, cost in COSTS.items()))


def execution(setup: Setup) -> Execution:
    return Execution(
        runtime=setup.runtime,
        version="1.0",
        device="cpu",
        precision=setup.precision,
        threads=1,
        layout="channels_first",
    )


def made_up(network: Network, setup: Setup, ms: float, **changes: Any) -> Measurement:
    times = Times(
        mean_ms=ms,
        p50_ms=ms,
        p50_interval_ms=(ms, ms),
        p90_ms=ms,
        p90_interval_ms=(ms, ms),
        p99_ms=1.1 * ms,
        p99_interval_ms=(ms, 1.2 * ms),
    )
    fields = {
        "network": network,
        "resolution": setup.resolution,
        "classes": setup.classes,
        "batch": setup.batch,
        "execution": execution(setup),
        "machine": measured_machine(),
        "state": MachineState(cpus=1),
        "protocol": Protocol(warmup_repetitions=1, rounds=4, repetitions=40),
        "artifact_sha256": "0" * 64,
        "times": times,
        "date": "2026-12-01T00:00:00+00:00",
        "regnet_deploy": __version__,
    }
    return Measurement(**{**fields, **changes})


def clock(rule: Callable[[Network, Setup], float], measured: list[Network]) -> Callable[..., list[Measurement]]:
    """Return what measures networks by a rule and writes down which."""

    def measure(networks: Sequence[Network], setup: Setup, **options: Any) -> list[Measurement]:
        measured.extend(networks)
        return [made_up(network, setup, rule(network, setup)) for network in networks]

    return measure
