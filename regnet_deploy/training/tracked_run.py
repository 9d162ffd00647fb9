"""What a run tells its trackers: recipe, images and execution at its start, and its result at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.tracking.tracker import TrackedRun
from regnet_deploy.training.checkpoint import Checkpoint
from regnet_deploy.training.recipe import steps_per_epoch

#: What of the images is told: the number of values does not grow with the classes, and there are no paths.
_DATA = ("folder", "classes", "train_images", "val_images", "split", "digest", "in_memory")


def tracked_run(bundle: Bundle, checkpoint: Checkpoint, directory: Path) -> TrackedRun:
    """Return a run as trackers see it.

    Args:
        bundle: that it trains.
        checkpoint: of the run, as it is now.
        directory: the run directory.
    """
    name, description, recipe = bundle.path.resolve().name, checkpoint.description, checkpoint.identity["recipe"]
    data, autotune, state = description.data.to_json(), checkpoint.autotune, checkpoint.state
    parameters = {
        "bundle": name,
        "network": bundle.architecture.name,
        "resolution": bundle.architecture.resolution,
        "recipe": recipe,
        "data": {key: data.get(key) for key in _DATA},
        "execution": {**autotune.execution.to_json(), "threads": autotune.threads, "device_name": description.device},
        "regnet_deploy": __version__,
    }
    steps = state.epoch * steps_per_epoch(description.data.train_images, recipe["batch_size"]) + state.step
    done = 0 if checkpoint.start else steps  # trials of the learning rate are before the first step
    return TrackedRun(_text(f"{name} {description.name}"), directory / description.name, done, dict(_flat(parameters)))


def final_values(bundle: Bundle) -> dict[str, str | int | float]:
    """Return the result of a training that is in its bundle: accuracies as shares, time in seconds, digests."""
    training = bundle.training
    best, test = training.best, training.test
    return {
        "final/best_epoch": best.epoch,
        "final/val_top1": best.val_top1,
        "final/val_loss": best.val_loss,
        "final/seconds": training.seconds,
        **({} if test is None else {"final/test_top1": test.top1, "final/test_images": test.images}),
        "bundle_sha256": bundle.digest,
        "weights_sha256": bundle.files[WEIGHTS].sha256,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield the values of nested mappings by names such as ``recipe/lr``; None is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float | bool):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", _text(str(value))


def _text(name: str) -> str:
    """Return a name as trackers can store it: bytes of a file name that are not UTF-8 become question marks."""
    return name.encode(errors="replace").decode()
