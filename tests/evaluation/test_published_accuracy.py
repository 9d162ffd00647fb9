"""The published accuracy of imported weights is inside the interval, or the preprocessing is doubted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from regnet_deploy.bundle.manifest import WeightsOrigin
from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.evaluation.metrics import Share
from regnet_deploy.evaluation.published_accuracy import compare_with_expected, compare_with_published


def bundle(top1: float | None = None, training: object = None) -> Any:
    origin = WeightsOrigin(
        file="a", sha256="0", source="timm", container="safetensors", top1_percent=top1, top1_setting="a table"
    )
    return SimpleNamespace(path="b", manifest=SimpleNamespace(imported=origin, training=training))


def result(right: int, n: int, answers: object = None) -> Any:
    measured = SimpleNamespace(metrics=SimpleNamespace(images=n, top1=Share.of(right, n)))
    images = SimpleNamespace(answers=answers, source=SimpleNamespace(root="images"))
    return SimpleNamespace(evaluations=[measured], images=images)


def trained_bundle() -> Any:
    return SimpleNamespace(path="b", manifest=SimpleNamespace(imported=None, training=object()))


@pytest.mark.parametrize(
    ("right", "images", "end"),
    [
        (38, 50, "does not contradict it; so few images cannot tell more, as the interval is wider than +-2 points"),
        (
            7_998,
            10_000,
            "does not contradict it, so the preprocessing and the order of the classes are most likely right",
        ),
    ],
)
def test_inside_the_interval_the_conclusion_is_as_strong_as_the_interval_is_narrow(
    right: int, images: int, end: str
) -> None:
    assert compare_with_published(bundle(80.0), result(right, images)).endswith(end)


def test_of_trained_weights_nothing_is_said_about_importing() -> None:
    said = compare_with_expected(trained_bundle(), result(7_998, 10_000), 80.0)
    assert said.endswith("the measured accuracy does not contradict it")
    with pytest.raises(
        ProofError, match=r"the images are not like those that it was measured with, .*check --data"
    ) as no:
        compare_with_expected(trained_bundle(), result(25, 50), 80.0)
    assert "import" not in str(no.value)


def test_outside_of_it_the_preprocessing_is_doubted() -> None:
    with pytest.raises(ProofError, match="they do not agree, so the preprocessing"):
        compare_with_published(bundle(80.0), result(25, 50))


def test_without_a_published_accuracy_there_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match="import them with --weights NAME"):
        compare_with_published(bundle(None), result(25, 50))


def test_images_of_imagenet_a_and_r_have_another_accuracy() -> None:
    with pytest.raises(UsageError, match="published accuracy is that on validation images of ImageNet-1k"):
        compare_with_published(bundle(80.0), result(38, 50, answers=[1, 2]))


def test_weights_that_were_fine_tuned_have_no_published_accuracy() -> None:
    with pytest.raises(UsageError, match="no weights with a published accuracy"):
        compare_with_published(bundle(80.0, training=object()), result(40, 50))


def test_an_accuracy_that_a_user_was_told_is_compared_in_the_same_way() -> None:
    said = compare_with_expected(bundle(), result(38, 50), 80.0)
    assert "expected 80.00 %: the measured accuracy does not contradict it" in said
    with pytest.raises(ProofError, match=r"expected 80.00 %: they do not agree.*not like those that it was measured"):
        compare_with_expected(bundle(), result(25, 50), 80.0)


def test_all_right_is_equal_to_100_percent() -> None:
    assert "does not contradict" in compare_with_expected(bundle(), result(50, 50), 100.0)
