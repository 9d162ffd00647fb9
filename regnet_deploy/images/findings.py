"""What is wrong with usable images: copies across subsets and classes, and images in which nothing is to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from regnet_deploy.images.decode import ONE_COLOR, PHASH_BITS
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.names import shortened
from regnet_deploy.images.near_copies import NearPair, near_copies

#: Levels of 16-bit images that use no more than this, of 65,535, are those of fewer bits: 8 to 14.
_FEW_LEVELS = 2**14 - 1
#: Names that a sentence lists.
_LISTED = 3
#: What copies do in a folder without validation images.
_HELD_OUT = "; training holds a share out for validation, and copies on both sides make the accuracy too high"
#: Split -> its images in words.
_WORDS = {"train": "training", "val": "validation", "test": "test"}


class Example(NamedTuple):
    """One case of a finding.

    Attributes:
        names: of the image, or of the two images that are compared; or of a class.
        note: what to say of it beside its names; empty if nothing is.
    """

    names: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a data set, of which there can be many cases.

    Attributes:
        kind: its name in JSON, such as ``exact-leak``.
        serious: whether what is measured on the data is wrong, or training refuses it; others are worth a look.
        text: what was found, without names.
        advice: what it means, or what to do, in one sentence.
        examples: all cases.
        joined: what stands between the two names of a case.
    """

    kind: str
    serious: bool
    text: str
    advice: str
    examples: tuple[Example, ...] = ()
    joined: str = " = "

    @property
    def line(self) -> str:
        """What was found, with some names."""
        names = [self.joined.join(example.names) for example in self.examples[: _LISTED + 1]]
        return f"{self.text}: {shortened(names, _LISTED)}" if names else self.text


def dataset_findings(
    train: Mapping[str, ImageCheck],
    val: Mapping[str, ImageCheck],
    labels: Mapping[str, str],
    test: Mapping[str, ImageCheck] | None = None,
) -> list[Finding]:
    """Return what is wrong with the usable images of a dataset.

    Args:
        train: name -> result of the check, of the usable training images in their order.
        val: the same of the usable validation images.
        labels: name of an image -> its class; an image without a class is missing.
        test: the same as ``train`` of the usable images to test on.
    """
    test = test or {}
    everything = {**train, **val, **test}
    near = near_copies({"train": train, "val": val, "test": test}, labels)
    return [
        *_leaks(train, val, test),
        *_copies(train, everything, labels, held_out="" if val else _HELD_OUT),
        *_near_leaks(near.across, {"val": val, "test": test}),
        *_near_copies(near.in_classes, near.within, train, held_out="" if val else _HELD_OUT),
        *_one_color(everything),
        *_few_levels(everything),
    ]


def _leaks(
    train: Mapping[str, ImageCheck], val: Mapping[str, ImageCheck], test: Mapping[str, ImageCheck]
) -> Iterable[Finding]:
    """Find exact copies across the subsets, by the sha256 of the files, which the check computed as it read them."""
    learned, chosen_by = _first_by_content(train), _first_by_content(val)
    for known, images, name, of, why in (
        (learned, val, "validation", "training", "says nothing of new images"),
        (learned, test, "test", "training", "says nothing of new images"),
        (chosen_by, test, "test", "validation", "is that of images by which the best epoch was chosen"),
    ):
        pairs = [(known[one.sha256], each) for each, one in images.items() if one.sha256 in known]
        if pairs:
            yield Finding(
                "exact-leak",
                True,
                f"{len(pairs):,} of {len(images):,} {name} images are exact copies of {of} images, so the accuracy "
                f"on them {why}",
                "delete them from one of the two splits before you believe an accuracy",
                _examples(pairs),
            )


def _first_by_content(images: Mapping[str, ImageCheck]) -> dict[str, str]:
    """Return sha256 -> name of the first image with this content; images that were not read have none."""
    return {one.sha256: name for name, one in reversed(list(images.items())) if one.sha256}


def _copies(
    train: Mapping[str, ImageCheck], everything: Mapping[str, ImageCheck], labels: Mapping[str, str], *, held_out: str
) -> Iterable[Finding]:
    """Find exact copies in two classes, and within the training images of one."""
    in_classes, in_train = [], []
    first_of = _first_by_content({name: one for name, one in everything.items() if name in labels})
    for name, one in everything.items():
        first = first_of.get(one.sha256, name)
        if name not in labels:
            continue
        if labels[first] != labels[name]:
            in_classes.append((first, name))
        elif first != name and name in train:
            in_train.append((first, name))
    if in_classes:
        yield Finding(
            "two-classes",
            True,
            f"{_images(in_classes)} in two classes, of which one is wrong",
            "look at each and delete it from the wrong class, or from both",
            _examples(in_classes),
        )
    if in_train:
        yield Finding(
            "exact-copies",
            False,
            f"{len(in_train):,} of {len(train):,} training images are exact copies of others",
            f"each counts as often as it is there: delete the copies{held_out}",
            _examples(in_train),
        )


def _near_leaks(
    across: Mapping[tuple[str, str], list[NearPair]], images: Mapping[str, Mapping[str, ImageCheck]]
) -> Iterable[Finding]:
    for (earlier, later), pairs in across.items():
        if pairs:
            yield Finding(
                "near-leak",
                False,
                f"{len(pairs):,} of {len(images[later]):,} {_WORDS[later]} images look nearly like {_WORDS[earlier]} "
                "images",
                "if they are the same picture, saved or scaled again, or frames of one video, keep each in one folder "
                "alone: the accuracy on them is too high",
                _near_examples(pairs),
                " ~ ",
            )


def _near_copies(
    in_classes: list[NearPair], within: list[NearPair], train: Mapping[str, ImageCheck], *, held_out: str
) -> Iterable[Finding]:
    if in_classes:
        yield Finding(
            "near-two-classes",
            False,
            f"{_images(in_classes, 'looks', 'look')} nearly like an image of another class",
            "if it is the same picture, one of the labels is wrong; if not, the classes are hard to tell apart",
            _near_examples(in_classes),
            " ~ ",
        )
    if within:
        yield Finding(
            "near-copies",
            False,
            f"{len(within):,} of {len(train):,} training images look nearly like others of their class",
            f"they add little to learn from: if they are the same pictures, keep one of each{held_out}",
            _near_examples(within),
            " ~ ",
        )


def _one_color(images: Mapping[str, ImageCheck]) -> Iterable[Finding]:
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
    yield Finding(
        "blank",
        False,
        f"in {len(found):,} of {len(images):,} images the network sees one color, so it can learn nothing from them"
        f"{why}",
        "delete them, or save them again so that something is to be seen",
        tuple(Example((name,)) for name in found),
    )


def _few_levels(images: Mapping[str, ImageCheck]) -> Iterable[Finding]:
    """Find 16-bit images whose levels have fewer bits. A single dark image proves nothing, all of them do.

    Those with levels of 8 bits are read as such, or come out in one color.
    """
    peaks = [(one.peak, name) for name, one in images.items() if one.peak is not None]
    if peaks and 255 < max(peaks)[0] <= _FEW_LEVELS:
        peak, name = max(peaks)
        yield Finding(
            "few-levels",
            False,
            f"images of 16 bits have no level above {peak:,} of 65,535 ({len(peaks):,} "
            f"{'image' if len(peaks) == 1 else 'images'}), so the network sees them dark, "
            f"with levels up to {peak // 256} of 255: scale their levels to 16 bits, or save them with 8 bits, and "
            f"those to predict on too; for example {name}",
            "the images that the network is to classify later must have the same levels",
        )


def _images(pairs: Sequence[object], one: str = "is", several: str = "are") -> str:
    return f"{len(pairs):,} {f'image {one}' if len(pairs) == 1 else f'images {several}'}"


def _examples(pairs: Sequence[tuple[str, str]]) -> tuple[Example, ...]:
    return tuple(Example(pair) for pair in pairs)


def _near_examples(pairs: Sequence[NearPair]) -> tuple[Example, ...]:
    return tuple(Example((one, other), f"{bits} of {PHASH_BITS} bits of the hash differ") for one, other, bits in pairs)
