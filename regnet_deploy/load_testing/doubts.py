"""Whether other programs on the machine may have decided what ``tune`` found."""

from __future__ import annotations

from collections.abc import Sequence

from regnet_deploy.bundle.measurements import TuningRow

#: A setting with this share of the rate of another one is near it.
_NEAR = 1 / 1.25
#: Share of the cores that other programs may use before a choice between near rates is doubtful.
_BUSY_SHARE = 0.1


def doubts(best: TuningRow, rows: Sequence[TuningRow], contended_cores: float | None, cores: int) -> list[str]:
    """Return why a result may be one of other programs on the machine and not of the settings; often nothing.

    Args:
        best: the winner.
        rows: all results.
        contended_cores: mean number of cores that other programs took from the measurements; None if it is not known.
        cores: that this process may use.
    """
    found = []
    rates = {row.setting: max(row.rate, row.first_rate or 0.0) for row in rows if row.setting != best.setting}
    highest = max(rates, key=lambda one: rates[one], default=None)
    if highest is not None and best.rate < _NEAR * rates[highest]:
        found.append(
            f"{highest} had {rates[highest]:.1f} images/s when it was tried, and the best has {best.rate:.1f} now"
        )
    pair = best.setting.runtime, best.setting.variant
    near = [
        one for one in rates if (one.runtime, one.variant) != pair and rates[one] >= _NEAR * best.rate and rates[one]
    ]
    if near and contended_cores is not None and contended_cores > _BUSY_SHARE * cores:
        closest = max(near, key=lambda one: rates[one])
        found.append(
            f"other programs used {contended_cores:.1f} of {cores} cores meanwhile, and {closest} had "
            f"{rates[closest]:.1f} images/s, the best {best.rate:.1f}"
        )
    return found
