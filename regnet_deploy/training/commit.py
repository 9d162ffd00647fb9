"""What a finished run writes into its bundle: weights, labels, metrics, lineage and a sample of its images."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Autotune, BestEpoch, Lineage, Training, TrainingData
from regnet_deploy.errors import require
from regnet_deploy.images.dataset import ImageDataset, stratified_order
from regnet_deploy.models.weights import WeightsUpdate, replace_weights
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, Sample
from regnet_deploy.training.execution import device_name
from regnet_deploy.training.loop import TrainingRun
from regnet_deploy.training.run_identity import RunIdentity

SAMPLE_COUNT = 32


def commit_training(identity: RunIdentity, run: TrainingRun, autotune: Autotune) -> Bundle:
    """Write the best weights, labels, samples and metrics into the bundle in one step, and return the new bundle.

    Raises:
        BundleError: the bundle was changed meanwhile, or cannot be written; it is then as before.
    """
    environment = {
        **library_versions(),
        "platform": platform.platform(),
        "device": device_name(run.trainer.execution.device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    update = WeightsUpdate(
        state=run.best,
        architecture=identity.architecture,
        preprocessing=identity.preprocessing,
        labels=identity.dataset.classes,
        training=training_record(identity, run, autotune),
        samples=sample_images(identity.dataset, identity.preprocessing, identity.recipe.seed),
        environment={"train": environment},
    )
    return replace_weights(identity.bundle, update)


def training_record(identity: RunIdentity, run: TrainingRun, autotune: Autotune) -> Training:
    """Return the part ``training`` of the manifest."""
    dataset, recipe, state = identity.dataset, identity.recipe, run.state
    best = state.history[state.best_epoch - 1]
    start = "the bundle's weights" if identity.start_sha256 else f"random weights of seed {recipe.seed}"
    return Training(
        recipe=recipe.to_json(),
        data=TrainingData(
            folder=dataset.source.root.resolve().name,
            classes=len(dataset.classes),
            train_images=len(dataset.train),
            val_images=len(dataset.val),
            split=dataset.split,
            digest=dataset.digest,
            rejected=dict(dataset.rejected),
            unreadable=dict(state.unreadable),
            in_memory=run.training.subset.cached is not None,
            train_by_class=dataset.counts(dataset.train),
            val_by_class=dataset.counts(dataset.val),
            findings=dataset.findings,
        ),
        seed=recipe.seed,
        device=device_name(autotune.execution.device),
        execution=autotune,
        history=tuple(state.history),
        # If the user ended the run before its last epoch, the history has fewer epochs than the recipe.
        stopped=len(state.history) < recipe.epochs,
        best=BestEpoch(
            epoch=state.best_epoch, val_top1=best.val_top1, val_loss=best.val_loss, val_images=best.val_images
        ),
        seconds=sum(epoch.seconds for epoch in state.history),
        lineage=Lineage(start=start, start_sha256=identity.start_sha256, versions=library_versions()),
    )


def sample_images(dataset: ImageDataset, preprocessing: Preprocessing, seed: int) -> bytes:
    """Return ``samples.safetensors``: training images as evaluation shows them, spread over the classes.

    ``images`` uint8 ``(n, h, w, 3)`` and ``labels`` int64 ``(n,)``; n is 32, or the number of images if fewer.
    """
    images = EvaluationDataset(ImageSubset(dataset.source, dataset.train), preprocessing)
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for number in stratified_order([image.label for image in dataset.train], seed):
        sample = images[number]
        if isinstance(sample, Sample):
            pixels.append(sample.pixels)
            labels.append(sample.label)
        if len(pixels) == SAMPLE_COUNT:
            break
    save = require("safetensors.numpy", "train").save
    side = preprocessing.crop
    stacked = np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8)
    data: bytes = save({"images": stacked, "labels": np.asarray(labels, np.int64)})
    return data


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that affect the weights."""
    return {
        "regnet-deploy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": require("PIL", "train").__version__,
    }


def training_summary(training: Training) -> dict[str, Any]:
    """Return the part ``training`` as JSON data without its long tables."""
    part = training.to_json()
    data = {**part["data"], "rejected": len(training.data.rejected), "unreadable": len(training.data.unreadable)}
    tables = ("train_by_class", "val_by_class")
    return {
        **{name: value for name, value in part.items() if name != "history"},
        "data": {name: value for name, value in data.items() if name not in tables},
    }
