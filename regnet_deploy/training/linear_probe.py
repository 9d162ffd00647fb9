"""The linear probe: multinomial logistic regression on features that do not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet_deploy.images.dataset import stratified_order

#: Weights of the squared norm that are tried, for features of deviation 1, from strong to weak.
L2 = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
#: The one that is taken if no class has a second image to choose by.
_L2_OF_SINGLE_IMAGES = 1e-2
#: Least deviation of a feature, as a share of the largest, that features are scaled by.
_LEAST_DEVIATION = 0.01
#: Share of each class that is held out to choose by.
_HELD_OUT = 0.2
#: Most multiplications of an evaluation of the loss; about 300 evaluations are needed: minutes on two cores.
_MULTIPLICATIONS = 4_000_000_000
#: Most features of all images: 512 MB.
_FEATURES = 64_000_000
#: Fewest images of a class, on average, for which a part of the images is worth fitting to.
_IMAGES_OF_A_CLASS = 5


@dataclass(frozen=True)
class LinearClassifier:
    """Weight ``(classes, width)`` and bias ``(classes,)``, float32, and the L2 regularization they were fitted with."""

    weight: Tensor
    bias: Tensor
    l2: float


def probe_images(labels: Sequence[int], width: int, classes: int, seed: int) -> list[int]:
    """Return the numbers of the images to fit to: all of them, or as many of each class as minutes allow.

    The choice depends on counts alone, so it is the same on every machine. It is empty if too few images would be left.

    Args:
        labels: of the training images.
        width: features of an image.
        classes: number of classes.
        seed: of the choice.
    """
    count = min(len(labels), _MULTIPLICATIONS // (width * classes), _FEATURES // width)
    if count < min(len(labels), _IMAGES_OF_A_CLASS * classes):
        return []
    return sorted(stratified_order(labels, seed)[:count])


def fit_linear_classifier(
    features: Tensor, labels: Tensor, classes: int, seed: int, between: Callable[[], None] = lambda: None
) -> LinearClassifier:
    """Fit a linear classifier by L-BFGS in float64, with the L2 regularization that is best on held-out images.

    Args:
        features: ``(n, width)``, finite.
        labels: int64 ``(n,)``.
        classes: number of classes.
        seed: of the choice of the held-out images.
        between: called before each evaluation of the loss, every few seconds; what it raises ends the fit.
    """
    mean = features.double().mean(0)
    centered = features.double() - mean
    deviation = centered.square().mean(0).sqrt()
    # A feature that is nearly the same for all images says nothing. Scaled up, it would get a weight so large that the
    # first steps of the network, which change all features, would be lost.
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=_LEAST_DEVIATION * deviation.max()), 0.0)
    inputs = centered * scale
    l2 = _choose_l2(inputs, labels, classes, seed, between)
    weight, bias = _fit(inputs, labels, l2, _zeros(classes, inputs), between)
    weight = weight * scale
    return LinearClassifier(weight.float(), (bias - weight @ mean).float(), l2)


def _choose_l2(inputs: Tensor, labels: Tensor, classes: int, seed: int, between: Callable[[], None]) -> float:
    held = _held_out(labels.tolist(), seed)
    if not held:
        return _L2_OF_SINGLE_IMAGES
    fitted = torch.ones(len(labels), dtype=torch.bool)
    fitted[held] = False
    losses, start = [], _zeros(classes, inputs)
    for l2 in L2:
        start = _fit(inputs[fitted], labels[fitted], l2, start, between)
        losses.append(F.cross_entropy(_logits(inputs[held], start), labels[held]).item())
    return L2[losses.index(min(losses))]


def _held_out(labels: Sequence[int], seed: int) -> list[int]:
    """Return a fifth of each class, and at least one image of each class with two or more."""
    sizes = Counter(labels)
    left = {label: 0 if size == 1 else max(1, round(_HELD_OUT * size)) for label, size in sizes.items()}
    held = []
    for number in stratified_order(labels, seed):
        if left[labels[number]]:
            left[labels[number]] -= 1
            held.append(number)
    return sorted(held)


def _fit(
    inputs: Tensor, labels: Tensor, l2: float, start: tuple[Tensor, Tensor], between: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the least mean cross-entropy + l2 / 2 * squared norm of the weight."""
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=200,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        between()
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(inputs, (weight, bias)), labels) + 0.5 * l2 * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _logits(inputs: Tensor, classifier: tuple[Tensor, Tensor]) -> Tensor:
    return F.linear(inputs, *classifier)


def _zeros(classes: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes)
