"""Measures how many networks `select` finds for a budget, and how long the command takes from a cold start.

    python benchmarks/selection_time.py [--json FILE]

Each budget is run five times as `regnet-deploy select --gflops F` in a new process; the result is the median in
seconds. The time of `regnet-deploy --help` is measured in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUDGETS = (0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 6.4, 8.0, 12.0, 16.0, 32.0)
REPEATS = 5


def run(arguments: list[str], folder: str) -> tuple[float, str]:
    command = [sys.executable, "-m", "regnet_deploy", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        helps = [run(["--help"], folder)[0] for _ in range(2 * REPEATS)]
        results["help_s"] = round(statistics.median(helps), 3)
        print(f"--help: {results['help_s']} s")
        print(f"{'family':>7}{'GMACs':>8}{'distinct networks':>20}{'select, s':>12}")
        rows = []
        for family in "xy":
            for gmacs in BUDGETS:
                runs = [
                    run(["select", "--gflops", str(gmacs), "--family", family, "--json"], folder)
                    for _ in range(REPEATS)
                ]
                seconds = round(statistics.median(seconds for seconds, _ in runs), 2)
                considered = json.loads(runs[0][1])["considered"]
                rows.append({"family": family, "gmacs": gmacs, "considered": considered, "seconds": seconds})
                print(f"{family:>7}{gmacs:>8}{considered:>20,}{seconds:>12}")
    results["budgets"] = rows
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
