"""What a user is told of a dataset before networks are trained on it: lines of text, the same for every command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.decode import SUFFIXES
from regnet_deploy.images.names import printable, shortened

#: A line names as many classes at most; of more, the first ones, the smallest and the largest.
_CLASSES = 12
#: A list of files has as many lines at most, one for each reason, with as many names.
_REASONS, _NAMES = 10, 3
#: Length at which the reason of a single file is cut off, characters.
_REASON_LENGTH = 160


def dataset_lines(dataset: ImageDataset) -> list[str]:
    """Return lines that describe a dataset.

    They say how many images there are and where validation images come from, the classes with their counts, what a
    constant answer reaches, what is wrong with the images, and which files are left out and why.
    """
    test = f", {len(dataset.test):,} to test on ({dataset.test_split})" if dataset.test else ""
    lines = [
        f"{len(dataset.train):,} images to train on, {len(dataset.val):,} to validate with ({dataset.split}){test}, "
        f"{len(dataset.classes):,} classes",
        _classes(dataset),
    ]
    counts = dataset.counts(dataset.val)
    largest = max(range(len(counts)), key=counts.__getitem__)
    lines.append(
        f"a network that always answered {dataset.classes[largest]} would be right on "
        f"{counts[largest] / len(dataset.val):.2%} of the validation images"
    )
    for images, kind in ((dataset.val, "validation"), (dataset.test, "test")):
        names = dataset.classes_without(images) if images else []
        if names:
            are = "class has" if len(names) == 1 else "classes have"
            lines.append(f"{len(names):,} {are} no {kind} image: {shortened(names, 10)}")
    lines += dataset.findings
    return lines + left_out_lines("left out", dataset.rejected)


def left_out_lines(what: str, reasons: Mapping[str, str]) -> list[str]:
    """Return lines that list files by the reason why they are not used, broken images before files that are none.

    Args:
        what: happened to the files, such as ``left out``.
        reasons: name of a file, or of a folder with ``/`` at its end -> reason.
    """
    if not reasons:
        return []
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(_kind(reason), []).append(name)
    ordered = sorted(groups.values(), key=lambda names: (not any(map(_is_called_image, names)), -len(names)))
    folders = sum(name.endswith("/") for name in reasons)
    noun = "file" if not folders else "folder" if folders == len(reasons) else "files and folders"
    lines = [f"{len(reasons):,} {noun}{'s' * (len(reasons) > 1 and ' ' not in noun)} {what}:"]
    for names in ordered[:_REASONS]:
        reason = reasons[names[0]]
        reason = reason if len(reason) <= _REASON_LENGTH else f"{reason[:_REASON_LENGTH]}..."
        if len(names) == 1:
            lines.append(f"  {printable(names[0])}: {reason}")
        else:
            lines.append(f"  {len(names):,} like {shortened(names, _NAMES)}: {reason}")
    if len(ordered) > _REASONS:
        count = sum(map(len, ordered[_REASONS:]))
        lines.append(f"  and {count:,} more for {len(ordered) - _REASONS} other reasons")
    return lines


def _classes(dataset: ImageDataset) -> str:
    subsets = [each for each in (dataset.train, dataset.val, dataset.test) if each]
    counts = [" + ".join(f"{count:,}" for count in each) for each in zip(*map(dataset.counts, subsets), strict=True)]
    train, labels = dataset.counts(dataset.train), list(range(len(dataset.classes)))
    ending = ""
    if len(labels) > _CLASSES:
        smallest, largest = min(labels, key=train.__getitem__), max(labels, key=train.__getitem__)
        ending = ", ...; " + ", ".join(
            f"the {word} is {dataset.classes[label]} {counts[label]}"
            for word, label in (("smallest", smallest), ("largest", largest))
        )
        labels = labels[: _CLASSES // 2]
    named = ", ".join(f"{dataset.classes[label]} {counts[label]}" for label in labels)
    uses = "to train on + to validate with" + (" + to test on" if dataset.test else "")
    return f"classes, with images {uses}: {named}{ending}"


def _kind(reason: str) -> str:
    """Return a reason without what differs from file to file: numbers, and details in brackets."""
    return re.sub(r"\d[\d,.x]*|\(.*", "#", reason)


def _is_called_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES
