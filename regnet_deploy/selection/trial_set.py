"""The trials of one file that can be evidence about candidates: X or Y networks of 4 stages, with their errors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.populations.trials import Trials
from regnet_deploy.selection.budget import MAX_RESOLUTION, MIN_RESOLUTION
from regnet_deploy.selection.shape_features import StageArrays
from regnet_deploy.selection.trends import PARAMETERS
from regnet_deploy.space.complexity import complexity, network_complexity
from regnet_deploy.space.enumeration import STAGES
from regnet_deploy.space.network import REFERENCE_RESOLUTION, SE_RATIO, Network

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: Fewest trials that are evidence: of fewer, a left-out error is itself not known to within a quarter.
FEWEST = 10


@dataclass(frozen=True)
class TrialConditions:
    """What the trials were trained for, as far as their counts tell; None where they do not."""

    classes: int | None
    resolution: int | None


@dataclass(frozen=True)
class TrialSet:
    """Usable trials of one file.

    Attributes:
        file: name of the file.
        sha256: of its content.
        networks: of 4 stages and one family.
        errors: top-1 error, percent, ``(n,)``.
        parameters: the numbers that the trends are about, ``(n, 5)``; NaN where the file does not have them.
        reference_macs: MACs at 224 pixels with 1000 classes, ``(n,)``.
        conditions: classes and resolution.
        left_aside: how many trials were not usable, by what they are.
    """

    file: str
    sha256: str
    networks: tuple[Network, ...]
    errors: Float
    parameters: Float
    reference_macs: Int
    conditions: TrialConditions
    left_aside: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.errors)

    @property
    def stages(self) -> StageArrays:
        """The networks as arrays."""
        return StageArrays.of_networks(self.networks)

    def repeats(self, other: TrialSet) -> bool:
        """Return whether most trials are those of the other file too: a store and the CSV file that was made of it."""
        mine, theirs = (
            set(zip(each.networks, each.errors.round(3).tolist(), strict=True))  # as others may round them in CSV
            for each in (self, other)
        )
        return 2 * len(mine & theirs) > min(len(mine), len(theirs))

    @classmethod
    def read(cls, path: Path, family: str) -> TrialSet:
        """Read a store or a CSV file and take the trials of a family.

        Raises:
            UsageError: fewer than 10 are usable.
            DataError: the file cannot be read.
        """
        trials = read_trials(path)
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        return cls.of_trials(trials, family, path.name, digest)

    @classmethod
    def of_trials(cls, trials: Trials, family: str, file: str, sha256: str = "") -> TrialSet:
        """Take the trials of a family.

        Raises:
            UsageError: fewer than 10 are usable.
        """
        if not trials.networks:
            raise UsageError(
                f"{file} does not say what its networks are: evidence needs depths, widths and group widths of stages"
            )
        kept, left_aside, seen = [], Counter[str](), set[Hashable]()
        for row, (network, error) in enumerate(zip(trials.networks, trials.error.tolist(), strict=True)):
            reason = _unusable(network, error, family)
            if reason is None and (network, error) in seen:
                reason = "there twice"
            seen.add((network, error))
            if reason is None:
                kept.append(row)
            else:
                left_aside[reason] += 1
        if len(kept) < FEWEST:
            raise UsageError(_too_few(file, len(kept), left_aside, family))
        networks = tuple(trials.networks[row] for row in kept)
        columns = {name: values[kept] for name, values in trials.columns.items()}
        unknown = np.full(len(kept), np.nan)
        return cls(
            file=file,
            sha256=sha256,
            networks=networks,
            errors=trials.error[kept],
            parameters=np.stack([columns.get(name, unknown) for name in PARAMETERS], axis=1),
            reference_macs=_reference_macs(networks, family),
            conditions=_conditions(networks[0], columns),
            left_aside=dict(left_aside),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "trials": len(self),
            "left_aside": self.left_aside,
            "best_error": float(self.errors.min()),
            "mean_error": float(self.errors.mean()),
            "classes": self.conditions.classes,
            "resolution": self.conditions.resolution,
        }


def _unusable(network: Network, error: float, family: str) -> str | None:
    if network.family != family:
        return f"of family {network.family.upper()}"
    if len(network.depths) != STAGES:
        return f"of {len(network.depths)} stage{'s' * (len(network.depths) > 1)}"
    return None if np.isfinite(error) else "without an error"


def _too_few(file: str, usable: int, left_aside: Counter[str], family: str) -> str:
    others = "".join(f", {count} {reason}" for reason, count in left_aside.most_common())
    usable_ones = f"{usable} usable trials of RegNet{family.upper()}s of {STAGES} stages"
    told = f"{file} has {usable_ones}{others}: evidence takes {FEWEST}"
    other = "xy".replace(family, "")
    if left_aside[f"of family {other.upper()}"] >= FEWEST:
        return f"{told}; with --family {other} it is evidence about RegNet{other.upper()}s"
    return f"{told}; sweep more, or leave it out"


def _reference_macs(networks: tuple[Network, ...], family: str) -> Int:
    stages = StageArrays.of_networks(networks)
    return complexity(
        stages.depths,
        stages.widths,
        stages.group_widths,
        stages.bottlenecks,
        resolution=REFERENCE_RESOLUTION,
        se_ratio=SE_RATIO if family == "y" else 0.0,
    ).total.macs


def _conditions(network: Network, columns: dict[str, Float]) -> TrialConditions:
    """Tell classes from the parameters of a network, and the resolution from its MACs; both are exact or not told."""
    one = int(network_complexity(network, MIN_RESOLUTION, 1).total.parameters)
    more = int(network_complexity(network, MIN_RESOLUTION, 2).total.parameters) - one  # of each further class
    parameters, macs = (float(columns[name][0]) if name in columns else np.nan for name in ("parameters", "macs"))
    classes = 1 + (parameters - one) / more
    if not (np.isfinite(classes) and classes >= 1 and classes == int(classes)):
        return TrialConditions(None, None)
    # The largest that is not above: 223 and 224 pixels are one to a stem of stride 2, and nobody means 223.
    low, high = MIN_RESOLUTION, MAX_RESOLUTION
    while low < high:
        middle = (low + high + 1) // 2
        if network_complexity(network, middle, int(classes)).total.macs <= macs:
            low = middle
        else:
            high = middle - 1
    found = int(network_complexity(network, low, int(classes)).total.macs) == macs
    return TrialConditions(int(classes), low if found else None)
