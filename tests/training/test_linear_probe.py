"""The linear probe: logistic regression of features, its regularization, and the images that it takes."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from regnet_deploy.training import linear_probe
from regnet_deploy.training.linear_probe import L2, fit_linear_classifier, probe_images


def clusters(images: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around three points of a space of 6 dimensions, whose scales differ by a thousand."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(images) % 3
    scales = torch.tensor([0.5, 1.0, 1.0, 2.0, 5.0, 10.0])
    return (centers[labels] + spread * torch.randn(images, 6, generator=generator)) * scales + 3, labels


def accuracy(found: linear_probe.LinearClassifier, features: torch.Tensor, labels: torch.Tensor) -> float:
    return float((F.linear(features, found.weight, found.bias).argmax(1) == labels).float().mean())


def test_it_separates_features_of_any_scale() -> None:
    found = fit_linear_classifier(*clusters(60, 0.2), classes=3, seed=0)
    assert found.weight.shape == (3, 6)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    assert accuracy(found, *clusters(300, 0.2, seed=1)) > 0.95


def test_it_is_the_minimum_of_the_regularized_loss() -> None:
    features, labels = clusters(60, 2.0)
    features -= features.mean(0)
    found = fit_linear_classifier(features, labels, classes=3, seed=0)
    deviation = features.double().std(0, unbiased=False)

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        penalty = 0.5 * found.l2 * (weight * deviation).square().sum()
        return F.cross_entropy(F.linear(features.double(), weight, bias), labels) + penalty

    weight, bias = (value.double().requires_grad_() for value in (found.weight, found.bias))
    gradients = torch.autograd.grad(loss(weight, bias), (weight, bias))
    assert (gradients[0] / deviation).abs().max() < 1e-5
    assert gradients[1].abs().max() < 1e-5


def test_a_feature_that_hardly_varies_gets_no_weight_that_a_step_of_the_network_would_be_lost_by() -> None:
    features, labels = clusters(60, 0.2)
    features[:, 0] = 3 + (features[:, 0] - 3) * 1e-5
    found = fit_linear_classifier(features, labels, classes=3, seed=0)
    assert found.weight[:, 0].abs().max() < 100
    assert accuracy(found, features, labels) == 1


def test_features_that_say_nothing_are_regularized_strongly() -> None:
    noise = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    assert fit_linear_classifier(noise, labels, classes=3, seed=0).l2 == L2[0]
    assert fit_linear_classifier(*clusters(60, 0.2), classes=3, seed=0).l2 < L2[0]


def test_a_feature_that_is_constant_is_ignored() -> None:
    features, labels = clusters(60, 0.2)
    features[:, 0] = 7.0
    found = fit_linear_classifier(features, labels, classes=3, seed=0)
    assert not found.weight[:, 0].any()
    assert accuracy(found, features, labels) == 1


def test_one_image_of_each_class_is_enough() -> None:
    features, labels = clusters(3, 0.1)
    assert accuracy(fit_linear_classifier(features, labels, classes=3, seed=0), features, labels) == 1


def test_it_can_be_stopped_between_two_fits() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_linear_classifier(*clusters(60, 0.2), classes=3, seed=0, between=stop)


def test_it_takes_as_many_images_of_each_class_as_its_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [number % 4 for number in range(400)]
    assert probe_images(labels, width=8, classes=4, seed=0) == list(range(400))
    monkeypatch.setattr(linear_probe, "_MULTIPLICATIONS", 40 * 8 * 4)
    some = probe_images(labels, width=8, classes=4, seed=0)
    assert Counter(labels[number] for number in some) == dict.fromkeys(range(4), 10)
    assert some == probe_images(labels, width=8, classes=4, seed=0) != probe_images(labels, width=8, classes=4, seed=1)
    monkeypatch.setattr(linear_probe, "_MULTIPLICATIONS", 12 * 8 * 4)
    assert probe_images(labels, width=8, classes=4, seed=0) == []  # three images of a class say little
