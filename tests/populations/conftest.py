"""Trials and outcomes, made without training anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome
from regnet_deploy.space.network import Network

IDENTITY = {
    "space": {"name": "tiny"},
    "seed": 0,
    "data": {"digest": "0a" * 32, "split": "val/ of the folder", "classes": 3, "train_images": 30, "val_images": 9},
    "resolution": 16,
    "recipe": {"lr": 0.05, "epochs": 2, "seed": 7, "flip": False},
    "execution": {"device": "cpu", "precision": "fp32"},
    "mmacs": [0.1, 3.0],
}


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """A trial by its number; networks of different numbers are different."""

    def make(number: int, epochs: int = 2, ratio: float = 1.0) -> Trial:
        widths = (8 * (1 + number), 16 * (1 + number))
        groups = tuple(round(width / ratio) for width in widths)
        network = Network((1 + number, 2), widths, groups, (ratio, ratio), se_ratio=0.25, stem_stride=1, stem_width=32)
        drawn = {"d_1": 1 + number, "d_2": 2, "w_m": 2.1 + number / 3}
        return Trial(number, network, drawn, 1000 + number, 100 + number, 10 + number, epochs)

    return make


@pytest.fixture
def outcomes() -> dict[str, TrialOutcome]:
    """One outcome for each state."""
    epoch = {"epoch": 1, "lr": 0.05, "train_loss": 1.25, "val_top1": 1 / 3, "seconds": 0.5}
    machine = {"cpu": "a processor", "cores": 2, "gpus": [], "threads": 1, "device": "CPU"}
    return {
        DONE: TrialOutcome(DONE, 66.666667, 1, [epoch], 1.5, 320.25, "", machine, "2026-01-02T03:04:05+00:00"),
        DIVERGED: TrialOutcome(
            DIVERGED, None, 0, [], 0.25, 0.0, "the loss is not finite at epoch 1 step 2", machine, "now"
        ),
        FAILED: TrialOutcome(FAILED, history=[], message="RuntimeError: no \"memory\" left; 'ü' \N{SNOWMAN}"),
    }


@pytest.fixture
def identity() -> dict[str, object]:
    return {**IDENTITY}
