"""The answers of the chosen weights on the validation images, which a training writes into its bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regnet_deploy.api.variants import evaluate
from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.evaluation.answers import FILE, answers_of
from regnet_deploy.evaluation.record import record_evaluation
from regnet_deploy.training import chosen_weights, train
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import TrainOptions


def test_they_are_those_that_evaluate_finds(
    bundle: Bundle, data: Path, recipe: Recipe, options: TrainOptions, recorded_progress
) -> None:
    short = dataclasses.replace(recipe, epochs=1, warmup_epochs=0)  # with mistakes left
    trained = train.train(bundle.path, data, short, options, recorded_progress)
    answers = answers_of(trained)
    assert answers is not None
    assert (answers.images, answers.where, answers.variant) == (12, "the validation images of the training", "model")
    right = int(answers.matrix(3).trace())
    assert right / 12 == pytest.approx(trained.training.best.val_top1)
    assert len(answers.mistakes) == 12 - right
    assert all((data / each.name).is_file() for each in answers.mistakes)
    recorded = record_evaluation(trained, evaluate(trained, data, split="val"))
    again = answers_of(recorded)
    assert again is not None
    assert again.where == "the images of data/val"
    assert (again.confusion == answers.confusion).all()
    assert [each.name for each in again.mistakes] == [each.name for each in answers.mistakes]


def test_of_very_many_images_some_of_each_class_are_enough_and_new_weights_remove_the_answers(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chosen_weights, "MAX_VALIDATION", 6)
    short = dataclasses.replace(recipe, epochs=1, warmup_epochs=0)
    trained = train.train(bundle.path, data, short, options, recorded_progress)
    answers = answers_of(trained)
    assert answers is not None
    assert answers.where == "6 of the 12 validation images of the training"
    assert answers.matrix(3).sum(axis=1).tolist() == [2, 2, 2]
    monkeypatch.setattr(train, "validation_answers", lambda *_: None)
    train.train(bundle.path, data, short, dataclasses.replace(options, restart=True), recorded_progress)
    assert FILE not in open_bundle(bundle.path).files
