"""What determines the weights of a run, and whether a checkpoint or a bundle is of the same run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.errors import UsageError
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.listing import ImageListing, ensure_several_classes
from regnet_deploy.models.anynet import HEAD, AnyNet, start_as_identity
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import weights_from_bytes
from regnet_deploy.training.checkpoint import Checkpoint
from regnet_deploy.training.execution import ExecutionRequest
from regnet_deploy.training.recipe import OPTIMIZER_CONSTANTS, Recipe


@dataclass(frozen=True)
class RunIdentity:
    """What determines the weights of a run.

    Attributes:
        bundle: as it was opened.
        dataset: the images.
        recipe: fitted to the dataset.
    """

    bundle: Bundle
    dataset: ImageDataset
    recipe: Recipe

    @property
    def architecture(self) -> Architecture:
        """The bundle's architecture with the classes of the dataset."""
        return self.bundle.architecture.replace(classes=len(self.dataset.classes))

    @property
    def preprocessing(self) -> Preprocessing:
        """The bundle's preprocessing."""
        return self.bundle.preprocessing

    @property
    def start_sha256(self) -> str | None:
        """Sha256 of the weights that the run starts from; None for random ones."""
        return self.bundle.files[WEIGHTS].sha256 if self.recipe.fine_tune else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that is equal for the same run only."""
        return {
            "recipe": self.recipe.to_json(),
            "data": {
                "images": self.dataset.digest,
                "split": self.dataset.split,
                "test images": self.dataset.test_digest or None,
            },
            "architecture": architecture_json(self.bundle, len(self.dataset.classes)),
            "preprocessing": self.preprocessing.to_json(),
            "start": {"weights": self.start_sha256},
        }

    @property
    def has_head(self) -> bool:
        """Whether the weights that the run starts from have a head for the classes of the dataset, in their order."""
        manifest = self.bundle.manifest
        same = manifest.labels == self.dataset.classes or not (manifest.labels or manifest.imported)
        return self.recipe.fine_tune and same and self.bundle.architecture.classes == len(self.dataset.classes)

    def model(self) -> nn.Module:
        """Return the network with the weights that the run starts from.

        Raises:
            BundleError: the weights to start from are damaged.
        """
        model = AnyNet(self.architecture.network, self.architecture.classes, seed=self.recipe.seed)
        if self.recipe.fine_tune:
            start, own = weights_from_bytes(self.bundle.read(WEIGHTS)), model.state_dict()
            kept = {name: value for name, value in start.items() if self.has_head or not name.startswith(HEAD)}
            model.load_state_dict({**own, **kept})  # with other classes, the head keeps its random weights
        elif self.recipe.zero_gamma:
            start_as_identity(model)
        return model


def seen_before(identity: RunIdentity) -> tuple[str, ...]:
    """Return why earlier choices may have seen the images to test on, a sentence each.

    Images that have a folder of their own were never read by another command. Those that are held out were among the
    training images of all that did not hold the same ones out.
    """
    dataset, manifest = identity.dataset, identity.bundle.manifest
    if not dataset.holds_test_out:
        return ()
    folder = dataset.source.root.resolve().name
    remarks = []
    before, tried = manifest.training, manifest.selection.tried if manifest.selection else None
    if identity.recipe.fine_tune and before and before.data.folder == folder:
        held_out = before.data.test.digest if before.data.test else None
        remark = (
            f"the weights that this run starts from were trained on images of {folder} when the test images were not "
            "held out, so the accuracy on them is too high: --from-scratch starts from random weights"
        )
        # Those weights may have been fine-tuned from others for which it was so.
        if held_out != dataset.test_digest or (before.data.test and remark in before.data.test.remarks):
            remarks.append(remark)
    if tried and Path(tried["data"]).resolve().name == folder and _test_digest(tried) != dataset.test_digest:
        remarks.append(
            f"the network was selected by training candidates on images of {folder} when the test images were not held "
            "out: `select --try` has --test-split too"
        )
    return tuple(remarks)


def validated_before(identity: RunIdentity) -> tuple[str, ...]:
    """Return why earlier weights may have seen the images to validate with, a sentence or none.

    Those that are held out are others if images were added, or with another seed or share.
    """
    dataset, before = identity.dataset, identity.bundle.manifest.training
    folder = dataset.source.root.resolve().name
    if not (identity.recipe.fine_tune and before and before.data.folder == folder and dataset.holds_val_out):
        return ()
    remark = (
        f"the weights that this run starts from may have been trained on some of the images of {folder} that are held "
        "out for validation now, and then the accuracy on these is too high: images in a folder val/ stay apart"
    )
    return () if before.data.digest == dataset.digest and remark not in before.data.findings else (remark,)


def _test_digest(tried: dict[str, Any]) -> str | None:
    """Return the sha256 of the images to test on of ``select --try``."""
    return (tried.get("test") or {}).get("digest")


def architecture_json(bundle: Bundle, classes: int) -> dict[str, Any]:
    """Return the architecture of a bundle with this number of classes, as the identity of a run has it."""
    # As it is stored: a bundle of an earlier version may lack keys that the record would add.
    return {**bundle.parts["architecture"], "classes": classes}


def ensure_trainable(bundle: Bundle, listing: ImageListing, fine_tune: bool) -> None:
    """Check, before the images are decoded, that the bundle's network can be trained on them.

    Raises:
        MissingPart: the bundle has no architecture or no preprocessing.
        DataError: there is only one class.
        UsageError: there are no weights to start from.
    """
    _ = bundle.architecture, bundle.preprocessing  # raise if they are missing
    ensure_several_classes(listing)
    if fine_tune and not bundle.is_trained:
        raise UsageError(
            f"--fine-tune: {bundle.path} has no weights to start from yet; train without it first, or import weights"
        )


def is_committed(checkpoint: Checkpoint, bundle: Bundle) -> bool:
    """Tell whether the run of a checkpoint has ended and its weights are in the bundle."""
    done = checkpoint.state.is_complete(checkpoint.identity["recipe"])
    stored, training = bundle.files.get(WEIGHTS), bundle.manifest.training
    if not done or stored is None:
        return False
    if training and training.data.test != checkpoint.description.data.test:
        return False  # the same weights, of an earlier run without the images to test on
    weights = weights_from_bytes(bundle.read(WEIGHTS))  # not its bytes, which an earlier version wrote in another way
    best = checkpoint.best
    return weights.keys() == best.keys() and all(torch.equal(weights[name], best[name].cpu()) for name in best)


def identity_differences(
    checkpoint: Checkpoint,
    identity: RunIdentity,
    request: ExecutionRequest,
    leave_out: tuple[str, ...] = (),
    given: Collection[str] | None = None,
) -> list[str]:
    """Return, in words, what differs from the run of the checkpoint.

    Args:
        checkpoint: of the unfinished run.
        identity: of the run that is requested.
        request: how its steps are to be executed.
        leave_out: groups of the identity that are not compared.
        given: names of the values of the recipe that the user gave, None for all: others are not named where they
            follow from something that differs.
    """
    differences, values_now = [], identity.to_json()
    implied = set() if given is None else _implied(values_now, checkpoint.identity) - set(given)
    for group, values in values_now.items():
        if group in leave_out:
            continue
        before = checkpoint.identity.get(group, {})
        for name in sorted({*values, *before}):
            usual = getattr(Recipe, name, None) if group == "recipe" else None  # JSON data leaves some defaults out
            was, now = before.get(name, usual), values.get(name, usual)
            if was != now and not (group == "recipe" and name in {*implied, *OPTIMIZER_CONSTANTS}):
                differences.append(f"{group} {name}" if group != "recipe" else f"{name} {now} (was {was})")
    return differences + request.contradictions(checkpoint.autotune)


#: Values of a recipe whose defaults follow from its number of epochs and its batch size.
_OF_LENGTH = frozenset({"warmup_epochs", "warmup_steps", "ema_decay", "patience"})


def _implied(now: Mapping[str, Any], was: Mapping[str, Any]) -> set[str]:
    """Return the values of the recipe whose defaults follow from what differs."""
    if now["data"] != was.get("data"):
        return {"epochs", "batch_size", "sampling", *_OF_LENGTH}
    before = was.get("recipe", {})
    if now["recipe"]["batch_size"] != before.get("batch_size"):
        return {"epochs", *_OF_LENGTH}
    return set(_OF_LENGTH) if now["recipe"]["epochs"] != before.get("epochs") else set()


def is_already_trained(identity: RunIdentity, request: ExecutionRequest) -> bool:
    """Tell whether the bundle has the weights that this run would produce, executed as requested."""
    training = identity.bundle.manifest.training
    if training is None or not identity.bundle.is_trained or training.stopped:
        return False
    if identity.recipe.fine_tune and not identity.recipe.probe:  # each such run goes on from the last one
        return False
    if request.contradictions(training.execution):
        return False
    same_data = (training.data.digest, training.data.split) == (identity.dataset.digest, identity.dataset.split)
    same_network = identity.bundle.architecture == identity.architecture
    return same_data and same_network and training.recipe == identity.recipe.to_json()


def ensure_same_run(
    checkpoint: Checkpoint,
    identity: RunIdentity,
    request: ExecutionRequest,
    directory: Path,
    given: Collection[str] | None = None,
) -> None:
    """Refuse to continue another run; ``given`` are the values of the recipe that the user gave, None for all.

    Raises:
        UsageError: with what differs.
    """
    differences = identity_differences(checkpoint, identity, request, given=given)
    if differences:
        best = checkpoint.state.best
        end = f"--finish to write its best weights so far ({best.val_top1:.2%}) into the bundle, " if best else ""
        raise UsageError(
            f"an unfinished run in {directory} is at {checkpoint.position} and differs in {', '.join(differences)}: "
            f"repeat its options to continue it, or give {end}--restart to drop it, or another --run-dir"
        )
