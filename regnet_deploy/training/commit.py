"""What a finished run writes into its bundle."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import require
from regnet_deploy.images.dataset import ImageDataset, stratified_order
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.training.autotune import Autotune
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, Sample
from regnet_deploy.training.execution import device_name
from regnet_deploy.training.loop import Run

SAMPLES = "samples.safetensors"
SAMPLE_COUNT = 32
#: Parts that were true of the weights before.
_OF_OLD_WEIGHTS = ("golden", "variants", "choice", "profile", "serving")
_OF_OLD_WEIGHTS_SUFFIXES = (".onnx", ".plan")
_GOLDEN = "golden.safetensors"


def commit_training(
    bundle: Bundle, architecture: Mapping[str, Any], folder: ImageDataset, run: Run, part: dict[str, Any]
) -> Bundle:
    """Write the best weights, labels, samples and metrics into the bundle, in one step, and drop what they make untrue.

    Raises:
        BundleError: the bundle was changed meanwhile or cannot be written; it is then as before.
    """
    files = {WEIGHTS: weights_to_bytes(run.best), SAMPLES: samples(folder, run.preprocessing, run.learner.recipe.seed)}
    parts = {
        "architecture": dict(architecture),
        "labels": list(folder.classes),
        "training": part,
        "environment": {"train": training_environment(run)},
    }
    now = open_bundle(bundle.path)  # an export may have come between
    stale = [name for name in now.files if name == _GOLDEN or name.endswith(_OF_OLD_WEIGHTS_SUFFIXES)]
    return update_bundle(bundle.path, parts, files, drop=(*_OF_OLD_WEIGHTS, *stale), expect=bundle)


def training_part(folder: ImageDataset, run: Run, choice: Autotune, start_sha256: str | None) -> dict[str, Any]:
    """Return the manifest's part ``training``."""
    progress = run.progress
    best = progress.history[progress.best_epoch - 1]
    return {
        "recipe": run.learner.recipe.to_json(),
        "data": {
            "folder": folder.source.root.resolve().name,
            "classes": len(folder.classes),
            "train_images": len(folder.train),
            "val_images": len(folder.val),
            "split": folder.split,
            "digest": folder.digest,
            "rejected": dict(folder.rejected),
            "unreadable": dict(progress.unreadable),
            "in_memory": run.training.subset.cached is not None,
        },
        "seed": run.learner.recipe.seed,
        "device": device_name(choice.execution.device),
        "execution": choice.to_json(),
        "history": progress.history,
        # Ended by the user before its last epoch: then there are fewer epochs in the history than in the recipe.
        "stopped": len(progress.history) < run.learner.recipe.epochs,
        "best": {
            "epoch": progress.best_epoch,
            "val_top1": best["val_top1"],
            "val_loss": best["val_loss"],
            "val_images": best["val_images"],
        },
        "seconds": sum(metrics["seconds"] for metrics in progress.history),
        "lineage": {
            "start": "the bundle's weights" if start_sha256 else f"random weights of seed {run.learner.recipe.seed}",
            "start_sha256": start_sha256,
            "versions": versions(),
        },
    }


def samples(folder: ImageDataset, preprocessing: Preprocessing, seed: int) -> bytes:
    """Return ``samples.safetensors``: evaluation views of training images, spread over the classes.

    ``images`` uint8 ``(n, h, w, 3)`` and ``labels`` int64 ``(n,)``; n is 32, or all there are.
    """
    views = EvaluationDataset(ImageSubset(folder.source, folder.train), preprocessing)
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for number in stratified_order([file.label for file in folder.train], seed):
        sample = views[number]
        if isinstance(sample, Sample) and len(pixels) < SAMPLE_COUNT:
            pixels.append(sample.pixels)
            labels.append(sample.label)
        if len(pixels) == SAMPLE_COUNT:
            break
    save = require("safetensors.numpy", "train").save
    side = preprocessing.crop
    images = np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8)
    data: bytes = save({"images": images, "labels": np.asarray(labels, np.int64)})
    return data


def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers."""
    return {
        "regnet-deploy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": require("PIL", "train").__version__,
    }


def training_environment(run: Run) -> dict[str, Any]:
    """Return what wrote the weights, where and when."""
    return {
        **versions(),
        "platform": platform.platform(),
        "device": device_name(run.learner.execution.device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def training_summary(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part ``training`` without its long tables, for machines."""
    data = {**part["data"], "rejected": len(part["data"]["rejected"]), "unreadable": len(part["data"]["unreadable"])}
    return {**{name: value for name, value in part.items() if name != "history"}, "data": data}
