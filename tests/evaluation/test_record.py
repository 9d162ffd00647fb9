"""What is said of images that a network has seen in its training."""

from types import SimpleNamespace

import pytest

from regnet_deploy.evaluation.record import seen_in_training


def trained_with(folder: str | None, *remarks: str):
    unseen = SimpleNamespace(remarks=remarks) if remarks else None
    training = None if folder is None else SimpleNamespace(data=SimpleNamespace(folder=folder, test=unseen))
    return SimpleNamespace(manifest=SimpleNamespace(training=training))


@pytest.mark.parametrize(
    ("folder", "split", "said"),
    [
        ("birds", "val", "the best epoch was chosen on the validation images"),
        ("birds", "Validation", "the best epoch was chosen on the validation images"),
        ("birds", "train", "the network was trained on these images"),
        ("birds", "", "the network was trained on these images or some of them"),
    ],
)
def test_images_of_the_training_folder_are_no_test(folder: str, split: str, said: str) -> None:
    assert seen_in_training(trained_with(folder), "birds", split).startswith(said)


@pytest.mark.parametrize(
    ("folder", "split"), [("birds", "test"), ("birds", "seg_test"), ("other", "val"), (None, "val")]
)
def test_of_test_images_and_of_other_folders_nothing_is_said(folder: str | None, split: str) -> None:
    assert seen_in_training(trained_with(folder), "birds", split) is None


def test_test_images_that_an_earlier_choice_saw_are_said_again() -> None:
    assert seen_in_training(trained_with("birds", "the weights knew them"), "birds", "test") == "the weights knew them"
    assert seen_in_training(trained_with("birds", "the weights knew them"), "other", "test") is None
