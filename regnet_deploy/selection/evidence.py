"""Evidence from the user's own trained networks: a regression of the error on the shape, and whether to use it.

The regression (:mod:`regnet_deploy.selection.ridge_regression`) predicts the error of a network from its shape
(:mod:`regnet_deploy.selection.shape_features`), at the MACs and under the conditions of the trials. Shapes are relative
to the published networks with the same MACs: for a candidate at another budget, the prediction is that of a network
with the same relative shape in the sweep. How well it predicts candidates outside the shapes of the trials, measured by
their leverage, is not known.

The regression is evaluated on left-out trials, with a penalty that is chosen without them, against two simpler
predictors: the mean, and a line through the score of :mod:`regnet_deploy.selection.trends`, which is also fitted
without the trial. It decides the ranking only if its squared errors are smaller than those of both by more than the
standard error of the difference, paired by trial; otherwise candidates are ranked by their score. With a weaker
criterion, noise would decide far more often; ``benchmarks/evidence.py`` measures how often it still does, by shuffling
the errors of a population.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.selection.ridge_regression import NO_PENALTY, Ridge, fit_ridge, leave_one_out, rank_correlation
from regnet_deploy.selection.shape_features import REGRESSORS, Baseline, StageArrays, fit_baseline, regressors
from regnet_deploy.selection.trends import fit_trends
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import baselines

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class CrossValidation:
    """How well a predictor predicts trials that it was not fitted to.

    Attributes:
        rmse: root mean square error on left-out trials, percentage points.
        explained_variance: 1 minus the sum of squared errors divided by that of the mean, which is also computed
            without the trial. 0 is as good as the mean, a negative value is worse.
        spearman: rank correlation with the measured errors. For the trend score, which is not fitted to the errors, it
            is that of the negated score; None for the mean.
    """

    rmse: float
    explained_variance: float
    spearman: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return JSON data."""
        return {
            "rmse": round(self.rmse, 4),
            "explained": round(self.explained_variance, 4),
            "spearman": None if self.spearman is None else round(self.spearman, 4),
        }


@dataclass(frozen=True)
class Evidence:
    """Trials, the regression that is fitted to them, and its quality.

    Attributes:
        trial_sets: the trials, one set for each file.
        baseline: the shapes of the published networks of the family.
        ridge: the regression, fitted to all trials.
        regression: quality of the regression.
        prior: quality of the trend score; None where trials have no parameters of a quantized line, and so no score.
        mean: quality of the mean.
        decides: whether the regression is better than both, by more than the standard error of the difference.
    """

    trial_sets: tuple[TrialSet, ...]
    baseline: Baseline
    ridge: Ridge
    regression: CrossValidation
    prior: CrossValidation | None
    mean: CrossValidation
    decides: bool

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(len(each) for each in self.trial_sets)

    @property
    def reference_macs(self) -> tuple[int, int]:
        """Smallest and largest MACs of the trials, at 224 pixels."""
        macs = np.concatenate([each.reference_macs for each in self.trial_sets])
        return int(macs.min()), int(macs.max())

    def predict(self, candidates: Population) -> tuple[Float, NDArray[np.bool_]]:
        """Return the predicted error of candidates, percent, and which of them are extrapolated, ``(n,)`` each.

        Errors are predicted for the conditions of the first file.
        """
        x = regressors(self.baseline.shapes(StageArrays.of_population(candidates)))
        return self.ridge.predict(x, 0), ~self.ridge.covers(x)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        per_deviation = self.ridge.coefficients * self.ridge.deviation
        return {
            "sources": [each.to_json() for each in self.trial_sets],
            "trials": self.trials,
            "reference_macs": list(self.reference_macs),
            "decides": self.decides,
            "left_out": {
                "regression": self.regression.to_json(),
                "prior": None if self.prior is None else self.prior.to_json(),
                "mean": self.mean.to_json(),
            },
            "penalty": self.ridge.penalty,
            "points_per_deviation": dict(zip(REGRESSORS, np.round(per_deviation, 4).tolist(), strict=True)),
        }


def read_evidence(paths: Sequence[Path], family: str) -> Evidence:
    """Read the usable trials of a family from trained populations, and fit the regression.

    Raises:
        UsageError: there are too few trials of the family, a file does not describe networks, or two files hold the
            same trials.
        DataError: a file cannot be read.
    """
    trial_sets = [TrialSet.read(path, family) for path in paths]
    for i, each in enumerate(trial_sets):
        for earlier in trial_sets[:i]:
            if each.overlaps(earlier):
                raise UsageError(
                    f"{earlier.file} and {each.file} hold the same trials, so leave-one-out validation is impossible: "
                    "give only one of them"
                )
    return fit_evidence(trial_sets, family)


def family_of(paths: Sequence[Path]) -> str | None:
    """Return the family of the majority of the trials, ``x`` or ``y``; None where there is no majority.

    Raises:
        DataError: a file cannot be read.
    """
    counts = Counter(network.family for path in paths for network in read_trials(path).networks)
    ranked = sorted("xy", key=lambda family: -counts[family])
    return ranked[0] if counts[ranked[0]] > counts[ranked[1]] else None


def fit_evidence(trial_sets: Sequence[TrialSet], family: str) -> Evidence:
    """Fit the regression and evaluate it.

    Args:
        trial_sets: the trials; the sets share the coefficients, and each has its own intercept.
        family: the family of all of them, ``x`` or ``y``.
    """
    baseline = fit_baseline(family)
    x = regressors(np.concatenate([baseline.shapes(each.stages) for each in trial_sets]))
    errors = np.concatenate([each.errors for each in trial_sets])
    group = np.repeat(np.arange(len(trial_sets)), [len(each) for each in trial_sets])
    left_out = {
        "regression": leave_one_out(x, errors, group),
        "mean": leave_one_out(x[:, :0], errors, group, NO_PENALTY),
    }
    scores = trend_scores(trial_sets, family)
    if scores is not None:
        left_out["prior"] = leave_one_out(scores[:, None], errors, group, NO_PENALTY)
    squares = {name: (predicted - errors) ** 2 for name, predicted in left_out.items()}
    group_mean = np.array([each.errors.mean() for each in trial_sets])[group]

    def quality(name: str, ranking: Float | None) -> CrossValidation:
        explained = 1 - squares[name].sum() / squares["mean"].sum() if squares["mean"].any() else 0.0
        spearman = None if ranking is None else rank_correlation(ranking, errors - group_mean)
        return CrossValidation(float(np.sqrt(squares[name].mean())), float(explained), spearman)

    return Evidence(
        trial_sets=tuple(trial_sets),
        baseline=baseline,
        ridge=fit_ridge(x, errors, group),
        regression=quality("regression", left_out["regression"] - group_mean),
        prior=None if scores is None else quality("prior", _minus_group_mean(-scores, group)),
        mean=quality("mean", None),
        decides=all(
            _significantly_smaller(squares["regression"], squares[name]) for name in squares if name != "regression"
        ),
    )


def trend_scores(trial_sets: Sequence[TrialSet], family: str) -> Float | None:
    """Return the scores of trials under the trends, ``(n,)``; None where not all have parameters of a line."""
    parameters = np.concatenate([each.parameters for each in trial_sets])
    if not (np.isfinite(parameters).all() and (parameters > 0).all()):
        return None
    macs = np.concatenate([each.reference_macs for each in trial_sets])
    return fit_trends(baselines(family)).log_likelihood(parameters, macs)


def _significantly_smaller(squares: Float, others: Float) -> bool:
    """Return whether squared errors are smaller than others by more than the standard error of the difference."""
    gain = others - squares
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _minus_group_mean(values: Float, group: Int) -> Float:
    deviation: Float = values - (np.bincount(group, values) / np.bincount(group))[group]
    return deviation
