"""What a finished run writes into its bundle: weights, labels, metrics, lineage and a sample of its images."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_deploy import __version__
from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.training import Execution, Lineage, Training, TrainingData
from regnet_deploy.errors import require
from regnet_deploy.evaluation.answers import Answers, answers_to_bytes
from regnet_deploy.images.dataset import ImageDataset, stratified_order
from regnet_deploy.images.decode import decoder
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.models.weights import WeightsUpdate, replace_weights, weights_to_bytes
from regnet_deploy.progress import Progress
from regnet_deploy.training.checkpoint import Checkpoint, RunDescription
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, Sample, TrainingDataset
from regnet_deploy.training.earlier_weights import is_worth_keeping, keep_earlier
from regnet_deploy.training.execution import device_name
from regnet_deploy.training.final_test import FinalTest, unseen_images
from regnet_deploy.training.run_identity import RunIdentity, seen_before, validated_before

SAMPLE_COUNT = 32


def commit_training(
    bundle: Bundle,
    checkpoint: Checkpoint,
    directory: Path,
    progress: Progress,
    tested: FinalTest | None = None,
    answers: Answers | None = None,
) -> Bundle:
    """Write the best weights, labels, samples and metrics of a run into a bundle in one step; return the new bundle.

    Earlier weights that are not worse on the same validation images are kept in the run directory.

    Args:
        bundle: as it was when the run began, or when its end was requested.
        checkpoint: of the run, with at least one completed epoch or its linear probe.
        directory: the run directory.
        progress: receives where the earlier weights are kept.
        tested: the best weights on the images to test on; None if they are not measured.
        answers: of the best weights on the validation images; None if they are not known.

    Raises:
        BundleError: the bundle was changed meanwhile, or cannot be written; it is then as before.
        DataError: the earlier weights cannot be kept; the bundle is as before.
    """
    description, training = checkpoint.description, training_record(checkpoint, tested)
    environment = {
        **library_versions(),
        "platform": platform.platform(),
        "device": description.device,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    samples = {name: value.numpy() for name, value in checkpoint.samples.items()}
    update = WeightsUpdate(
        state=checkpoint.best,
        architecture=bundle.architecture.replace(classes=len(description.labels)),
        preprocessing=bundle.preprocessing,
        labels=description.labels,
        training=training,
        imported=bundle.manifest.imported if training.lineage.start_sha256 else None,  # their license stays in force
        samples=require("safetensors.numpy", "train").save(samples),
        environment={"train": environment},
        evaluation=None if tested is None else tested.evaluation,
        answers=None if answers is None else answers_to_bytes(answers),
    )
    if is_worth_keeping(bundle, training, weights_to_bytes(update.state)):
        keep_earlier(bundle, directory, progress)
    return replace_weights(bundle, update)


def describe_run(
    identity: RunIdentity,
    execution: Execution,
    training: TrainingDataset,
    name: str,
    shares: tuple[float, float | None],
    recipe_name: str | None = None,
) -> RunDescription:
    """Return what the bundle will say of a run beside its weights and metrics.

    Args:
        identity: of the run.
        execution: of its steps.
        training: its training images.
        name: folder of its TensorBoard files.
        shares: of each class that are held out for validation, and to test on.
        recipe_name: of its recipe, if it has one.
    """
    dataset = identity.dataset
    data = TrainingData(
        folder=dataset.source.root.resolve().name,
        classes=len(dataset.classes),
        train_images=len(dataset.train),
        val_images=len(dataset.val),
        split=dataset.split,
        digest=dataset.digest,
        rejected=dict(dataset.rejected),
        in_memory=training.in_memory,
        train_by_class=dataset.counts(dataset.train),
        val_by_class=dataset.counts(dataset.val),
        findings=(*dataset.findings, *validated_before(identity)),
        test=unseen_images(dataset, seen_before(identity)),
        decoder=decoder(),
        stored_side=training.side,
    )
    return RunDescription(
        labels=dataset.classes,
        data=data,
        device=device_name(execution.device),
        name=name,
        root=str(dataset.source.root),
        val_split=shares[0],
        test_split=shares[1],
        recipe_name=recipe_name,
    )


def training_record(checkpoint: Checkpoint, tested: FinalTest | None = None) -> Training:
    """Return the part ``training`` of the manifest."""
    description, state, recipe = checkpoint.description, checkpoint.state, checkpoint.identity["recipe"]
    best, start_sha256 = state.best, checkpoint.identity["start"]["weights"]
    if best is None:
        raise ValueError("no epoch of the run is completed")
    start = "the bundle's weights" if start_sha256 else f"random weights of seed {recipe['seed']}"
    return Training(
        recipe=dict(recipe),
        data=description.data.replace(unreadable={**state.unreadable, **(tested.unreadable if tested else {})}),
        seed=recipe["seed"],
        device=description.device,
        execution=checkpoint.autotune,
        history=tuple(state.history),
        # If the user ended the run before its last epoch, the history has fewer epochs than the recipe.
        stopped=not state.is_complete(recipe),
        best=best,
        seconds=sum(epoch.seconds for epoch in state.history)
        + sum(first.seconds for first in (state.probe, state.pixels) if first)
        + state.trial_seconds,
        lineage=Lineage(
            start=start, start_sha256=start_sha256, versions={**library_versions(), "torch": checkpoint.torch}
        ),
        probe=state.probe,
        test=tested.accuracy if tested else None,
        lr_probe=state.lr_probe,
        pixels=state.pixels,
        retries=tuple(state.retries) or None,
        recipe_name=description.recipe_name,
        early=(state.is_complete(recipe) and state.epoch < recipe["epochs"]) or None,
    )


def sample_images(dataset: ImageDataset, preprocessing: Preprocessing, seed: int) -> dict[str, Tensor]:
    """Return the tensors of ``samples.safetensors``: training images as evaluation shows them, spread over the classes.

    ``images`` uint8 ``(n, h, w, channels)`` and ``labels`` int64 ``(n,)``; n is 32, or the number of images if fewer.
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
    stacked = np.stack(pixels) if pixels else np.empty((0, *image_shape(preprocessing, pixels=True)), np.uint8)
    return {"images": torch.from_numpy(stacked), "labels": torch.tensor(labels, dtype=torch.int64)}


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
    if training.data.test:
        data["test"] = {name: value for name, value in part["data"]["test"].items() if name != "by_class"}
    tables = ("train_by_class", "val_by_class")
    return {
        **{name: value for name, value in part.items() if name != "history"},
        "data": {name: value for name, value in data.items() if name not in tables},
    }
