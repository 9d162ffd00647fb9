"""The answers of variants on labeled images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.evaluation.evaluate import evaluate_sessions
from regnet_deploy.evaluation.labeled_images import LabeledImages
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.progress import NoProgress

NAMES = ("ant", "bee", "cat", "dog")


class Fixed:
    """A session whose first answer is always cat, then ant, bee and dog."""

    runtime, input = "fake", "uint8"

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.tile(np.array([2.0, 1.0, 3.0, 0.0], np.float32), (len(images), 1))


@pytest.mark.parametrize(("answers", "right", "confidence"), [(None, 0, 0.644), ([0, 1, 3], 2, 0.665)])
def test_classes_that_do_not_compete_are_never_an_answer(
    tmp_path: Path, answers: list[int] | None, right: int, confidence: float
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    source = FolderSource(tmp_path, ("a.png", "b.png", "c.png"))
    competing = None if answers is None else np.array(answers)
    images = LabeledImages(source, np.array([0, 0, 1]), "", {}, (), answers=competing)
    bundle: Any = SimpleNamespace(labels=NAMES, preprocessing=Preprocessing(8, 8))
    result = evaluate_sessions([("model", Fixed())], images, bundle, NoProgress())  # type: ignore[list-item]
    probabilities = result.evaluations[0].probabilities
    assert round(result.evaluations[0].metrics.top1.value * 3) == right
    assert probabilities.max(axis=1) == pytest.approx([confidence] * 3, abs=1e-3)
    assert probabilities.sum(axis=1) == pytest.approx([1] * 3)
    assert result.to_json()["competing_classes"] == (4 if answers is None else 3)
