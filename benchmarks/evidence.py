"""Measures how well trained populations, and the score of `select` without them, predict which networks are better.

    python benchmarks/evidence.py [FILE ...] [--shuffles 200] [--json FILE]

For each population (CSV or the store of a sweep; by default all of profiles/populations), restricted to the X or Y
networks of 4 stages that `select --evidence` uses:

* score: Spearman's rank correlation of the score with the measured error, with its 95 % bootstrap interval and
  two-sided p (negative: a higher score is a lower error), where the trials have the parameters of a line;
* off: root mean squared error of the predictions for trials that are left out, percentage points, of the regression on
  shape (its penalty chosen without the trial, too), of a line through the score, and of the mean;
* explained and rank: share of the variance, and Spearman's coefficient of the regression's left-out predictions;
* decides: whether `select` would rank by it;
* by chance: the number of populations with the same networks and shuffled errors for which it would.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.analysis.rank_correlation import rank_correlations
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.selection.evidence import fit_evidence, trend_scores
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.published import data_folder


def family_of(path: Path) -> str:
    families = Counter(network.family for network in read_trials(path).networks if network.family in ("x", "y"))
    return families.most_common(1)[0][0] if families else "x"


def evaluate(trials: TrialSet, family: str, shuffles: int) -> dict[str, Any]:
    evidence = fit_evidence([trials], family)
    scores = trend_scores([trials], family)
    generator = np.random.default_rng(0)
    decided = [
        fit_evidence([replace(trials, errors=generator.permutation(trials.errors))], family).decides
        for _ in range(shuffles)
    ]
    return {
        "family": family,
        **trials.to_json(),
        "score": None if scores is None else rank_correlations("score", scores, trials.errors).spearman.to_json(),
        "left_out": evidence.to_json()["left_out"],
        "decides": evidence.decides,
        "points_per_deviation": evidence.to_json()["points_per_deviation"],
        "shuffles": shuffles,
        "decides_by_chance": sum(decided),
    }


def row(result: dict[str, Any]) -> str:
    score, left_out = result["score"], result["left_out"]
    regression, prior, mean = left_out["regression"], left_out["prior"], left_out["mean"]
    known = (
        "-" if score is None else "{value:+.2f} ({ci95_low:+.2f} to {ci95_high:+.2f}), p {p_value:.1g}".format(**score)
    )
    line = "-" if prior is None else f"{prior['rmse']:.2f}"
    return (
        f"{result['trials']:>7}{known:>34}{regression['rmse']:>11.2f}{line:>7}{mean['rmse']:>7.2f}"
        f"{regression['explained']:>11.0%}{regression['spearman']:>+7.2f}{'yes' if result['decides'] else 'no':>9}"
        f"{result['decides_by_chance']:>6} of {result['shuffles']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--shuffles", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = options.files or sorted((data_folder() / "populations").glob("*.csv"))
    heading = f"{'population':34}{'trials':>7}{'score':>34}{'off: shape':>11}{'score':>7}{'mean':>7}"
    print(f"{heading}{'explained':>11}{'rank':>7}{'decides':>9}  by chance")
    results = {}
    for path in files:
        try:
            family = family_of(path)
            results[path.stem] = evaluate(TrialSet.read(path, family), family, options.shuffles)
        except RegnetDeployError as error:
            print(f"{path.stem:34}no evidence: {error}")
            continue
        print(f"{path.stem:34}{row(results[path.stem])}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
