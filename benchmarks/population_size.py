"""Measures how many networks the range of the best values of a parameter needs.

n networks are drawn from a population without replacement, 40 times, and the 95 % interval of the best value of each
drawn parameter is computed (``analysis.best_range``). The table has, by n, the share of the intervals that contain the
median value of the best tenth of the whole population, and the share of the population that is inside them.

    python benchmarks/population_size.py [POPULATION.csv ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from regnet_deploy.analysis.best_range import best_range
from regnet_deploy.analysis.columns import varies
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.populations.trials import Trials

POPULATIONS = Path(__file__).parent.parent / "profiles" / "populations"
SIZES, DRAWS, REPEATS = (6, 10, 15, 20, 30, 40), 40, 1000


def coverage(trials: Trials, n: int) -> tuple[float, float]:
    """Return the share of intervals that contain the best value, and the mean share of networks inside them."""
    best = np.argsort(trials.error)[: max(5, len(trials) // 10)]
    columns = [trials.columns[name] for name in trials.drawn if varies(trials.columns[name])]
    generator = np.random.default_rng(0)
    covers, inside = [], []
    for draw in range(DRAWS):
        rows = generator.choice(len(trials), n, replace=False)
        for values in columns:
            made = best_range("x", values[rows], trials.error[rows], repeats=REPEATS, seed=draw)
            covers.append(made.low <= np.median(values[best]) <= made.high)
            inside.append(((made.low <= values) & (values <= made.high)).mean())
    return float(np.mean(covers)), float(np.mean(inside))


def main(paths: list[Path]) -> None:
    """Print the table of the populations as Markdown."""
    print(f"| population | networks | {' | '.join(f'n = {n}' for n in SIZES)} |")
    print("| --- | --- |" + " --- |" * len(SIZES))
    for path in paths:
        trials = read_trials(path)
        cells = []
        for n in SIZES:
            if n > len(trials):
                cells.append("-")
                continue
            covers, inside = coverage(trials, n)
            cells.append(f"{covers * 100:.0f} % ({inside * 100:.0f} %)")
        print(f"| {path.stem} | {len(trials)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main([Path(given) for given in sys.argv[1:]] or sorted(POPULATIONS.glob("*.csv")))
