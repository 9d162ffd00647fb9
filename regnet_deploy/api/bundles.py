"""Networks: from a budget to a trained bundle, and out of a bundle as a PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet_deploy.api.arguments import PATH, expect, expect_each
from regnet_deploy.bundle import DEFAULT_PATH, Bundle, open_bundle
from regnet_deploy.bundle import create_bundle as _create_bundle
from regnet_deploy.errors import require
from regnet_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from regnet_deploy.models.anynet import AnyNet
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.candidate_table import Candidate
    from regnet_deploy.selection.selection import Selection
    from regnet_deploy.space.published import PublishedNetwork
    from regnet_deploy.training.recipe import Recipe
    from regnet_deploy.training.recipe_file import NamedRecipe
    from regnet_deploy.training.train import TrainOptions


@dataclass(frozen=True)
class PublishedSelection:
    """A published network, taken by its name.

    Attributes:
        published: the network and its source.
        best: the network with its counts at the resolution, the classes and the stem of ``budget``.
        budget: the MACs that the network has, and what it was taken for.
    """

    published: PublishedNetwork
    best: Candidate
    budget: Budget


def select(budget: Budget, *, evidence: Sequence[str | Path] = ()) -> Selection:
    """Return all RegNets that meet a budget, the best first.

    Args:
        budget: MACs of one image, with resolution, classes and bounds.
        evidence: trained populations (stores of sweeps, CSV files). They rank the candidates if they predict errors
            better than the trends of the published networks do.

    Raises:
        UsageError: no network meets the budget; the message names the nearest one.
        DataError: a population cannot be read.
    """
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.selection import select as rank_candidates

    expect("budget", budget, Budget, "a Budget such as rd.Budget(macs=4e9)")
    paths = expect_each("evidence", evidence, PATH, 'a sequence of files such as ["a.sweep"]')
    return rank_candidates(budget, [Path(path) for path in paths])


def select_published(
    name: str,
    *,
    resolution: int = 224,
    classes: int = 1000,
    stem_stride: int | None = None,
    input_channels: int = 3,
) -> PublishedSelection:
    """Return a published network by its name, such as ``RegNetY-4.0GF``; spellings of timm and torchvision are known.

    Args:
        name: of the network.
        resolution: side of the image, pixels.
        classes: outputs of the classifier.
        stem_stride: 1 or 2; None is 1 below 96 pixels and 2 from there.
        input_channels: channels of the image: 1 is gray, 3 is RGB.

    Raises:
        UsageError: no published network has this name.
    """
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.selection.selection import published_candidate
    from regnet_deploy.space.published import find_published

    expect("name", name, str, "a name such as 'RegNetY-4.0GF'")
    published = find_published(name)
    asked = Budget(
        macs=float(published.macs),
        family=published.family,
        resolution=resolution,
        classes=classes,
        stem_stride=stem_stride,
        input_channels=input_channels,
    )
    best = published_candidate(published, asked)
    return PublishedSelection(published, best, replace(asked, macs=float(best.macs)))


def create_bundle(
    path: str | Path, selection: Selection | PublishedSelection, *, replace_existing: bool = False
) -> Bundle:
    """Start a bundle with the best network of a selection and return it.

    Args:
        path: folder of the bundle.
        selection: result of :func:`select` or :func:`select_published`.
        replace_existing: start anew where the folder is a bundle that holds weights.

    Raises:
        BundleError: the folder holds something else, holds weights, or cannot be written.
    """
    from regnet_deploy.selection.bundle_parts import published_parts, selection_parts
    from regnet_deploy.selection.selection import Selection

    expect("path", path, PATH, "the folder of a bundle")
    expect("selection", selection, (Selection, PublishedSelection), "a result of rd.select or rd.select_published")
    if isinstance(selection, PublishedSelection):
        parts = published_parts(selection.published, selection.best, selection.budget)
    else:
        parts = selection_parts(selection)
    return _create_bundle(path, parts, replace=replace_existing)


def load_model(bundle: str | Path | Bundle = DEFAULT_PATH) -> AnyNet:
    """Return the network of a bundle as a ``torch.nn.Module`` in evaluation mode, on the CPU.

    It maps normalized images, ``(n, 3, h, w)`` RGB or ``(n, 1, h, w)`` gray, to logits ``(n, classes)``;
    ``model.stage_features(images)`` returns the output of every stage. Before training, the weights are random.

    Raises:
        BundleError: the bundle is missing or damaged.
        MissingExtra: PyTorch is not installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle_path(bundle))
    for module in ("torch", "safetensors"):
        require(module, "train")
    from regnet_deploy.models import weights

    return weights.load_model(opened)


def train(
    bundle: str | Path | Bundle,
    data: str | Path | None = None,
    recipe: Recipe | Mapping[str, Any] | NamedRecipe | str | None = None,
    options: TrainOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Bundle:
    """Train the network of a bundle on a folder of images and return the bundle with its new weights.

    A run that was interrupted continues from its last checkpoint when the function is called again with the same
    arguments.

    Args:
        bundle: the bundle, or its folder.
        data: folder with ``train/<class>/`` and ``val/<class>/``, or with ``<class>/`` alone; a share of each class is
            then held out for validation. None with ``TrainOptions(finish=True)``, which needs no images.
        recipe: what decides the weights: epochs, learning rate, augmentation, seed. In place of a complete Recipe, a
            dict of some of its values, such as ``{"epochs": 20}``: the others are then the defaults for what the bundle
            has, as on the command line. ``None`` is ``{}``. Or the name of a shipped recipe, a YAML file, or what
            :func:`load_recipe` returns.
        options: how the run is executed: device, precision, loading processes, checkpoints.
        progress: receives the progress.

    Raises:
        BundleError: the bundle is missing, damaged or not writable, or was changed by another program meanwhile.
        DataError: the images cannot be used.
        UsageError: the options do not fit the bundle, the images, the device or the unfinished run; or the loss
            diverged.
    """
    path = bundle_path(bundle)
    if data is not None:
        expect("data", data, PATH, "a folder of images")
    open_bundle(path)  # reports a wrong path before torch takes seconds to import
    for module in ("torch", "safetensors", "PIL", "tensorboard"):
        require(module, "train")
    from regnet_deploy.training import train as training
    from regnet_deploy.training.recipe import Recipe
    from regnet_deploy.training.recipe_file import NamedRecipe

    if isinstance(recipe, PATH):
        recipe = load_recipe(recipe)
    if recipe is not None:
        expect(
            "recipe",
            recipe,
            (Recipe, NamedRecipe, Mapping),
            'a Recipe such as rd.Recipe(epochs=10), a dict of its values, or a name such as "strong"',
        )
    if options is not None:
        expect("options", options, training.TrainOptions, "TrainOptions such as rd.TrainOptions(device='cpu')")
    given = {} if recipe is None else recipe
    return training.train(path, data, given, options or training.TrainOptions(), progress or NoProgress())


def load_recipe(name: str | Path) -> NamedRecipe:
    """Return a shipped training recipe by its name, such as ``strong``, or that of a YAML file.

    Its method ``with_values`` changes values: ``rd.load_recipe("fast").with_values({"epochs": 20})``.

    Raises:
        UsageError: there is none, or the file does not describe one; the message has all that is wrong with it.
        MissingExtra: PyYAML is not installed.
    """
    from regnet_deploy.training import recipe_file

    expect("name", name, PATH, "a name such as 'fast' or a YAML file")
    return recipe_file.load_recipe(name)


def bundle_path(bundle: str | Path | Bundle) -> str | Path:
    """Return the folder of a bundle, which functions that write or may run for long read again.

    Raises:
        UsageError: it is neither a bundle nor a path.
    """
    if isinstance(bundle, Bundle):
        return bundle.path
    expect("bundle", bundle, PATH, "a bundle or its folder")
    return bundle
