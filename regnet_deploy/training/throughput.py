"""How fast images are prepared for training, and how fast training steps use them, measured for a few seconds."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from regnet_deploy.bundle import Bundle
from regnet_deploy.cpu import available_memory
from regnet_deploy.images.dataset import LabelledImage
from regnet_deploy.images.findings import Finding
from regnet_deploy.images.image_check import ImageCheck
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.images.split_listing import SplitListing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.training.data_loader import Batch, ImageSubset, TrainingDataset
from regnet_deploy.training.execution import ExecutionRequest, default_workers, device_name, disable_tf32
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.stored_images import fits_into_memory, packed_bytes, stored_side
from regnet_deploy.training.trainer import make_trainer

#: Seconds of each of the two measurements.
_SECONDS = 2.0
#: Images that are prepared, evenly from all; images of a step on a CPU, whose speed hardly depends on it.
_IMAGES, _CPU_BATCH = 256, 8


@dataclass(frozen=True)
class TrainingThroughput:
    """Images per second that training gets and uses.

    Attributes:
        network: name of the network.
        crop: side of its input, pixels.
        loaded: images/s that one process decodes and augments.
        used: images/s that training steps use.
        batch: images of each step that was measured.
        device: on which steps ran.
        workers: processes that load images by default; 0 is the process of training itself.
        in_memory: whether all images stay in memory after they were decoded once.
        packed: whether they are decoded once, into a file.
    """

    network: str
    crop: int
    loaded: float
    used: float
    batch: int
    device: str
    workers: int
    in_memory: bool
    packed: bool = False

    @property
    def needed(self) -> int:
        """Processes that load as fast as steps use."""
        return math.ceil(self.used / self.loaded)

    def facts(self) -> list[tuple[str, str]]:
        """Return both rates as name and value."""
        kept = "; all stay in memory, decoded once" if self.in_memory else ""
        if self.packed:
            kept = "; all are decoded once, into a file"
        return [
            ("one loading process", f"{_shown(self.loaded)} images/s, decoded and augmented to {self.crop} px{kept}"),
            ("a training step", f"{_shown(self.used)} images/s of {self.network}, batch {self.batch}, {self.device}"),
        ]

    def findings(self) -> list[Finding]:
        """Return that steps wait for images, if they do."""
        if self.in_memory or self.packed or self.loaded * max(1, self.workers) >= self.used:
            return []
        return [
            Finding(
                "slow-loading",
                False,
                f"training steps use {self.used:,.0f} images/s, and {max(1, self.workers)} loading process(es) prepare "
                f"{self.loaded * max(1, self.workers):,.0f} images/s",
                f"steps wait for images: give `train --workers {self.needed}`, or save the images with a shorter side "
                f"of {2 * self.crop} pixels",
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data; rates are in images/s."""
        return asdict(self)


def measure_throughput(
    bundle: Bundle, listing: SplitListing, checked: Mapping[str, ImageCheck], progress: Progress = NoProgress()
) -> TrainingThroughput:
    """Measure how fast one process prepares training images, and how fast training steps use images of that size.

    Args:
        bundle: the network and its preprocessing.
        listing: the images.
        checked: name -> result of the check; one image or more can be used.
        progress: receives the steps.

    Raises:
        MissingPart: the bundle has no architecture or no preprocessing.
    """
    architecture, preprocessing = bundle.architecture, bundle.preprocessing
    names = [name for classes in listing.splits["train"].values() for name in classes]
    indices = {name: index for index, name in enumerate(listing.source.names)}
    usable = [checked[name] for name in names if not checked[name].reason]
    images = [LabelledImage(indices[one.path], 0, one.width, one.height) for one in usable]
    execution = ExecutionRequest().execution()
    recipe = Recipe().fitted(max(2, len(images)))
    progress.step("measuring how fast images are prepared")
    sample = images[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    side = stored_side(images, preprocessing)
    dataset = TrainingDataset(ImageSubset(listing.source, sample), recipe, preprocessing, side)
    loaded = _rate(1, (dataset[epoch, number] for epoch, number in _keys(len(sample))))
    progress.step("measuring how fast training steps are")
    disable_tf32()
    batch = recipe.batch if execution.device == "cuda" else min(recipe.batch, _CPU_BATCH)
    trainer = make_trainer(AnyNet(architecture.network, architecture.classes), execution, recipe, preprocessing)
    pixels = torch.zeros((batch, *image_shape(preprocessing, pixels=True)), dtype=torch.uint8)
    step = Batch(pixels, torch.zeros((batch, preprocessing.channels)), torch.zeros(batch, dtype=torch.int64), [])
    used = _rate(batch, (float(trainer.step(step, 0.0)[0]) for _ in itertools.repeat(None)))
    in_memory = fits_into_memory(images, preprocessing)
    return TrainingThroughput(
        network=architecture.name,
        crop=preprocessing.crop,
        loaded=loaded,
        used=used,
        batch=batch,
        device=device_name(execution.device),
        workers=default_workers(execution.device, in_memory),
        in_memory=in_memory,
        packed=not in_memory
        and side is not None
        and packed_bytes(images, side, preprocessing) <= available_memory() // 2,
    )


def _shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _keys(images: int) -> Iterator[tuple[int, int]]:
    epoch = 0
    while True:
        yield from ((epoch, number) for number in range(images))
        epoch += 1


def _rate(images: int, steps: Iterator[object]) -> float:
    """Return the images/s of steps with this number of images, run one after the other for :data:`_SECONDS`.

    The first step prepares buffers and is left out, unless it takes longer than all of that time.
    """
    begun = time.perf_counter()
    next(steps)
    elapsed, done = time.perf_counter() - begun, images
    if elapsed < _SECONDS:
        begun, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begun) < _SECONDS or not done:
            next(steps)
            done += images
    return done / elapsed
