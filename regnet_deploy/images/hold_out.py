"""Images that are held out of a folder without splits: for validation, and to test on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regnet_deploy.errors import UsageError


@dataclass(frozen=True)
class Shares:
    """Shares of every class that are held out.

    Attributes:
        val: for validation, 0 to 1; 0 holds none out.
        test: to test on, 0 to 1; 0 holds none out.
    """

    val: float = 0.0
    test: float = 0.0

    def counts(self, size: int) -> tuple[int, int]:
        """Return how many images of a class of this size are for validation and how many to test on.

        At least one image stays to train on; with two or more, at least one is for validation, and with one more, at
        least one to test on. Larger shares hold the same or more images out.
        """
        val = max(0, min(size - 1, max(1, round(self.val * size)))) if self.val else 0
        test = max(0, min(size - 1 - val, max(1, round(self.test * size)))) if self.test else 0
        return val, test


def ensure_shares(val: float | None, test: float | None) -> None:
    """Check the shares that a user gives; None is the default.

    Raises:
        UsageError: a share is not between 0 and 1, or both leave nothing to train on.
    """
    for name, share in (("--val-split", val), ("--test-split", test)):
        if share is not None and not 0 < share < 1:
            raise UsageError(f"{name} is a share of the images, above 0 and below 1, got {share}")
    if val is not None and test is not None and val + test >= 1:
        raise UsageError(f"--val-split {val:g} and --test-split {test:g} leave nothing to train on: lower one of them")


def hold_out(labels: Sequence[int], shares: Shares, seed: int) -> tuple[set[int], set[int]]:
    """Return which images are for validation and which to test on, as indices into ``labels``.

    Both are taken from one seeded order of each class, those for validation from its start, those to test on from its
    end. So the images for validation are the same with and without a test split, and those to test on do not depend on
    the share for validation.

    Args:
        labels: class of each image.
        shares: of every class.
        seed: of the order.
    """
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    val: set[int] = set()
    test: set[int] = set()
    for label, members in by_label.items():
        order = np.random.default_rng((seed, label)).permutation(len(members)).tolist()
        for_val, for_test = shares.counts(len(members))
        val.update(members[i] for i in order[:for_val])
        test.update(members[i] for i in order[len(order) - for_test :])
    return val, test
