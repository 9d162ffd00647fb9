"""Answers in short: what of them is kept in a bundle, and read again with NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_parts import training

from regnet_deploy.bundle import Bundle, Manifest, create_bundle, update_bundle
from regnet_deploy.errors import BundleError
from regnet_deploy.evaluation.answers import (
    FILE,
    MISTAKES,
    SIDE,
    Answers,
    answers_of,
    answers_to_bytes,
    summarize_answers,
)
from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.bundle_parts import selection_parts
from regnet_deploy.selection.selection import select


def short(
    labels: list[int], answers: list[int], confidences: list[float], side: int = 24, channels: int = 3
) -> Answers:
    n = len(labels)
    probabilities = np.full((n, 3), 0.0)
    for row, (answer, confidence) in enumerate(zip(answers, confidences, strict=True)):
        probabilities[row] = (1 - confidence) / 2
        probabilities[row, answer] = confidence
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((n, side, side, channels), np.uint8)
    return summarize_answers(
        np.array(labels),
        probabilities,
        lambda row: f"val/a/{row}.png",
        lambda rows: (None if row == 9 else pixels[row] for row in rows),
        where="the validation images of the training",
        variant="model",
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = create_bundle(tmp_path / "b", selection_parts(select(Budget(16e6, resolution=32, classes=3))))
    return update_bundle(
        made.path, Manifest(training=training(), labels=("a", "b", "c")), {"weights.safetensors": b"w"}
    )


def test_the_worst_mistakes_are_the_most_confident_wrong_answers() -> None:
    answers = short([0, 0, 1, 2], [0, 1, 2, 2], [0.99, 0.6, 0.9, 0.98])
    assert answers.images == 4
    assert [(each.name, each.label, each.answer) for each in answers.mistakes] == [
        ("val/a/2.png", 1, 2),
        ("val/a/1.png", 0, 1),
    ]
    assert answers.mistakes[0].probability == pytest.approx(0.9)
    assert (answers.mistakes[0].pixels == 2).all()
    assert answers.matrix(3).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert answers.frequent(1) == [(0, 1, 1)]


def test_few_mistakes_with_small_pictures_are_kept() -> None:
    answers = short([0] * 40, [1] * 40, [0.9] * 40, side=224)
    assert len(answers.mistakes) == MISTAKES - 1  # one image is gone
    assert {each.pixels.shape for each in answers.mistakes} == {(SIDE, SIDE, 3)}
    assert answers.frequent(5) == [(0, 1, 40)]
    gray = short([0], [1], [0.9], side=224, channels=1)
    assert gray.mistakes[0].pixels.shape == (SIDE, SIDE, 1)


def test_a_bundle_gives_back_what_it_was_given_and_equal_answers_are_equal_bytes(bundle: Bundle) -> None:
    answers = short([0, 0, 1, 2], [0, 1, 2, 2], [0.99, 0.6, 0.9, 0.98])
    data = answers_to_bytes(answers)
    assert data == answers_to_bytes(answers)
    assert answers_of(bundle) is None
    read = answers_of(update_bundle(bundle.path, {}, {FILE: data}))
    assert read is not None
    assert (read.where, read.variant, read.images) == (answers.where, "model", 4)
    assert (read.confusion == answers.confusion).all()
    assert [each.name for each in read.mistakes] == [each.name for each in answers.mistakes]
    assert (read.mistakes[1].pixels == answers.mistakes[1].pixels).all()
    assert read.to_json("abc") == answers.to_json("abc")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive"])
def test_a_file_of_another_kind_is_no_answers(bundle: Bundle, data: bytes) -> None:
    assert answers_of(update_bundle(bundle.path, {}, {FILE: data})) is None


def test_answers_of_classes_that_the_network_does_not_have_are_none(bundle: Bundle) -> None:
    answers = short([0], [1], [0.9])
    wrong = Answers("x", "model", 1, np.array([[0, 7, 1]]), answers.mistakes)
    assert answers_of(update_bundle(bundle.path, {}, {FILE: answers_to_bytes(wrong)})) is None


def test_a_changed_file_is_damage(bundle: Bundle) -> None:
    changed = update_bundle(bundle.path, {}, {FILE: answers_to_bytes(short([0], [1], [0.9]))})
    (changed.path / changed.files[FILE].name).write_bytes(b"x")
    with pytest.raises(BundleError):
        answers_of(changed)
