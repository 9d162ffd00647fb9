"""Class weights and sampling by class: as they are defined, and nothing at all with equally many images of each."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import WeightedRandomSampler

from regnet_deploy.training.class_balance import class_weights, uses_in_epoch
from regnet_deploy.training.recipe import Recipe

LABELS = np.repeat([0, 1, 2, 3], [400, 100, 25, 4])
COUNTS = [400, 100, 25, 4]


def uses(sampling: str, epoch: int, labels: np.ndarray = LABELS, seed: int = 0) -> np.ndarray:
    found = uses_in_epoch(Recipe(sampling=sampling, seed=seed), epoch, labels)
    return np.ones(len(labels), np.int64) if found is None else found


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(class_weights(Recipe(class_weights="balanced"), COUNTS), wanted, rtol=1e-6)


def test_square_root_weights_go_with_the_inverse_of_the_root_and_have_a_mean_of_1() -> None:
    weights = class_weights(Recipe(class_weights="square-root"), COUNTS)
    np.testing.assert_allclose(weights / weights[0], [1, 2, 4, 10], rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1, rel=1e-6)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any), st.sampled_from(["square-root", "balanced"])
)
def test_weights_have_a_mean_of_1_over_the_images_whatever_their_numbers(counts: list[int], name: str) -> None:
    weights = class_weights(Recipe(class_weights=name), counts)
    if weights is not None:
        assert np.isfinite(weights).all()
        assert (np.array(counts) * weights).sum() == pytest.approx(sum(counts), rel=1e-5)
        assert (weights == 0).tolist() == [count == 0 for count in counts]


def test_classes_of_equally_many_images_have_no_weights_and_no_other_order() -> None:
    for name in ("square-root", "balanced"):
        assert class_weights(Recipe(class_weights=name), [7, 7, 0, 7]) is None
        assert uses_in_epoch(Recipe(sampling=name), 3, np.repeat([0, 1, 3], 7)) is None
    assert class_weights(Recipe(), COUNTS) is None
    assert uses_in_epoch(Recipe(), 3, LABELS) is None


def test_weights_for_an_effective_number_of_images_would_be_the_balanced_ones_of_small_folders() -> None:
    counts = np.array([1, 10, 100, 1000])
    effective = (1 - 0.9999) / (1 - 0.9999**counts)  # arXiv 1901.05555, equation 3
    ratio = effective / class_weights(Recipe(class_weights="balanced"), counts.tolist())
    assert 1 <= ratio.max() / ratio.min() < 1.06


def test_weights_without_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="need the number of training images of each class"):
        class_weights(Recipe(class_weights="balanced"), ())


@pytest.mark.parametrize(
    ("sampling", "parts", "power"),
    [("uniform", COUNTS, 0), ("square-root", [20, 10, 5, 2], 0.5), ("balanced", [1, 1, 1, 1], 1)],
)
def test_an_epoch_has_the_share_of_each_class_that_a_random_sampler_of_pytorch_has_on_average(
    sampling: str, parts: list[int], power: float
) -> None:
    weights = (1.0 / np.array(COUNTS) ** power)[LABELS].tolist()
    drawn = list(WeightedRandomSampler(weights, 100_000, generator=torch.Generator().manual_seed(0)))
    expected = 529 * np.array(parts) / sum(parts)
    np.testing.assert_allclose(np.bincount(LABELS[drawn]) / 100_000, expected / 529, atol=0.01)
    for epoch in (0, 1, 17):
        shown = np.bincount(LABELS, weights=uses(sampling, epoch), minlength=4)
        assert shown.sum() == 529
        assert (abs(shown - expected) < 2).all()
    over_all = sum(np.bincount(LABELS, weights=uses(sampling, epoch), minlength=4) for epoch in range(40))
    assert (abs(over_all - 40 * expected) <= 1).all()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.integers(1, 12),
    st.sampled_from(["square-root", "balanced"]),
    st.integers(0, 3),
)
def test_images_of_a_class_are_shown_equally_often_in_a_run(
    classes: list[int], epochs: int, sampling: str, seed: int
) -> None:
    labels = np.array(classes)
    each = [uses(sampling, epoch, labels, seed) for epoch in range(epochs)]
    assert all((shown >= 0).all() and shown.sum() == len(labels) for shown in each)
    for label in set(classes):
        for shown in (*each, sum(each)):
            of_class = shown[labels == label]
            assert of_class.max() - of_class.min() <= 1


def test_a_small_share_of_a_large_class_takes_turns_and_the_seed_says_in_which_order() -> None:
    first, second = (uses("balanced", epoch)[:400] for epoch in (0, 1))
    assert not (first & second).any()
    assert (first != uses("balanced", 0, seed=1)[:400]).any()
    assert np.flatnonzero(first).max() > 200  # not the first ones of the folder
