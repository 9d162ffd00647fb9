"""The trials of one file that are usable as evidence: networks of one family with 4 stages, and their errors."""

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
from regnet_deploy.space.complexity import NetworkConfig, complexity, network_complexity
from regnet_deploy.space.enumeration import STAGES
from regnet_deploy.space.network import SE_RATIO, Network

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: With fewer trials, the relative uncertainty of a left-out error exceeds a quarter.
MIN_TRIALS = 10


@dataclass(frozen=True)
class TrialConditions:
    """Classes and resolution of the trials, derived from their parameters and MACs; None where these do not tell."""

    classes: int | None
    resolution: int | None


@dataclass(frozen=True)
class TrialSet:
    """Usable trials of one file.

    Attributes:
        file: name of the file.
        sha256: SHA-256 of its content.
        networks: networks of one family with 4 stages.
        errors: top-1 error, percent, ``(n,)``.
        parameters: the parameters that the trends describe, ``(n, 5)``; NaN where the file does not have them.
        reference_macs: MACs at 224 pixels with 1000 classes, ``(n,)``.
        conditions: classes and resolution of the training.
        excluded: number of trials that are not usable, by reason.
        remarks: of the reader: what was left out of the file, and how it was read.
    """

    file: str
    sha256: str
    networks: tuple[Network, ...]
    errors: Float
    parameters: Float
    reference_macs: Int
    conditions: TrialConditions
    excluded: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.errors)

    @property
    def stages(self) -> StageArrays:
        """The stages of the networks as arrays."""
        return StageArrays.of_networks(self.networks)

    def overlaps(self, other: TrialSet) -> bool:
        """Return whether most trials are also in the other file, as in a store and the CSV file written from it."""
        mine, theirs = (
            set(zip(each.networks, each.errors.round(3).tolist(), strict=True))  # CSV files may round them
            for each in (self, other)
        )
        return 2 * len(mine & theirs) > min(len(mine), len(theirs))

    @classmethod
    def read(cls, path: Path, family: str) -> TrialSet:
        """Read a store or a CSV file and return its trials of a family.

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
        """Return the usable trials of a family.

        Raises:
            UsageError: fewer than 10 are usable.
        """
        if not trials.networks:
            raise UsageError(
                f"{file} does not describe its networks: evidence needs the depths, widths and group widths of stages"
            )
        kept, excluded, seen = [], Counter[str](), set[Hashable]()
        for row, (network, error) in enumerate(zip(trials.networks, trials.error.tolist(), strict=True)):
            reason = _exclusion_reason(network, error, family)
            if reason is None and (network, error) in seen:
                reason = "duplicated"
            seen.add((network, error))
            if reason is None:
                kept.append(row)
            else:
                excluded[reason] += 1
        if len(kept) < MIN_TRIALS:
            raise UsageError(_too_few_message(file, len(kept), excluded, family))
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
            excluded=dict(excluded),
            remarks=trials.remarks,
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "trials": len(self),
            "left_aside": self.excluded,
            "best_error": float(self.errors.min()),
            "mean_error": float(self.errors.mean()),
            "classes": self.conditions.classes,
            "resolution": self.conditions.resolution,
        }


def _exclusion_reason(network: Network, error: float, family: str) -> str | None:
    """Return why a trial is not usable; None where it is."""
    if network.family != family:
        return f"of family {network.family.upper()}"
    if len(network.depths) != STAGES:
        return f"with {len(network.depths)} stage{'s' * (len(network.depths) > 1)}"
    return None if np.isfinite(error) else "without an error"


def _too_few_message(file: str, usable: int, excluded: Counter[str], family: str) -> str:
    others = "".join(f", {count} {reason}" for reason, count in excluded.most_common())
    missing = (
        f"{file} has {usable} usable trials of RegNet{family.upper()}s with {STAGES} stages{others}; evidence needs at "
        f"least {MIN_TRIALS}"
    )
    other = "xy".replace(family, "")
    if excluded[f"of family {other.upper()}"] >= MIN_TRIALS:
        return f"{missing}; with --family {other} it is evidence for RegNet{other.upper()}s"
    return f"{missing}; train more networks with `regnet-deploy sweep`, or omit the file"


def _reference_macs(networks: tuple[Network, ...], family: str) -> Int:
    stages = StageArrays.of_networks(networks)
    return complexity(
        stages.depths,
        stages.widths,
        stages.group_widths,
        stages.bottlenecks,
        NetworkConfig(se_ratio=SE_RATIO if family == "y" else 0.0),
    ).total.macs


def _conditions(network: Network, columns: dict[str, Float]) -> TrialConditions:
    """Derive the classes from the parameters of a network and the resolution from its MACs; None unless exact."""
    one = int(network_complexity(network, MIN_RESOLUTION, 1).total.parameters)
    more = int(network_complexity(network, MIN_RESOLUTION, 2).total.parameters) - one  # for each further class
    parameters, macs = (float(columns[name][0]) if name in columns else np.nan for name in ("parameters", "macs"))
    classes = 1 + (parameters - one) / more
    if not (np.isfinite(classes) and classes >= 1 and classes == int(classes)):
        return TrialConditions(None, None)
    # The largest resolution with these MACs: 223 and 224 pixels have the same, and the even number is meant.
    low, high = MIN_RESOLUTION, MAX_RESOLUTION
    while low < high:
        middle = (low + high + 1) // 2
        if network_complexity(network, middle, int(classes)).total.macs <= macs:
            low = middle
        else:
            high = middle - 1
    found = int(network_complexity(network, low, int(classes)).total.macs) == macs
    return TrialConditions(int(classes), low if found else None)
