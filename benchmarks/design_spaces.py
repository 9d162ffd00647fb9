"""Write docs/design-spaces.md and its figures from the populations under profiles/populations.

    python benchmarks/design_spaces.py

The populations were trained by the commands that the page names. `tests/test_benchmarks.py` holds that the page is
what this program writes.
"""

# ruff: noqa: E501  # lines of the page

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from measurements import ROOT, read, table

from regnet_deploy.analysis.analysis import Analysis, PopulationAnalysis, analyze
from regnet_deploy.analysis.best_range import best_range
from regnet_deploy.analysis.columns import format_value, label
from regnet_deploy.analysis.output_files import all_figures
from regnet_deploy.plotting import save_figure
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.populations.trials import Trials
from regnet_deploy.selection.ridge_regression import rank_correlation

PAGE = ROOT / "docs" / "design-spaces.md"
FIGURES = ROOT / "docs" / "figures" / "design-spaces"
POPULATIONS = ROOT / "profiles" / "populations"
SPACES = ("AnyNetX_A", "AnyNetX_E", "RegNetX")
ZHANG = POPULATIONS / "regnetx_0.4gf_zhang2020.csv"


def population(space: str) -> Trials:
    return read_trials(POPULATIONS / f"glyphs32_{space}.csv")


def with_fitted_line(trials: Trials, analysis: PopulationAnalysis) -> Trials:
    """Add w_m and e_fit of the fitted line of each network, which exist for AnyNets too."""
    added = {
        "w_m fitted": np.array([fit.w_m for fit in analysis.fits]),
        "e_fit": np.array([fit.e_fit for fit in analysis.fits]),
    }
    return replace(trials, columns={**trials.columns, **added})


def mean_difference(better: Trials, worse: Trials, repeats: int = 10_000) -> tuple[float, float, float]:
    """Return the difference of the mean errors in points, and its 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    means = [rng.choice(t.error, (repeats, len(t))).mean(axis=1) for t in (worse, better)]
    low, high = np.percentile(means[0] - means[1], (2.5, 97.5))
    return float(worse.error.mean() - better.error.mean()), float(low), float(high)


def summary(analysis: Analysis, populations: list[Trials]) -> str:
    rows = []
    for made, trials in zip(analysis.populations, populations, strict=True):
        errors, search = made.distribution, made.search.expected
        rows.append(
            [
                made.name,
                str(errors.n),
                str(trials.unsuccessful),
                *(f"{value:.2f}" for value in (errors.minimum, errors.mean, errors.median)),
                *(f"{search[m - 1]:.2f}" if m <= len(search) else "-" for m in (8, 32)),
            ]
        )
    columns = ["space", "networks", "diverged or failed", "lowest", "mean", "median", "best of 8", "best of 32"]
    return table(columns, rows)


def distances(analysis: Analysis, populations: list[Trials]) -> str:
    by_name = dict(zip((each.name for each in analysis.populations), populations, strict=True))
    rows = []
    for each in analysis.distances:
        worse, better = by_name[each.first], by_name[each.second]
        points, low, high = mean_difference(better, worse)
        rows.append(
            [
                f"{each.first} / {each.second}",
                f"{each.statistic:.3f}",
                f"{each.p_value:.2g}",
                each.better or "neither",
                f"{points:+.2f} ({low:+.2f} to {high:+.2f})",
            ]
        )
    return table(["spaces", "KS D", "p", "better", "mean error of the first minus that of the second, points"], rows)


def ranges(populations: list[Trials], columns: list[str]) -> str:
    rows = []
    for column in columns:
        cells = []
        for trials in populations:
            if column not in trials.columns:
                cells.append("-")
                continue
            made = best_range(column, trials.columns[column], trials.error)
            cells.append(
                f"{format_value(column, made.median)} ({format_value(column, made.low)} to {format_value(column, made.high)})"
            )
        rows.append([label(column), *cells])
    return table(["best value: median (95 %)", *(trials.space for trials in populations)], rows)


def correlations(analysis: Analysis, columns: list[str]) -> str:
    rows = []
    for column in columns:
        cells = []
        for made in analysis.populations:
            found = next((each.spearman for each in made.rankings if each.column == column), None)
            cells.append("-" if found is None else f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
        rows.append([label(column), *cells])
    return table(["Spearman with the error (95 %)", *(made.name for made in analysis.populations)], rows)


def setting(space: str) -> dict[str, str]:
    with (POPULATIONS / f"glyphs32_{space}.csv").open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file))


def trained_hours() -> float:
    seconds = 0.0
    for space in SPACES:
        with (POPULATIONS / f"glyphs32_{space}.csv").open(encoding="utf-8", newline="") as file:
            seconds += sum(float(row["seconds"]) for row in csv.DictReader(file))
    return seconds / 3600


def score_table() -> str:
    rows = []
    for name, each in read("evidence").items():
        score, left_out = each["score"], each["left_out"]
        known = score is not None
        rows.append(
            [
                name,
                str(each["trials"]),
                f"{score['value']:+.2f} ({score['ci95_low']:+.2f} to {score['ci95_high']:+.2f})" if known else "-",
                f"{score['p_value']:.2g}" if known else "-",
                f"{left_out['regression']['spearman']:+.2f}",
                f"{left_out['regression']['rmse']:.2f}",
                f"{left_out['prior']['rmse']:.2f}" if left_out["prior"] else "-",
                f"{left_out['mean']['rmse']:.2f}",
            ]
        )
    columns = ["population", "networks used", "score and error (95 %)", "p", "regression and error"]
    return table([*columns, "error of regression", "of score", "of mean"], rows)


def errors_by_number(file: str) -> dict[int, float]:
    with (POPULATIONS / file).open(encoding="utf-8", newline="") as opened:
        return {int(row["number"]): float(row["error"]) for row in csv.DictReader(opened) if row["error"]}


def seeds() -> str:
    """Return the comparison of networks that were trained with two seeds."""
    rows = []
    for space in SPACES:
        first, second = errors_by_number(f"glyphs32_{space}.csv"), errors_by_number(f"second_seed/glyphs32_{space}.csv")
        both = [number for number in first if number in second]
        one, other = (np.array([errors[number] for number in both]) for errors in (first, second))
        noise = float(np.sqrt(((one - other) ** 2).mean() / 2))
        rows.append(
            [
                space,
                str(len(both)),
                f"{np.std(list(first.values()), ddof=1):.1f}",
                f"{noise:.1f}",
                f"{rank_correlation(one, other):+.2f}",
            ]
        )
    columns = ["space", "trained twice", "deviation between networks", "deviation by the seed", "rank correlation"]
    return table(columns, rows)


def findings(analysis: Analysis) -> str:
    """Return the findings; the text is valid for the populations in the repository."""
    a, e, x = (each.distribution for each in analysis.populations)
    ae, ax, ex = analysis.distances
    best = {(each.name, r.column): r.median for each in analysis.populations for r in each.ranges}
    likely = max(ae.p_value, ax.p_value)
    spearman = {(each.name, r.column): r.spearman.value for each in analysis.populations for r in each.rankings}
    return f"""**In this setting the order of the paper holds in the means ({x.mean:.1f} % RegNetX, {e.mean:.1f} % AnyNetX_E, {a.mean:.1f} % AnyNetX_A)
and in the medians ({x.median:.1f}, {e.median:.1f}, {a.median:.1f} %). AnyNetX_A is clearly the worst (KS D {ae.statistic:.2f} and {ax.statistic:.2f}, p {likely:.0e}
at most). The data do not show that RegNetX is better than AnyNetX_E: D {ex.statistic:.2f}, p {ex.p_value:.2f}, and the best network of all is an
AnyNetX_E ({e.minimum:.1f} % against {x.minimum:.1f} %).** The paper had 500 networks a space, 10 epochs and ImageNet; {e.n} networks of 4 epochs
cannot separate two spaces that are so similar.

- **Why AnyNetX_A is worse** is clear: the error depends on the width of the last stage (Spearman {spearman["AnyNetX_A", "w_4"]:+.2f}). Networks
  with a narrow last stage cannot separate 62 classes, and rising widths (the step from C to D in the paper) exclude them.
- **Depth** is not as in the paper, which finds about 20 blocks best at every budget: here the best have {best["AnyNetX_E", "d"]:g} (AnyNetX_E)
  and {best["RegNetX", "d"]:g} (RegNetX), and the error grows with depth ({spearman["AnyNetX_E", "d"]:+.2f} in AnyNetX_E, {spearman["RegNetX", "d"]:+.2f} in RegNetX). After 4 epochs without warm-up, deep networks have not
  converged yet. The best network after a short training is not necessarily the best after a long one.
- **w_m** agrees with the paper, which finds about 2.5: {best["RegNetX", "w_m"]:.2f}. **b** and **g** have little effect: their intervals are the whole range, while
  the paper prefers b = 1 and g > 1 (in AnyNetX_E a larger b is even a little better, {spearman["AnyNetX_E", "b"]:+.2f}).
- **e_fit** is not correlated with the error ({spearman["AnyNetX_A", "e_fit"]:+.2f} and {spearman["AnyNetX_E", "e_fit"]:+.2f}). The finding of the paper that good AnyNets have widths
  near a quantized line is not reproduced either."""


def score_findings() -> str:
    """Return the findings of the table of scores."""
    told = read("evidence")
    here, elsewhere = told["glyphs32_RegNetX"], told[ZHANG.stem]
    return f"""The score does not predict the order of either population. For the characters, the correlation even has the wrong sign ({here["score"]["value"]:+.2f}). The score
is fitted to networks that were the best after 100 epochs on ImageNet, and expects 12 to 28 blocks, while {setting(SPACES[0])["epochs"]} epochs
favor fewer. For the ImageNet population, the sign is right, but the correlation is not significant ({elsewhere["score"]["value"]:+.2f}, p {elsewhere["score"]["p_value"]:.1f}, with only {elsewhere["trials"]} networks of four
stages). Within a narrow band of MACs, where all candidates are RegNets, the likelihood under the published trends is only a
prior. The regression on a sweep does predict the order of networks that it was not fitted to ({here["left_out"]["regression"]["spearman"]:+.2f} and {elsewhere["left_out"]["regression"]["spearman"]:+.2f}), and its
error is about half of that of the mean ({here["left_out"]["regression"]["rmse"]:.1f} points against {here["left_out"]["mean"]["rmse"]:.1f}; {elsewhere["left_out"]["regression"]["rmse"]:.2f} against {elsewhere["left_out"]["mean"]["rmse"]:.2f}). This is the purpose of `select --evidence`."""


def page() -> str:
    plain = [population(space) for space in SPACES]
    analysis = analyze(plain)
    populations = [with_fitted_line(t, made) for t, made in zip(plain, analysis.populations, strict=True)]
    first = setting(SPACES[0])
    elsewhere = [replace(read_trials(ZHANG), space="zhang2020")]
    low, high = (f(f(t.columns["macs"]) for t in plain) / 1e6 for f in (min, max))
    by_stage = [f"{symbol}_{i}" for symbol in "bg" for i in range(1, 5)]
    return f"""# Three design spaces, compared

The central claim of the paper (arXiv 2003.13678, section 3) is that networks drawn from RegNetX are better than networks
drawn from AnyNetX_E, and these are better than networks drawn from AnyNetX_A. This page tests the claim on a small scale,
with {sum(map(len, plain))} networks of {low:.2f} to {high:.2f} MMACs that are trained from scratch on a data set that the paper does not use.
`python benchmarks/design_spaces.py` writes this page and its figures from `profiles/populations/`.

{findings(analysis)}

## Method

- **Data**: 62 characters (0-9, A-Z, a-z) rendered in different fonts, {first["train_images"]} training images and
  {first["val_images"]} validation images of other fonts; {first["resolution"]} x
  {first["resolution"]} pixels. The standard error of a measured error of 25 % is
  {100 * (0.25 * 0.75 / int(first["val_images"])) ** 0.5:.1f} points.
- **Networks**: AnyNetX_A (16 degrees of freedom: depth, width, bottleneck ratio and group width of each stage),
  AnyNetX_E (shared b and g, rising widths and depths), RegNetX (widths on a quantized line). They are drawn with seed
  {first["seed"]} on the scales that `regnet-deploy spaces` prints, and accepted if they have {first["mmacs"].replace(":", " to ")} MMACs; the stem has stride
  {first["stem_stride"]}.
- **Recipe**: {first["epochs"]} epochs, batch {first["batch_size"]}, SGD with Nesterov momentum, learning rate {first["lr"]} for
  128 images with a half-period cosine schedule, weight decay {first["weight_decay"]}, random crops of
  {100 * float(first["crop_area"]):.0f} % of the area or more, no flips (they would turn b into d). All networks have
  the same recipe and seed. The error is that of the best epoch.
- **Machine**: {first["cpu"]}, one thread per trial, two trials at a time, with other load; {trained_hours():.1f} core hours in total.
  The times in the CSV files are therefore not benchmarks of the networks.

The commands, for each space:

    regnet-deploy sweep --space AnyNetX_A --data glyphs --n {len(plain[0])} --mmacs {first["mmacs"]} --resolution {first["resolution"]} \\
      --epochs {first["epochs"]} --batch-size {first["batch_size"]} --lr {first["lr"]} --no-flip --crop-area {first["crop_area"]} \\
      --lighting 0 --precise-bn {first["precise_bn_images"]} --threads {first["threads"]}
    regnet-deploy analyze AnyNetX_A.sweep --csv glyphs32_AnyNetX_A.csv

`benchmarks/glyph_folder.py` writes the folder of images (`--train 100 --val 50`) from an archive of the rendered
characters, which is not part of this project.

## Distributions

Top-1 error, percent. "Best of m" is the expected lowest error of m random networks of the population.

{summary(analysis, plain)}

![Fraction of networks below each error](figures/design-spaces/edf.svg)

{distances(analysis, plain)}

KS is the two-sided two-sample Kolmogorov-Smirnov test; p is not corrected for the number of pairs. The intervals of the
differences are bootstrap intervals over the networks. They do not cover other seeds, data or recipes.

![Expected lowest error of m random networks](figures/design-spaces/random-search.svg)

The three populations have the same MACs, but different parameters and activations. Weighted so that activations have the
same distribution in all three:

![EDF with the same distribution of activations](figures/design-spaces/edf-activations.svg)

To measure the effect of chance, the first networks of each population were trained again with another seed (initial
weights, order of the images, crops; `--training-seed 1`). The table has standard deviations in percentage points of error;
that of the seed is for one training run.

{seeds()}

## Ranges of the best values

Bootstrap as in the paper: the best of a quarter of the networks, drawn with replacement, in 10,000 samples; median, and
the 2.5th to the 97.5th percentile. "w_m fitted" is that of the quantized line that fits the widths of a network best, which
exists for AnyNets too; e_fit is the distance of the widths from it (mean |ln| of the ratio).

{ranges(populations, ["d", "b", "g", *by_stage, "w_m", "w_m fitted", "w_0", "w_a", "e_fit", "parameters", "activations"])}

## Correlations with the error

{correlations(analysis, ["d", "b", "g", "d_1", "d_2", "d_3", "d_4", "w_1", "w_2", "w_3", "w_4", *by_stage, "w_m", "e_fit", "parameters", "activations"])}

![RegNetX](figures/design-spaces/RegNetX-parameters.svg)

![AnyNetX_E](figures/design-spaces/AnyNetX_E-parameters.svg)

![AnyNetX_A](figures/design-spaces/AnyNetX_A-parameters.svg)

Widths of the blocks of the best and the worst networks, with the fitted lines:

![RegNetX](figures/design-spaces/RegNetX-widths.svg)

![AnyNetX_A](figures/design-spaces/AnyNetX_A-widths.svg)

## A published population

32 RegNetX of 0.4 GMACs, trained on ImageNet for 25 epochs without crops or flips (`profiles/README.md` has the source).
Half of them do not have four stages.

{summary(analyze(elsewhere), elsewhere)}

{ranges(elsewhere, ["d", "w_0", "w_a", "w_m", "g", "parameters", "activations"])}

![Error over each parameter](figures/design-spaces/zhang2020-parameters.svg)

## Does the score of `select` predict the error?

`select` ranks by the likelihood of the parameters of a network under the trends of the published networks. A perfect score
would have a rank correlation of -1 with the error. `select --evidence` predicts the error by a regression on the shapes of
trained networks instead. The table has its root mean square error on networks that were left out of the fit, in percentage
points, and that of a line through the score and of the mean. `python benchmarks/evidence.py` prints these figures.

{score_table()}

{score_findings()}
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    FIGURES.mkdir(parents=True, exist_ok=True)
    populations = [population(space) for space in SPACES]
    for named in all_figures(analyze(populations), populations):
        save_figure(named.figure, FIGURES / f"{named.name}.svg")
    zhang = [replace(read_trials(ZHANG), space="zhang2020")]
    for named in all_figures(analyze(zhang), zhang):
        if named.name.startswith("zhang"):
            save_figure(named.figure, FIGURES / f"{named.name}.svg")
    print(f"wrote {Path(PAGE)} and {FIGURES}")


if __name__ == "__main__":
    main()
