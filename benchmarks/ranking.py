"""Measures how well `select` ranks published networks that are left out of its fit.

For each of the 24 published networks: fit the trends without it, find all candidates for its MACs (± 1 %), rank them,
and report the percentile at which the left-out network ranks (0 is the first; a random order gives 50 on average).

    python benchmarks/ranking.py [--json FILE] [--figure FILE]

Other rankings are measured in the same way:

* all-trends: d and w_m follow MACs too;
* full-covariance: residuals of the five parameters may be correlated (covariance shrunk half-way to its diagonal);
* likelihood-ratio: the score minus the log-density of the candidates themselves, as a normal distribution;
* fewest-activations, deepest: single counts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from regnet_deploy.selection.trends import Trends, fit_trends, score_population
from regnet_deploy.space.enumeration import Bounds, ConstrainedSpace, regnets_between
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import PublishedNetwork, baselines

SHIPPED = "select's score"


def parameters_of(entry: PublishedNetwork) -> np.ndarray:
    return np.array([entry.d, entry.w_0, entry.w_a, entry.w_m, entry.g], dtype=np.float64)


def with_all_trends(networks: list[PublishedNetwork], trends: Trends) -> Trends:
    ln_f = np.log([p.macs / 1e9 for p in networks])
    ln_x = np.log(np.stack([parameters_of(p) for p in networks]))
    design = np.stack([np.ones_like(ln_f), ln_f], axis=1)
    coefficients = np.linalg.lstsq(design, ln_x, rcond=None)[0]
    residual = ln_x - design @ coefficients
    spread = np.sqrt((residual**2).sum(axis=0) / (len(ln_f) - 2))
    return replace(trends, intercept=coefficients[0], slope=coefficients[1], spread=spread)


def quadratic(z: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return -0.5 * np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)


def percentiles_of(left_out: PublishedNetwork) -> dict[str, float]:
    others = [p for p in baselines(left_out.family) if p is not left_out]
    trends = fit_trends(others)
    rows = regnets_between(
        left_out.macs * 0.99, left_out.macs * 1.01, ConstrainedSpace(left_out.family, bounds=Bounds())
    )
    scores, w_a = score_population(trends, rows)
    kept = rows.distinct_rows(scores)
    scores = scores[kept]
    population: Population = rows.take(kept)
    candidates = np.stack([population.d, population.w_0, w_a[kept], population.w_m, population.g], axis=1)
    own = parameters_of(left_out)[None]

    def better(theirs: np.ndarray, mine: float) -> float:
        return 100 * float((theirs > mine).mean())

    result = {SHIPPED: better(scores, float(trends.log_likelihood(own, left_out.macs)[0]))}
    every = with_all_trends(others, trends)
    result["all-trends"] = better(
        every.log_likelihood(candidates, population.reference_macs), float(every.log_likelihood(own, left_out.macs)[0])
    )
    residuals = np.stack([np.log(parameters_of(p)) - trends.expected(p.macs) for p in others])
    covariance = np.cov(residuals.T)
    covariance = 0.5 * covariance + 0.5 * np.diag(np.diag(covariance))
    z, z_own = (
        np.log(candidates) - trends.expected(population.reference_macs),
        np.log(own) - trends.expected(left_out.macs),
    )
    result["full-covariance"] = better(quadratic(z, covariance), float(quadratic(z_own, covariance)[0]))
    center, spread = z.mean(axis=0), np.cov(z.T)
    ratio = scores - quadratic(z - center, spread)
    own_ratio = trends.log_likelihood(own, left_out.macs)[0] - quadratic(z_own - center, spread)[0]
    result["likelihood-ratio"] = better(ratio, float(own_ratio))
    result["fewest-activations"] = better(-population.activations, -left_out.activations)
    result["deepest"] = better(population.d, left_out.d)
    result["candidates"] = len(population)
    return result


def figure(results: dict[str, dict[str, float]], target: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    names = list(results)
    values = [results[name][SHIPPED] for name in names]
    drawing = Figure(figsize=(9, 4), layout="constrained")
    axis = drawing.subplots()
    colors = ["#0072B2" if "X" in name else "#D55E00" for name in names]
    axis.bar(range(len(names)), values, color=colors)
    axis.axhline(50, color="#555555", linestyle="--", linewidth=1)
    axis.text(len(names) - 0.2, 52, "random order", ha="right", fontsize=9, color="#555555")
    axis.axhline(float(np.median(values)), color="#009E73", linewidth=1)
    axis.text(
        len(names) + 0.6,
        np.median(values),
        f"median\n{np.median(values):.1f}",
        va="center",
        fontsize=9,
        color="#009E73",
    )
    axis.set_xlim(-0.8, len(names) + 0.4)
    axis.set_xticks(range(len(names)), [n.removeprefix("RegNet") for n in names], rotation=60, ha="right", fontsize=9)
    axis.set_ylabel("rank among candidates, percentile\n(0 is first)")
    axis.set_ylim(0, 70)
    axis.set_title("Where each published network ranks when the trends are fitted without it")
    with matplotlib.rc_context({"svg.hashsalt": "ranking", "svg.fonttype": "none"}):  # equal figures, equal bytes
        drawing.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    results = {p.name: percentiles_of(p) for family in "xy" for p in baselines(family)}
    ways = [way for way in next(iter(results.values())) if way != "candidates"]
    print(f"{'left out':15}{'candidates':>11}" + "".join(f"{way:>20}" for way in ways))
    for name, row in results.items():
        print(f"{name:15}{row['candidates']:>11,}" + "".join(f"{row[way]:>20.1f}" for way in ways))
    summary = {
        way: {
            "median": round(float(np.median([row[way] for row in results.values()])), 1),
            "mean": round(float(np.mean([row[way] for row in results.values()])), 1),
        }
        for way in ways
    }
    for figure_of in ("median", "mean"):
        print(f"{figure_of:26}" + "".join(f"{summary[way][figure_of]:>20.1f}" for way in ways))
    if options.json:
        options.json.write_text(json.dumps({"percentiles": results, "summary": summary}, indent=1) + "\n")
    if options.figure:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
