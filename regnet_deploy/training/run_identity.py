"""A run before it starts: all that decides its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.images.dataset import ImageDataset, ImageListing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import weights_from_bytes, weights_to_bytes
from regnet_deploy.space.network import Network
from regnet_deploy.training.checkpoint import Checkpoint
from regnet_deploy.training.execution import Execution, ExecutionRequest
from regnet_deploy.training.recipe import Recipe


@dataclass(frozen=True)
class RunIdentity:
    """What decides the weights of a run.

    Attributes:
        bundle: as it was read.
        architecture: the bundle's, with as many classes as the folder has.
        preprocessing: the bundle's.
        folder: the data.
        recipe: fitted to the data.
    """

    bundle: Bundle
    architecture: Mapping[str, Any]
    preprocessing: Preprocessing
    folder: ImageDataset
    recipe: Recipe

    @property
    def start_sha256(self) -> str | None:
        """Sha256 of the weights that the run starts from; None for random ones."""
        return self.bundle.files[WEIGHTS].sha256 if self.recipe.fine_tune else None

    def identity(self) -> dict[str, Any]:
        """Return JSON data that is the same for the same run only."""
        return {
            "recipe": self.recipe.to_json(),
            "data": {"images": self.folder.digest, "split": self.folder.split},
            "architecture": dict(self.architecture),
            "preprocessing": self.preprocessing.to_json(),
            "start": {"weights": self.start_sha256},
        }

    def model(self) -> nn.Module:
        """Return the network with the weights that the run starts from.

        Raises:
            BundleError: the weights to start from are damaged.
        """
        network = Network.from_json(dict(self.architecture))
        model = AnyNet(network, self.architecture["classes"], seed=self.recipe.seed)
        if self.recipe.fine_tune:
            start, own = weights_from_bytes(self.bundle.read(WEIGHTS)), model.state_dict()
            fitting = {name: value for name, value in start.items() if own[name].shape == value.shape}
            model.load_state_dict({**own, **fitting})  # a head for other classes starts from the seed
        return model


def ensure_fits(bundle: Bundle, listing: ImageListing, recipe: Recipe) -> None:
    """Find out before the images are decoded whether they can be what the bundle's network is trained on.

    Raises:
        MissingPart: the bundle has no architecture or no preprocessing.
        DataError: one class only.
        UsageError: no weights to start from.
    """
    bundle.part("architecture")
    Preprocessing.from_json(bundle.part("preprocessing"))
    if len(listing.train) < 2:
        (only,) = listing.train
        raise DataError(
            f"{listing.root} has one class folder, {only}: a classifier needs two or more{_deeper(listing, only)}"
        )
    if recipe.fine_tune and not bundle.is_trained:
        raise UsageError(f"--fine-tune: {bundle.path} has no weights to start from yet; train without it first")


def _deeper(listing: ImageListing, only: str) -> str:
    """Point to the folder below, where the class folders lie one level deeper than they should."""
    below = {Path(path).parent for path in listing.train[only]} - {Path(only)}
    return f"; did you mean --data {listing.root / only}?" if len(below) > 1 and listing.val is None else ""


def make_run_identity(bundle: Bundle, folder: ImageDataset, recipe: Recipe) -> RunIdentity:
    """Fit bundle, data and recipe, which :func:`ensure_fits` has seen, to each other."""
    architecture = {**bundle.part("architecture"), "classes": len(folder.classes)}
    preprocessing = Preprocessing.from_json(bundle.part("preprocessing"))
    return RunIdentity(bundle, architecture, preprocessing, folder, recipe.fitted(len(folder.train)))


def is_committed(checkpoint: Checkpoint, job: RunIdentity) -> bool:
    """Tell whether this very run had ended and its weights are in the bundle, so that only its checkpoint was left."""
    done = checkpoint.progress.epoch == checkpoint.identity["recipe"]["epochs"]
    stored = job.bundle.files.get(WEIGHTS)
    if not done or stored is None:
        return False
    return hashlib.sha256(weights_to_bytes(dict(checkpoint.best))).hexdigest() == stored.sha256


def identity_differences(
    checkpoint: Checkpoint, job: RunIdentity, wanted: ExecutionRequest, leave_out: tuple[str, ...] = ()
) -> list[str]:
    """Return, in words, what is not as in the run that the checkpoint is of; groups of the identity can be left out."""
    found = []
    for group, values in job.identity().items():
        if group in leave_out:
            continue
        before = checkpoint.identity.get(group, {})
        for name in sorted({*values, *before}):
            was, now = before.get(name), values.get(name)
            if was != now:
                found.append(f"{group} {name}" if group != "recipe" else f"{name} {now} (was {was})")
    return found + wanted.contradictions(checkpoint.choice.execution)


def is_already_trained(job: RunIdentity, wanted: ExecutionRequest) -> bool:
    """Tell whether the bundle's weights are what this very job would make, executed as asked."""
    training = job.bundle.parts.get("training")
    if training is None or not job.bundle.is_trained or job.recipe.fine_tune:
        return False
    data = {"digest": job.folder.digest, "split": job.folder.split}
    same_data = {name: training["data"].get(name) for name in data} == data
    execution = Execution(**training["execution"]["execution"])
    if wanted.contradictions(execution):
        return False
    same_network = job.bundle.part("architecture") == job.architecture
    return same_data and same_network and training["recipe"] == job.recipe.to_json() and not training.get("stopped")


def ensure_same(checkpoint: Checkpoint, job: RunIdentity, wanted: ExecutionRequest, directory: Path) -> None:
    """Refuse to go on with another run.

    Raises:
        UsageError: with what differs.
    """
    found = identity_differences(checkpoint, job, wanted)
    if found:
        stands = f"epoch {checkpoint.progress.epoch + 1} step {checkpoint.progress.step}"
        raise UsageError(
            f"an unfinished run in {directory} stands at {stands} and differs in {', '.join(found)}: "
            "give what it was started with to go on, --restart to drop it, or another --run-dir"
        )
