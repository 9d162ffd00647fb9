"""Measures how well the latency model predicts published times of RegNets on GPUs and CPUs.

    python benchmarks/latency_model.py [--json benchmarks/results/latency_model.json]
    python benchmarks/latency_page.py

The times are those of profiles/public_latency.csv, results of timm's benchmarks on 20 settings of GPU, layout, compiler
and CPU, at 224 pixels. For each setting:

* left out: each network is predicted by a model of all others; the mean of |predicted / measured - 1|, and Spearman's
  rank correlation of predicted and measured times;
* 20 networks: the setting counts as a new device, on which 20 networks are measured, chosen so that they differ as much
  as possible; the mean error of the other networks;
* MACs, MACs and activations: the mean error left out of a line through MACs, and of MACs and activations with relative
  least squares, to compare with.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.latency.calibration import spread_rows
from regnet_deploy.latency.model import fit_latency_model
from regnet_deploy.latency.operators import network_work
from regnet_deploy.selection.ridge_regression import rank_correlation
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import data_folder, find_published

Float = NDArray[np.float64]

RESULT = Path(__file__).parent / "results" / "latency_model.json"
#: Networks that are measured on a new device.
CALIBRATED = 20


def settings() -> Iterator[tuple[str, list[Network], Float, list[int]]]:
    """Yield the name of each setting with its networks, their times in ms a batch, and their batch sizes."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    with open(data_folder() / "public_latency.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["setting"]].append(row)
    for setting, found in sorted(rows.items()):
        batches = [int(row["batch"]) for row in found]
        speeds = np.array([float(row["images_per_second"]) for row in found])
        networks = [find_published(row["network"]).network for row in found]
        yield setting, networks, 1000 * np.array(batches) / speeds, batches


def line_errors(features: Float, times: Float) -> Float:
    """Return the relative error of each time, predicted by a line through the features of the others."""
    relative = features / times[:, None]
    errors = []
    for i in range(len(times)):
        kept = np.arange(len(times)) != i
        costs = np.linalg.lstsq(relative[kept], np.ones(kept.sum()), rcond=None)[0]
        errors.append(float(relative[i] @ costs) - 1)
    return np.array(errors)


def measure() -> list[dict[str, Any]]:
    results = []
    for setting, networks, times, batches in settings():
        work = np.concatenate(
            [network_work([network], 224, 1000, batch) for network, batch in zip(networks, batches, strict=True)]
        )
        model = fit_latency_model(work, times)
        points = np.log(work + 1)
        deviation = points.std(axis=0)
        chosen = spread_rows((points - points.mean(axis=0)) / np.where(deviation > 0, deviation, 1), CALIBRATED)
        others = np.setdiff1d(np.arange(len(times)), chosen)
        few = fit_latency_model(work[chosen], times[chosen])
        totals = [network_complexity(network, 224, 1000).total for network in networks]
        macs, activations = (
            np.array([float(getattr(total, name)) for total in totals]) * batches for name in ("macs", "activations")
        )
        one = np.ones(len(times))
        results.append(
            {
                "setting": setting,
                "networks": len(times),
                "left_out": model.mean_error,
                "largest": model.largest_error,
                "rank_correlation": rank_correlation((1 + model.errors) * times, times),
                "calibrated": float(np.abs(few.predict(work[others]) / times[others] - 1).mean()),
                "by_macs": float(np.abs(line_errors(np.stack([one, macs], axis=1), times)).mean()),
                "by_macs_and_activations": float(
                    np.abs(line_errors(np.stack([one, macs, activations], axis=1), times)).mean()
                ),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()
    results = measure()
    print(f"{'setting':45} {'left out':>9} {'rank':>7} {'20 networks':>12} {'MACs':>7} {'MACs, acts':>11}")
    for each in results:
        print(
            f"{each['setting']:45} {each['left_out']:9.1%} {each['rank_correlation']:7.4f} {each['calibrated']:12.1%} "
            f"{each['by_macs']:7.1%} {each['by_macs_and_activations']:11.1%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
