"""Measures the latency model and the choice by time on this machine.

    python benchmarks/latency_choice.py --threads 1 [--only models] [--json FILE]
    python benchmarks/latency_page.py

Three parts, each in the runtimes and precisions of SETUPS:

* models: the model of a calibration predicts 40 networks that are drawn at random and measured afterwards;
* limits: `select --latency-ms` for ten limits; the pick is measured again in a process of its own, after all others;
* published: `select --like NAME` for published networks from 0.2 to 8 GMACs, and the pick beside the published network,
  in turns in one process.

Every result is a line of JSON, added to the file at once; what the file has is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.errors import UsageError
from regnet_deploy.latency.calibration import MIN_GROUP_WIDTH, Calibration, calibrate, row_network
from regnet_deploy.latency.candidates import TimeLimits
from regnet_deploy.latency.choice import select_by_time
from regnet_deploy.latency.fresh_process import measure_in_fresh_process
from regnet_deploy.latency.measuring import Setup, measure_networks
from regnet_deploy.latency.operators import network_work
from regnet_deploy.latency.store import MeasurementStore, open_measurements
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.ridge_regression import rank_correlation
from regnet_deploy.space.enumeration import Bounds, ConstrainedSpace, regnets_between
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import find_published

RESULT = Path(__file__).parent / "results" / "latency_choice.jsonl"
SETUPS = (
    Setup("onnxruntime", "fp32"),
    Setup("onnxruntime", "int8-cpu"),
    Setup("openvino", "fp32"),
    Setup("openvino", "bf16"),
    Setup("openvino", "int8-cpu"),
)
#: Those in which networks are chosen: the limits are chosen in the first.
CHOSEN = (Setup("onnxruntime", "fp32"), Setup("onnxruntime", "int8-cpu"))
FRESH = 40
LIMITS_MS = tuple(round(float(each), 1) for each in np.geomspace(2, 100, 10))
PUBLISHED = (
    *("RegNetX-200MF", "RegNetX-400MF", "RegNetX-800MF", "RegNetX-1.6GF", "RegNetX-3.2GF", "RegNetX-8.0GF"),
    *("RegNetY-200MF", "RegNetY-400MF", "RegNetY-800MF", "RegNetY-1.6GF", "RegNetY-3.2GF", "RegNetY-8.0GF"),
)
_BUDGET = Budget(macs=1e9)
_SEED = 20261201


class Steps:
    """Prints steps and messages, a line each."""

    def step(self, description: str, total: float | None = None) -> None:
        """Print a step."""
        print("  ", description, flush=True)

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Print nothing."""

    def message(self, line: str) -> None:
        """Print a message."""
        print("  ", line, flush=True)


def fresh_networks(setup: Setup) -> list[Network]:
    """Draw networks of the paper's constrained space with group widths of 8 or more, uniform in the log of MACs."""
    random = np.random.default_rng(_SEED)
    networks: list[Network] = []
    while len(networks) < FRESH:
        family, macs = "xy"[random.integers(2)], float(np.exp(random.uniform(np.log(6e7), np.log(3.5e9))))
        space = ConstrainedSpace(family, Bounds(g=(MIN_GROUP_WIDTH, 128)))
        found = regnets_between(0.98 * macs, 1.02 * macs, space, w_m_step=0.05)
        if len(found):
            networks.append(row_network(found, int(random.integers(len(found))), family, setup))
    return networks


def model_errors(calibration: Calibration) -> dict[str, Any]:
    setup, networks = calibration.setup, fresh_networks(calibration.setup)
    measured = np.array([each.times.p50_ms for each in measure_networks(networks, setup)])
    predicted = calibration.model.predict(network_work(networks, setup.resolution, setup.classes, setup.batch))
    errors = predicted / measured - 1
    return {
        "networks": calibration.model.networks,
        "left_out": calibration.model.mean_error,
        "fresh": len(networks),
        "mean_error": float(np.abs(errors).mean()),
        "largest_error": float(np.abs(errors).max()),
        "rank_correlation": rank_correlation(predicted, measured),
        "shortest_ms": float(measured.min()),
        "longest_ms": float(measured.max()),
    }


def limit_kept(calibration: Calibration, store: MeasurementStore, ms: float) -> dict[str, Any]:
    try:
        selection = select_by_time(_BUDGET, TimeLimits(p50_ms=ms), calibration, store, progress=Steps())
    except UsageError as error:
        return {"ms": ms, "error": str(error)}
    assert selection.timed_ranking is not None
    network = selection.best.network
    again = [measure_in_fresh_process(network, calibration.setup).times.p50_ms for _ in range(3)]
    return {
        "ms": ms,
        "p50_ms": selection.timed_ranking.p50_ms,
        "again_ms": again,
        "measured": len(selection.timed_ranking.candidates),
        "macs": selection.best.macs,
        "network": network.to_json(),
        "family": selection.family,
        "expected_error": selection.timed_ranking.candidates[0].expected_error,
        "why_slower": selection.timed_ranking.why_slower,
    }


def beside_published(calibration: Calibration, store: MeasurementStore, name: str) -> dict[str, Any]:
    published = find_published(name)
    selection = select_by_time(_BUDGET, TimeLimits(like=published), calibration, store, progress=Steps())
    assert selection.timed_ranking is not None
    pair = measure_networks([published.network, selection.best.network], calibration.setup)
    theirs, ours = (each.times.p50_ms for each in pair)
    return {
        "published": name,
        "published_ms": theirs,
        "published_macs": published.macs,
        "ms": ours,
        "macs": selection.best.macs,
        "network": selection.best.network.to_json(),
        "family": selection.family,
        "times_as_fast": theirs / ours,
    }


def parts(setup: Setup) -> Iterator[tuple[str, str, Callable[[Calibration, MeasurementStore], dict[str, Any]]]]:
    """Yield the part, the key and the measurement of everything that is measured with a setup."""
    yield "models", "", lambda calibration, _: model_errors(calibration)
    if setup == CHOSEN[0]:
        for ms in LIMITS_MS:
            yield "limits", f"{ms}", lambda calibration, store, ms=ms: limit_kept(calibration, store, ms)
    if setup in CHOSEN:
        for name in PUBLISHED:
            yield "published", name, lambda calibration, store, name=name: beside_published(calibration, store, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--only", choices=["models", "limits", "published"], action="append", help="may be repeated")
    parser.add_argument("--store", type=Path, metavar="FILE", help="of measurements (default: the user's)")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help="results, JSON lines")
    arguments = parser.parse_args()
    known = {(row["setup"], row["part"], row["key"]) for row in read(arguments.json)}
    machine = describe_machine().to_json()
    with open_measurements(arguments.store, Steps()) as store:
        for setup, part in itertools.product(SETUPS, ("models", "limits", "published")):
            if arguments.only and part not in arguments.only:
                continue
            for kind, key, measure in parts(setup):
                if kind != part or (name_of(setup), part, key) in known:
                    continue
                print(f"{name_of(setup)}, {part} {key}", flush=True)
                calibration = calibrate(
                    replace(setup, threads=arguments.threads), store, disturbed=True, progress=Steps()
                )
                load = OtherLoad()
                result = measure(calibration, store)
                row = {
                    "setup": name_of(setup),
                    "part": part,
                    "key": key,
                    "threads": calibration.setup.cpu_threads,
                    **result,
                    "other_cores": load.cores(),
                    "machine": machine,
                }
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print("  ", {name: value for name, value in result.items() if name != "network"}, flush=True)
    faster = [row["times_as_fast"] for row in read(arguments.json) if row["part"] == "published"]
    if faster:
        print(f"median of the picks: {statistics.median(faster):.2f} times as fast as the published network")


def name_of(setup: Setup) -> str:
    return f"{setup.runtime} {setup.precision}"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of results; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
