"""Compares the accuracy of weights with the one that is published for them, or that a user was told."""

from __future__ import annotations

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import ProofError, UsageError
from regnet_deploy.evaluation.evaluate import EvaluationResult
from regnet_deploy.evaluation.labeled_images import LabeledImages
from regnet_deploy.evaluation.metrics import Share

#: Half of the widest 95 % interval from which something is concluded.
_NARROW = 0.02


def published_top1(bundle: Bundle) -> tuple[float, str]:
    """Return the published top-1 of imported weights, percent, and where it is published.

    Raises:
        UsageError: none is.
    """
    origin = bundle.manifest.imported
    if origin is None or origin.top1_percent is None or bundle.manifest.training is not None:
        raise UsageError(
            f"{bundle.path} has no weights with a published accuracy: import them with --weights NAME, give the "
            "accuracy that you expect, such as --expect 76.2, or omit --expect"
        )
    return origin.top1_percent, f"{origin.top1_setting}{origin.doubt}"


def check_comparable(images: LabeledImages) -> None:
    """Check, before long work, that a published accuracy can be compared with that on these images.

    Raises:
        UsageError: they are of ImageNet-A or -R.
    """
    if images.answers is not None:
        raise UsageError(
            f"{images.source.root} has the classes of ImageNet-A or -R, and the published accuracy is that on "
            "validation images of ImageNet-1k: give these with --data, or the accuracy that you expect, such as "
            "--expect 30.5"
        )


def compare_with_published(bundle: Bundle, result: EvaluationResult) -> str:
    """Return a line that says that the accuracy does not contradict the published one, and what follows.

    It does not if the published top-1 is inside the 95 % interval of the measured one.

    Args:
        bundle: with imported weights whose accuracy is published.
        result: its answers on validation images of ImageNet, or a random sample of them.

    Raises:
        UsageError: no accuracy is published for the weights of the bundle, or it is not that of such images.
        ProofError: the published accuracy is outside the interval.
    """
    published, setting = published_top1(bundle)
    check_comparable(result.images)
    wanted = f"published {published:.2f} % ({setting})"
    return _compare(bundle, result, published, wanted, "a random sample of the validation images")


def compare_with_expected(bundle: Bundle, result: EvaluationResult, percent: float) -> str:
    """Return a line that says that the accuracy does not contradict an expected one, and what follows.

    It does not if the expected top-1 is inside the 95 % interval of the measured one.

    Args:
        bundle: whose weights were measured, trained or imported.
        result: answers on the images that the accuracy was measured with, or a random sample of such.
        percent: the expected top-1, 0 to 100.

    Raises:
        ProofError: it is outside the interval.
    """
    return _compare(bundle, result, percent, f"expected {percent:.2f} %", "like those that it was measured with")


def _compare(bundle: Bundle, result: EvaluationResult, percent: float, wanted: str, images: str) -> str:
    imported = bundle.manifest.imported is not None and bundle.manifest.training is None
    measured = result.evaluations[0].metrics
    top1 = measured.top1
    line = (
        f"top-1 {top1.value:.2%} of {measured.images:,} images (95 % interval {top1.low:.2%} to {top1.high:.2%}), "
        f"{wanted}"
    )
    # The percentage is given with two decimals at most, as tables do.
    if top1.low - 5e-5 <= percent / 100 <= top1.high + 5e-5:
        return f"{line}: the measured accuracy does not contradict it{_conclusion(top1, imported)}"
    if not imported:  # training and evaluation prepare images in the same way
        raise ProofError(
            f"{line}: they do not agree, so the images are not {images}, or the bundle has other weights: check --data "
            "and --split"
        )
    raise ProofError(
        f"{line}: they do not agree, so the preprocessing, the order of the channels or the classes are wrong, or the "
        f"images are not {images}: import again with --channels, --resize or --labels"
    )


def _conclusion(top1: Share, imported: bool) -> str:
    """Return what follows from an accuracy that agrees: small errors of the preprocessing cost a few points."""
    half = (top1.high - top1.low) / 2
    if half > _NARROW:
        return f"; so few images cannot tell more, as the interval is wider than +-{100 * _NARROW:g} points"
    return ", so the preprocessing and the order of the classes are most likely right" if imported else ""
