"""What is wrong with usable images: copies across subsets and classes, and images in which nothing is to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regnet_deploy.images.decode import ONE_COLOR
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.names import shortened

#: Levels of 16-bit images that use no more than this, of 65,535, are those of fewer bits: 8 to 14.
_FEW_LEVELS = 2**14 - 1
#: Names that a sentence lists.
_LISTED = 3


def dataset_findings(
    train: Mapping[str, ImageCheck], val: Mapping[str, ImageCheck], labels: Mapping[str, str]
) -> list[str]:
    """Return what is wrong with the images of a dataset, a sentence each.

    Args:
        train: name -> result of the check, of the usable training images in their order.
        val: the same of the usable validation images.
        labels: name of an image -> its class.
    """
    return [
        *_copies(train, val, labels),
        *_one_color({**train, **val}),
        *_few_levels({**train, **val}),
    ]


def _copies(train: Mapping[str, ImageCheck], val: Mapping[str, ImageCheck], labels: Mapping[str, str]) -> Iterable[str]:
    """Find exact copies by the sha256 of the files, which the check has computed as it read them."""
    in_val, in_classes, in_train = [], [], []
    learned: dict[str, str] = {}
    for name, one in train.items():
        if not one.sha256:  # it was not read
            continue
        first = learned.setdefault(one.sha256, name)
        if labels[first] != labels[name]:
            in_classes.append((first, name))
        elif first != name:
            in_train.append((first, name))
    seen = dict(learned)
    for name, one in val.items():
        if not one.sha256:
            continue
        first = seen.setdefault(one.sha256, name)
        if labels[first] != labels[name]:
            in_classes.append((first, name))
        if one.sha256 in learned:
            in_val.append((learned[one.sha256], name))
    if in_val:
        yield (
            f"{len(in_val):,} of {len(val):,} validation images are exact copies of training images, so the accuracy "
            f"on them says nothing of new images: {_pairs(in_val)}"
        )
    if in_classes:
        yield f"{_images(in_classes)} in two classes, of which one is wrong: {_pairs(in_classes)}"
    if in_train:
        yield f"{len(in_train):,} of {len(train):,} training images are exact copies of others: {_pairs(in_train)}"


def _one_color(images: Mapping[str, ImageCheck]) -> Iterable[str]:
    found = {name: one for name, one in images.items() if one.contrast <= ONE_COLOR}
    if not found:
        return
    reasons = []
    transparent = sum(one.transparent for one in found.values())
    if transparent:
        reasons.append(f"{transparent:,} are transparent all over, or of one color on transparent ground")
    dark = sum(one.peak is not None and one.peak <= _FEW_LEVELS for one in found.values())
    if dark:
        reasons.append(f"16-bit levels of {dark:,} are all but 0: save them with 8 bits")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    yield (
        f"in {len(found):,} of {len(images):,} images the network sees one color, so it can learn nothing from them"
        f"{why}: {shortened(list(found), _LISTED)}"
    )


def _few_levels(images: Mapping[str, ImageCheck]) -> Iterable[str]:
    """Find 16-bit images whose levels have fewer bits. A single dark image proves nothing, all of them do.

    Those with levels of 8 bits are read as such, or come out in one color.
    """
    peaks = [(one.peak, name) for name, one in images.items() if one.peak is not None]
    if peaks and 255 < max(peaks)[0] <= _FEW_LEVELS:
        peak, name = max(peaks)
        yield (
            f"images of 16 bits have no level above {peak:,} of 65,535 ({len(peaks):,} "
            f"{'image' if len(peaks) == 1 else 'images'}), so the network sees them dark, "
            f"with levels up to {peak // 256} of 255: scale their levels to 16 bits, or save them with 8 bits, and "
            f"those to predict on too; for example {name}"
        )


def _images(pairs: Sequence[tuple[str, str]]) -> str:
    return f"{len(pairs):,} {'image is' if len(pairs) == 1 else 'images are'}"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return shortened([f"{one} = {other}" for one, other in pairs], _LISTED)
