"""Checks a folder of images: every file is read once, and what was read is kept for the next check and for training."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet_deploy.checking.folder_findings import folder_findings
from regnet_deploy.images.findings import Finding, dataset_findings
from regnet_deploy.images.image_check import ImageCheck, cache_file, check_images, shared_cache
from regnet_deploy.images.split_listing import SplitListing, list_splits
from regnet_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from regnet_deploy.bundle import Bundle
    from regnet_deploy.training.throughput import TrainingThroughput


@dataclass(frozen=True)
class FolderCheck:
    """What is known of a folder of images.

    Attributes:
        listing: its images by split and class.
        checked: name -> result, for each of them.
        findings: what is wrong, the serious ones first.
        rates: what training needs and gets, if a bundle was given.
    """

    listing: SplitListing
    checked: Mapping[str, ImageCheck]
    findings: tuple[Finding, ...]
    rates: TrainingThroughput | None = None

    @property
    def serious(self) -> int:
        """Number of serious findings."""
        return sum(finding.serious for finding in self.findings)

    @property
    def usable(self) -> list[ImageCheck]:
        """Images that can be decoded."""
        return [one for one in self.checked.values() if not one.reason]

    def counts(self, split: str) -> dict[str, int]:
        """Return class -> number of usable images of a split."""
        classes = self.listing.splits.get(split, {})
        return {label: sum(not self.checked[name].reason for name in names) for label, names in classes.items()}

    @property
    def decode_ms(self) -> float | None:
        """Mean time of one core to decode an image at its full size, ms; None without usable images."""
        return statistics.fmean(one.decode_ms for one in self.usable) if self.usable else None

    def summary(self) -> list[tuple[str, str]]:
        """Return facts as name and value: numbers of images, sizes, channels, time to decode."""
        facts = []
        for split in self.listing.splits:
            counts = self.counts(split)
            facts.append((_SPLITS[split], f"{_images(sum(counts.values()))} in {_classes(counts)}"))
        if not self.usable:
            return facts
        train = [count for count in self.counts("train").values() if count]
        if train:
            middle = statistics.median(train)
            text = f"{min(train):,} to {max(train):,} training images a class, median {middle:,.0f}"
            facts.append(("balance", f"{text}; the largest has {max(train) / min(train):.1f} times the smallest"))
        widths, heights = ([getattr(one, side) for one in self.usable] for side in ("width", "height"))
        facts += [
            ("width", _range(widths, "pixels")),
            ("height", _range(heights, "pixels")),
            ("long by short side", _aspects(self.usable)),
            ("channels in the files", _shares(Counter(_MODES.get(one.mode, one.mode) for one in self.usable))),
            ("colors", _shares(Counter("gray" if one.gray else "color" for one in self.usable))),
        ]
        if self.decode_ms:
            speed = f"{1000 / self.decode_ms:,.0f} images/s on one core at full size ({self.decode_ms:.2f} ms each)"
            facts.append(("decoding", speed))
        if self.rates:
            facts += self.rates.facts()
        return facts

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; names of files are relative to the folder."""
        splits = {
            split: {"folder": self.listing.folders[split], "classes": self.counts(split)}
            for split in self.listing.splits
        }
        return {
            "folder": str(self.listing.source.root),
            "files": len(self.checked),
            "usable": len(self.usable),
            "splits": splits,
            "serious": self.serious,
            "findings": [
                {
                    "kind": finding.kind,
                    "serious": finding.serious,
                    "text": finding.text,
                    "advice": finding.advice,
                    "cases": [{"names": list(each.names), "note": each.note} for each in finding.examples],
                }
                for finding in self.findings
            ],
            "sizes": {side: _quantiles([getattr(one, side) for one in self.usable]) for side in ("width", "height")},
            "modes": dict(Counter(one.mode for one in self.usable)),
            "gray": sum(one.gray for one in self.usable),
            "decode_ms": self.decode_ms,
            "rates": self.rates.to_json() if self.rates else None,
            "left_out": dict(self.listing.left_out),
            "notes": list(self.listing.notes),
        }


def check_folder(data: str | Path, *, bundle: Bundle | None = None, progress: Progress = NoProgress()) -> FolderCheck:
    """Check a folder or table of images. Nothing is written into it.

    Every file is read and decoded once, in threads. Results are kept in the cache folder of the user: the next check,
    and training, read only what has changed.

    Args:
        data: the folder or table, as for training; its splits need not have the same classes.
        bundle: measures what training of its network needs, on some of the images; what its training has read of the
            folder is not read again.
        progress: receives the images done.

    Raises:
        DataError: no such folder, no class folders, or a folder that cannot be read.
        BundleError: the network of the bundle cannot be built.
    """
    listing = list_splits(data, progress)
    cache = shared_cache(listing.source.root, create=True)
    if cache is None:
        progress.message("the results of this check are not kept: the cache folder of this user cannot be written")
    try:
        checked = check_images(listing.source, cache, progress, also=[_cache_of_training(bundle, listing.source.root)])
    except KeyboardInterrupt:
        kept = "what was read is kept, and the same command continues" if cache else "nothing is kept"
        raise KeyboardInterrupt(kept) from None
    usable = {
        split: {name: checked[name] for names in classes.values() for name in names if not checked[name].reason}
        for split, classes in listing.splits.items()
    }
    progress.step("comparing images")
    copies = dataset_findings(usable["train"], usable.get("val", {}), listing.labels, usable.get("test", {}))
    findings = [*folder_findings(listing, checked), *copies]
    rates = None
    if bundle is not None and usable["train"]:
        from regnet_deploy.training.throughput import measure_throughput

        rates = measure_throughput(bundle, listing, checked, progress)
        findings += rates.findings()
    findings.sort(key=lambda finding: not finding.serious)
    return FolderCheck(listing, checked, tuple(findings), rates)


_SPLITS = {"train": "to train on", "val": "to validate with", "test": "to test on"}
#: Pillow's modes in words.
_MODES = {
    "1": "black and white",
    "L": "gray",
    "LA": "gray with alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGB with alpha",
    "I;16": "gray of 16 bits",
    "I;16B": "gray of 16 bits",
    "I": "gray of 16 bits",
}


def _cache_of_training(bundle: Bundle | None, root: Path) -> Path | None:
    """Return the file in which training of a bundle keeps what it has read, in its usual run directory."""
    if bundle is None:
        return None
    from regnet_deploy.training.run_directory import default_directory

    return cache_file(default_directory(bundle.path), root)


def _images(count: int) -> str:
    return f"{count:,} usable {'image' if count == 1 else 'images'}"


def _classes(counts: Mapping[str, int]) -> str:
    if set(counts) == {""}:
        return "no class folders"
    return f"{len(counts):,} {'class' if len(counts) == 1 else 'classes'}"


def _range(values: list[int], unit: str) -> str:
    if min(values) == max(values):
        return f"{values[0]:,} {unit} in all images"
    return f"{min(values):,} to {max(values):,} {unit}, median {statistics.median(values):,.0f}"


def _aspects(images: list[ImageCheck]) -> str:
    aspects = [max(one.width, one.height) / max(1, min(one.width, one.height)) for one in images]
    return f"{min(aspects):.2f} to {max(aspects):.2f}, median {statistics.median(aspects):.2f}"


def _shares(counts: Counter[str]) -> str:
    total = counts.total()
    return ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in counts.most_common())


def _quantiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": statistics.median(values), "greatest": max(values)}
