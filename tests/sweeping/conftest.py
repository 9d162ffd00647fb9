"""A space of tiny networks and images of 16 pixels, so that a trial takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regnet_deploy.bundle.training import Execution
from regnet_deploy.populations.store import Trial, TrialOutcome
from regnet_deploy.progress import NoProgress
from regnet_deploy.space.ranges import Values
from regnet_deploy.space.sampling import Band
from regnet_deploy.space.spaces import AnyNetSpace, Stages
from regnet_deploy.sweeping.sweep import SweepOptions, planned_trials
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images
from regnet_deploy.training.recipe import Recipe

RESOLUTION = 16
COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}
#: The recipe of the sweeps of these tests as options of the command.
AS_OPTIONS = ["--epochs", "2", "--batch-size", "8", "--mmacs", "0.1:3", "--resolution", "16", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images to train on and 12 to validate with, of colours that noise all but hides."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(colour + draw.normal(0, 90, (20, 18, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:03d}.png")
    return root


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(epochs=2, batch_size=8, lr=0.05, warmup_epochs=0, crop_area=0.08)


@pytest.fixture
def execution() -> Execution:
    return Execution("cpu", channels_last=True)


@pytest.fixture
def images(data: Path, recipe: Recipe, tmp_path: Path, recorded_progress: Any) -> SweepImages:
    folder = check_folder(list_folder(data, None), None, 0, tmp_path / "a.sweep", NoProgress())
    return load_images(folder, recipe, RESOLUTION, recorded_progress)


@pytest.fixture(scope="session")
def space() -> AnyNetSpace:
    return AnyNetSpace(
        "tiny",
        depth=Stages((Values((1, 2)),)),
        width=Stages((Values((8, 16, 24)),)),
        bottleneck=Stages((Values((1, 2)),)),
        group_width=Stages((Values((4, 8)),)),
        stages=2,
    )


@pytest.fixture(scope="session")
def space_file(space: AnyNetSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from regnet_deploy.space.space_file import write_space

    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(write_space(space))
    return path


@pytest.fixture
def band() -> Band:
    return Band(0.1e6, 3e6, RESOLUTION, 3)


@pytest.fixture
def trials(space: AnyNetSpace, band: Band) -> list[Trial]:
    return planned_trials(space, band, 2, 6, 0, NoProgress())


@pytest.fixture
def options(data: Path, recipe: Recipe, execution: Execution, tmp_path: Path) -> Callable[..., SweepOptions]:
    def make(**changes: Any) -> SweepOptions:
        return replace(SweepOptions(data, tmp_path / "a.sweep", recipe, execution=execution, threads=1), **changes)

    return make


def result(outcome: TrialOutcome) -> dict[str, Any]:
    """What of an outcome must be the same in every run: all but times."""
    timed = ("seconds", "images_per_s", "loaded_images_per_s", "step_images_per_s", "waiting")
    history = [{name: value for name, value in each.items() if name not in timed} for each in outcome.history]
    kept = {"state": outcome.state, "error": outcome.error, "best_epoch": outcome.best_epoch}
    return {**kept, "history": history, "message": outcome.message, "threads": outcome.machine.get("threads")}


@pytest.fixture
def results() -> Callable[[dict[int, TrialOutcome]], dict[int, dict[str, Any]]]:
    """Results by the number of the trial, without times."""
    return lambda outcomes: {number: result(outcome) for number, outcome in outcomes.items()}


@pytest.fixture
def as_options() -> list[str]:
    return list(AS_OPTIONS)
