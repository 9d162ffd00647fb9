"""What is wrong with a folder as a whole: files, names of classes across splits, balance, sizes and colors."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sized
from pathlib import PurePosixPath

from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.findings import Example, Finding
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.names import printable, shortened
from regnet_deploy.images.split_listing import NO_CLASS, SplitListing

#: A class with fewer training images is said to have few.
FEW_IMAGES = 20
#: Largest class by smallest class from which a data set is said to be unbalanced.
UNBALANCED = 10
#: An image with a shorter side is tiny, pixels; so is one whose shorter side is this share of the median.
TINY_SIDE, _TINY_SHARE = 8, 0.25
#: Long side by short side above which the square in the middle has less than half of an image.
LONG = 2.0
#: Share of the images of a class that make it one of gray, or one of color, images.
_ALMOST_ALL = 0.95


def folder_findings(listing: SplitListing, checked: Mapping[str, ImageCheck]) -> list[Finding]:
    """Return what is wrong with a folder beside its single images and copies.

    Args:
        listing: the images by split and class.
        checked: name -> result of the check, for each of them.
    """
    usable = {
        split: {
            label: [checked[name] for name in names if not checked[name].reason] for label, names in classes.items()
        }
        for split, classes in listing.splits.items()
    }
    everything = [one for classes in usable.values() for images in classes.values() for one in images]
    return [
        *_class_names(listing),
        *_empty_classes(listing, usable),
        *_broken(checked),
        *_balance(usable["train"]),
        *_sizes(everything),
        *_colors(usable["train"]),
    ]


def _class_names(listing: SplitListing) -> Iterable[Finding]:
    """Compare the classes of the other splits with those of the training images."""
    train = {_plain(name): name for name in listing.splits["train"]}
    folded = {name.casefold(): label for name, label in train.items()}
    for split, classes in listing.splits.items():
        if split == "train" or set(classes) == {NO_CLASS}:
            continue
        own, folder = {_plain(name): name for name in classes}, listing.folders[split]
        unknown = [name for name in own if name not in train]
        other_case = [(folded[name.casefold()], own[name]) for name in unknown if name.casefold() in folded]
        if other_case:
            yield Finding(
                "class-case",
                True,
                f"{_classes(other_case)} of {folder}/ differ{'s' * (len(other_case) == 1)} from "
                f"{listing.folders['train']}/ in upper and lower case alone",
                "they are two classes for every program; rename one of the two",
                tuple(Example((f"{listing.folders['train']}/{a}", f"{folder}/{b}")) for a, b in other_case),
                " and ",
            )
        renamed = {own_name for _, own_name in other_case}
        extra = [own[name] for name in unknown if own[name] not in renamed]
        if extra:
            yield Finding(
                "class-extra",
                True,
                f"{_classes(extra)} of {folder}/ {_are(extra)} not in {listing.folders['train']}/",
                "training refuses this: add training images, rename the class, or remove it",
                tuple(Example((name,)) for name in extra),
            )
        spelled = {name.casefold() for name in own}
        missing = [label for name, label in train.items() if name not in own and name.casefold() not in spelled]
        if missing:
            yield Finding(
                "class-missing",
                True,
                f"{len(missing):,} of {len(train):,} classes of {listing.folders['train']}/ {_are(missing)} not in "
                f"{folder}/",
                "nothing is measured for them, so the accuracy is that of the other classes: add images",
                tuple(Example((name,)) for name in missing),
            )
    twins: dict[str, str] = {}
    same = [(first, name) for name in train.values() if (first := twins.setdefault(name.casefold(), name)) != name]
    if same:
        yield Finding(
            "class-case",
            True,
            f"{_classes(same)} {'differs' if len(same) == 1 else 'differ'} from another in upper and lower case alone",
            "they are two classes for every program; if they are the same, put their images into one of them",
            tuple(Example(pair) for pair in same),
            " and ",
        )


def _empty_classes(listing: SplitListing, usable: Mapping[str, Mapping[str, list[ImageCheck]]]) -> Iterable[Finding]:
    for split, classes in usable.items():
        empty = [label for label, images in classes.items() if not images]
        if empty and set(classes) != {NO_CLASS}:
            where = f"in {listing.folders[split]}/" if listing.folders[split] else "to train on"
            yield Finding(
                "class-empty",
                True,
                f"{_classes(empty)} {where} {'has' if len(empty) == 1 else 'have'} no usable image",
                "training stops at a class without images: add some, or remove the class"
                if split == "train"
                else "nothing is measured for them, so the accuracy is that of the other classes: add images",
                tuple(Example((name,)) for name in empty),
            )
    labelled = [label for label in usable["train"] if label != NO_CLASS]
    if len(labelled) < 2:
        yield Finding(
            "one-class",
            True,
            f"there is one class, {shortened(labelled)}",
            "a classifier needs two or more; did you give the folder of a class, or the one above the data set?",
        )


def _broken(checked: Mapping[str, ImageCheck]) -> Iterable[Finding]:
    bad = [one for one in checked.values() if one.reason]
    broken = [one for one in bad if PurePosixPath(one.path).suffix.lower() in SUFFIXES]
    others = [one for one in bad if PurePosixPath(one.path).suffix.lower() not in SUFFIXES]
    for kind, found, text, advice in (
        (
            "broken",
            broken,
            f"{len(broken):,} of {len(checked):,} files are broken images",
            "training leaves them out; fetch or save them again, or delete them",
        ),
        (
            "no-image",
            others,
            f"{len(others):,} of {len(checked):,} files are no images",
            "training leaves them out; move them elsewhere",
        ),
    ):
        if found:
            yield Finding(
                kind,
                False,
                text,
                advice,
                tuple(Example((one.path,), one.reason if kind == "broken" else "") for one in found),
            )


def _balance(train: Mapping[str, list[ImageCheck]]) -> Iterable[Finding]:
    counts = {label: len(images) for label, images in train.items() if images}
    if len(counts) < 2:
        return
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[largest] / counts[smallest]
    if ratio >= UNBALANCED:
        yield Finding(
            "unbalanced",
            False,
            f"the largest class has {ratio:,.0f} times the training images of the smallest: "
            f"{printable(largest)} {counts[largest]:,}, {printable(smallest)} {counts[smallest]:,}",
            "the accuracy is mostly that of the large classes: look at the recall of each class with `regnet-deploy "
            "evaluate BUNDLE --data DIR`, and collect images of the small ones",
        )
    few = {label: count for label, count in counts.items() if count < FEW_IMAGES}
    if few:
        yield Finding(
            "few-images",
            False,
            f"{_classes(few)} {'has' if len(few) == 1 else 'have'} fewer than {FEW_IMAGES} training images",
            "add images, or start from weights that were trained on others: `regnet-deploy import`",
            tuple(Example((label,), f"{count:,} images") for label, count in sorted(few.items(), key=lambda e: e[1])),
        )


def _sizes(images: list[ImageCheck]) -> Iterable[Finding]:
    if not images:
        return
    median = statistics.median(min(one.width, one.height) for one in images)
    limit = max(TINY_SIDE, math.ceil(_TINY_SHARE * median))
    tiny = [one for one in images if min(one.width, one.height) < limit]
    if tiny:
        yield Finding(
            "tiny",
            False,
            f"{_images(tiny)} {'has' if len(tiny) == 1 else 'have'} a side of fewer than {limit} pixels (the "
            f"median of shorter sides is {median:.0f})",
            "they are enlarged and show little: thumbnails and icons that came along are better deleted",
            tuple(Example((one.path,), f"{one.width}x{one.height}") for one in tiny),
        )
    long = [one for one in images if _aspect(one) > LONG]
    if long:
        long.sort(key=_aspect, reverse=True)
        yield Finding(
            "long",
            False,
            f"{_images(long)} {'is' if len(long) == 1 else 'are'} more than {LONG:.0f} times as long as wide",
            "the network sees the square in the middle, less than half of them: crop them to what matters, or pad them",
            tuple(Example((one.path,), f"{one.width}x{one.height}") for one in long),
        )


def _colors(train: Mapping[str, list[ImageCheck]]) -> Iterable[Finding]:
    """Find classes of gray images beside classes of color images: the network can tell them apart by that alone."""
    shares = {label: sum(one.gray for one in images) / len(images) for label, images in train.items() if images}
    gray = [label for label, share in shares.items() if share >= _ALMOST_ALL]
    color = [label for label, share in shares.items() if share <= 1 - _ALMOST_ALL]
    if gray and color:
        few = gray if len(gray) <= len(color) else color
        yield Finding(
            "gray-classes",
            False,
            f"{_classes(few)} {'has' if len(few) == 1 else 'have'} {'gray' if few is gray else 'color'} images alone, "
            f"others {'color' if few is gray else 'gray'} ones",
            "the network may learn the color instead of the object: convert all images to gray, or mix them",
            tuple(Example((label,)) for label in few),
        )


def _aspect(one: ImageCheck) -> float:
    return max(one.width, one.height) / max(1, min(one.width, one.height))


def _plain(name: str) -> str:
    """Return the name of a class in one form of Unicode."""
    return unicodedata.normalize("NFC", name)


def _classes(found: Sized) -> str:
    return f"{len(found):,} {'class' if len(found) == 1 else 'classes'}"


def _are(found: Sized) -> str:
    return "is" if len(found) == 1 else "are"


def _images(found: list[ImageCheck]) -> str:
    return f"{len(found):,} {'image' if len(found) == 1 else 'images'}"
