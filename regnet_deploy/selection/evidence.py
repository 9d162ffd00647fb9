"""What the user's own trained networks say: a regression of error on shape, and whether it may decide.

The regression (:mod:`regnet_deploy.selection.ridge_regression`) predicts the error of a network from its shape
(:mod:`regnet_deploy.selection.shape_features`), at the MACs and under the conditions of the trials it was fitted to.
Of a
candidate at another budget it says what a network that stands to the published ones of its MACs in the same way would
have done in the sweep. Of candidates beyond the shapes that were swept (in leverage) it is not known how good it is:
the best of a line over a wide space lies in a corner that nobody has seen.

It is judged on left-out trials, with its penalty chosen without them, against two ways to know less: the mean, and a
line through the score of :mod:`regnet_deploy.selection.trends`, also fitted without the trial. It decides only if it is
better than both by more than the standard error of the difference (of squared errors, paired by trial). Otherwise the
score goes on to decide: evidence that does not predict must not pick. Better by any amount would let noise decide far
more often; how often it still does, ``benchmarks/evidence.py`` measures by shuffling the errors of a population.
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
from regnet_deploy.selection.ridge_regression import NONE, Ridge, fit_ridge, leave_one_out, rank_correlation
from regnet_deploy.selection.shape_features import REGRESSORS, Baseline, StageArrays, fit_baseline, regressors
from regnet_deploy.selection.trends import fit_trends
from regnet_deploy.selection.trial_set import TrialSet
from regnet_deploy.space.population import Population
from regnet_deploy.space.published import baselines

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class CrossValidation:
    """How well a predictor did on trials that it was fitted without.

    Attributes:
        rmse: root of the mean squared left-out error, percentage points.
        explained: share of the variance explained: 1 less squared errors over those of predicting the mean, left out
            too. 0 is no better than the mean, below 0 worse.
        spearman: rank correlation with the measured errors, 1 being their order: of left-out predictions; of the score
            itself, negated, which was never fitted to them. None for the mean, which ranks nothing.
    """

    rmse: float
    explained: float
    spearman: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return JSON data."""
        return {
            "rmse": round(self.rmse, 4),
            "explained": round(self.explained, 4),
            "spearman": None if self.spearman is None else round(self.spearman, 4),
        }


@dataclass(frozen=True)
class Evidence:
    """Trials, what was learnt from them, and how good it is.

    Attributes:
        swept: what the trials are, a file each.
        usual: what is usual of the family.
        ridge: the regression, fitted to all trials.
        regression: how good the regression is.
        prior: how good the score is; None where trials have no parameters of a line, and so no score.
        mean: how good predicting the mean is.
        decides: whether the regression is better than both, by more than the standard error of the difference.
    """

    swept: tuple[TrialSet, ...]
    usual: Baseline
    ridge: Ridge
    regression: CrossValidation
    prior: CrossValidation | None
    mean: CrossValidation
    decides: bool

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(len(each) for each in self.swept)

    @property
    def reference_macs(self) -> tuple[int, int]:
        """Least and most MACs of the trials, at 224 pixels."""
        macs = np.concatenate([each.reference_macs for each in self.swept])
        return int(macs.min()), int(macs.max())

    def predict(self, candidates: Population) -> tuple[Float, NDArray[np.bool_]]:
        """Return the predicted error of candidates, percent, and which of them are beyond what was swept, ``(n,)``.

        The level is that of the first file's trials.
        """
        x = regressors(self.usual.shapes(StageArrays.of_population(candidates)))
        return self.ridge.predict(x, 0), ~self.ridge.knows(x)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        per_deviation = self.ridge.coefficients * self.ridge.deviation
        return {
            "sources": [each.to_json() for each in self.swept],
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
    """Read what can be used of trained populations for a family, and learn from it.

    Raises:
        UsageError: too few trials of the family, trials without networks, or a file named twice.
        DataError: a file cannot be read.
    """
    swept = [TrialSet.read(path, family) for path in paths]
    for i, each in enumerate(swept):
        for earlier in swept[:i]:
            if each.repeats(earlier):
                raise UsageError(
                    f"{earlier.file} and {each.file} hold the same trials, which could then not be left out: give one"
                )
    return fit_evidence(swept, family)


def family_of(paths: Sequence[Path]) -> str | None:
    """Return the family of most of the trials, ``x`` or ``y``; None where neither has the most.

    Raises:
        DataError: a file cannot be read.
    """
    counts = Counter(network.family for path in paths for network in read_trials(path).networks)
    ranked = sorted("xy", key=lambda family: -counts[family])
    return ranked[0] if counts[ranked[0]] > counts[ranked[1]] else None


def fit_evidence(swept: Sequence[TrialSet], family: str) -> Evidence:
    """Fit and judge.

    Args:
        swept: trials by file; files share the coefficients, and each has a level of its own.
        family: of all of them, ``x`` or ``y``.
    """
    usual = fit_baseline(family)
    x = regressors(np.concatenate([usual.shapes(each.stages) for each in swept]))
    errors = np.concatenate([each.errors for each in swept])
    group = np.repeat(np.arange(len(swept)), [len(each) for each in swept])
    left_out = {"regression": leave_one_out(x, errors, group), "mean": leave_one_out(x[:, :0], errors, group, NONE)}
    scores = prior_scores(swept, family)
    if scores is not None:
        left_out["prior"] = leave_one_out(scores[:, None], errors, group, NONE)
    squares = {name: (predicted - errors) ** 2 for name, predicted in left_out.items()}
    level = np.array([each.errors.mean() for each in swept])[group]

    def judged(name: str, ranking: Float | None) -> CrossValidation:
        explained = 1 - squares[name].sum() / squares["mean"].sum() if squares["mean"].any() else 0.0
        spearman = None if ranking is None else rank_correlation(ranking, errors - level)
        return CrossValidation(float(np.sqrt(squares[name].mean())), float(explained), spearman)

    return Evidence(
        swept=tuple(swept),
        usual=usual,
        ridge=fit_ridge(x, errors, group),
        regression=judged("regression", left_out["regression"] - level),
        prior=None if scores is None else judged("prior", _within(-scores, group)),
        mean=judged("mean", None),
        decides=all(_better(squares["regression"], squares[name]) for name in squares if name != "regression"),
    )


def prior_scores(swept: Sequence[TrialSet], family: str) -> Float | None:
    """Return the trials' scores under the trends, ``(n,)``; None where not all have the parameters of a line."""
    parameters = np.concatenate([each.parameters for each in swept])
    if not (np.isfinite(parameters).all() and (parameters > 0).all()):
        return None
    macs = np.concatenate([each.reference_macs for each in swept])
    return fit_trends(baselines(family)).log_likelihood(parameters, macs)


def _better(squares: Float, others: Float) -> bool:
    """Return whether squared errors are less than others by more than the standard error of the difference."""
    gain = others - squares
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _within(values: Float, group: Int) -> Float:
    """Return values less the mean of their group."""
    deviation: Float = values - (np.bincount(group, values) / np.bincount(group))[group]
    return deviation
