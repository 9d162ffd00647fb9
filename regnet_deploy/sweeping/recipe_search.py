"""The search of a recipe for one network and one folder: recipes are drawn, trained in rounds, and the best is kept.

The rounds are those of successive halving: all recipes have a few epochs, the best third three times as many, and so
on. The results are a store like that of a sweep, in which each trial has the values that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.cpu import available_cores
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.models.anynet import HEAD
from regnet_deploy.models.weights import FILE as WEIGHTS
from regnet_deploy.models.weights import weights_from_bytes
from regnet_deploy.populations.store import STOPPED, Store, Trial, check_store_path, lock_store, open_store
from regnet_deploy.progress import Progress
from regnet_deploy.selection.selection import UnseenError
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.sweeping.asha import run_asha
from regnet_deploy.sweeping.ray_executor import RayExecutor
from regnet_deploy.sweeping.recipe_space import RecipeSpace, Value, check_space, default_space, draw_recipes
from regnet_deploy.sweeping.successive_halving import HalvingResult, ranked, rounds, run_rounds, unseen_error
from regnet_deploy.sweeping.sweep import SweepOptions, reset_failures, sweep_identity
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset
from regnet_deploy.training.fine_tuning import starting_recipe
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_identity import RunIdentity, ensure_trainable


@dataclass(frozen=True)
class TriedRecipe:
    """A recipe of a search, and what it reached.

    Attributes:
        values: what was drawn for it; empty for the recipe that `train` would use.
        errors: epochs -> top-1 error on the validation images, percent, of each round that it completed.
        test: its error on the images to test on, in the last round; by this nothing is chosen. None: not measured.
    """

    values: Mapping[str, Value]
    errors: Mapping[int, float]
    test: UnseenError | None = None

    @property
    def error(self) -> float:
        """Top-1 error of the longest training, percent; infinite if none was completed."""
        return self.errors[max(self.errors)] if self.errors else math.inf


@dataclass(frozen=True)
class RecipeSearch:
    """The result of a search.

    Attributes:
        base: the recipe that `train` would use.
        space: what was varied.
        tried: all recipes, the best first.
        unseen: whether there are images to test on, which no choice saw.
    """

    base: Recipe
    space: RecipeSpace
    tried: tuple[TriedRecipe, ...]
    unseen: bool

    @property
    def best_values(self) -> dict[str, Any]:
        """All values that were searched, as the best recipe has them, for ``train --recipe``."""
        best = {name: self.tried[0].values.get(name, getattr(self.base, name)) for name in self.space}
        return {**best, "lr_probe": False} if "lr" in best and self.base.lr_probe else best


def search_recipe(
    bundle: Bundle,
    given: Mapping[str, Any],
    space: RecipeSpace | None,
    n: int,
    options: SweepOptions,
    progress: Progress,
    *,
    seed: int = 0,
) -> RecipeSearch:
    """Search a recipe for the network of a bundle; after an interruption, the same call continues.

    Args:
        bundle: whose network is trained; it is not changed.
        given: values of the recipe that are the same for all; the others are those that `train` would use.
        space: what is varied; None is learning rate, weight decay, crop area and label smoothing.
        n: number of recipes; the first one is that of `train`.
        options: data, store and executor; its recipe is not looked at.
        progress: receives the progress.
        seed: seed of the draws.

    Raises:
        UsageError: the space is not possible, the store belongs to another search, or no recipe could be trained.
        DataError: the images cannot be used, or the store cannot be written.
        BundleError: the bundle has no network, or its weights are damaged.
    """
    check_store_path(options.store)
    torch.set_num_threads(options.threads or available_cores())
    listing = list_folder(options.data, options.val_split, options.test_split, test=True, progress=progress)
    ensure_trainable(bundle, listing, bool(given.get("fine_tune")))
    with lock_store(options.store):
        folder = check_folder(
            listing, options.val_split, int(given.get("seed") or 0), options.store, progress, options.test_split
        )
        counts, channels = folder.counts(folder.train), bundle.preprocessing.channels
        base = starting_recipe(given, bundle, folder.classes, counts).for_channels(channels).fitted(sum(counts))
        base = replace(base, retries=0)  # one that diverges is no good recipe
        space = default_space(base) if space is None else space
        check_space(space, base)
        run = RunIdentity(bundle, folder, base)
        options = replace(options, recipe=base)
        identity = {
            "recipes": n,
            "halving": "asynchronous" if isinstance(options.executor, RayExecutor) else "in rounds",
            "varied": {name: str(values) for name, values in space.items()},
            "seed": seed,
            "network": run.architecture.network.to_json(),
            "start": run.start_sha256,
            **sweep_identity(folder, options, run.architecture.resolution),
        }
        with open_store(options.store, identity) as store:
            if options.retry:
                reset_failures(store, progress)
            drawn = draw_recipes(space, n, seed)
            asynchronous = isinstance(options.executor, RayExecutor)
            for line in _lines(space, n, base.epochs, asynchronous):
                progress.message(line)

            def trial(number: int, candidate: int, epochs: int) -> Trial:
                return _trial(number, run.architecture, {"candidate": candidate, **drawn[candidate]}, epochs)

            loaded = load_images(
                folder, base, run.architecture.resolution, progress, preprocessing=run.preprocessing, test=True
            )
            loaded = _with_start(loaded, run, folder)
            if asynchronous:
                results = _asha(store, [trial(i, i, base.epochs) for i in range(n)], loaded, options, progress)
            else:
                results = run_rounds(store, trial, n, loaded, options, progress)
    tried = tuple(
        TriedRecipe(drawn[each.candidate], each.errors, each.test.get(max(each.errors, default=0))) for each in results
    )
    return RecipeSearch(base, space, tried, bool(folder.test))


def _asha(
    store: Store, trials: list[Trial], images: SweepImages, options: SweepOptions, progress: Progress
) -> list[HalvingResult]:
    """Run trials on Ray Tune, and return them, the best first; those that were stopped early are behind."""
    assert isinstance(options.executor, RayExecutor)
    store.add(trials)
    first = rounds(len(trials), options.recipe.epochs)[0][1]
    run_asha(store, trials, images, options, options.executor, first, progress)
    outcomes, results = store.outcomes(), []
    for trial in trials:
        outcome = outcomes[trial.number]
        result = HalvingResult(trial.number, {})
        if outcome.error is not None:
            result.errors[trial.epochs] = outcome.error
        elif outcome.state == STOPPED and outcome.history:
            top1 = max(epoch["val_top1"] for epoch in outcome.history)
            result.errors[len(outcome.history)] = round(100 * (1 - top1), 6)
        if outcome.test is not None:
            result.test[trial.epochs] = unseen_error(outcome.test)
        results.append(result)
    return ranked(results)


def _lines(space: RecipeSpace, n: int, epochs: int, asynchronous: bool) -> list[str]:
    if asynchronous:
        first = rounds(n, epochs)[0][1]
        how = f"up to {epochs} epochs; after {first}, and three times as many, the best third goes on"
        return [_searched(space), f"{n} recipes, the first of them that of `train`: {how}"]
    planned = ", ".join(f"{size} for {length} epoch{'s' * (length > 1)}" for size, length in rounds(n, epochs))
    return [
        _searched(space),
        f"{n} recipes, the first of them that of `train`: {planned}",
    ]


def _searched(space: RecipeSpace) -> str:
    return f"searching {', '.join(f'{name} {values}' for name, values in space.items())}"


def _with_start(images: SweepImages, run: RunIdentity, folder: ImageDataset) -> SweepImages:
    """Return the images with what is measured on them before the first epoch, and weights that trainings start from."""
    kept: dict[str, Tensor] = {}
    if run.recipe.fine_tune:
        start = weights_from_bytes(run.bundle.read(WEIGHTS))
        kept = {name: value for name, value in start.items() if run.has_head or not name.startswith(HEAD)}
    unaugmented = None
    if run.recipe.pixel_probe or (run.recipe.probe and not run.has_head):
        unaugmented = EvaluationDataset(ImageSubset(folder.source, folder.train), run.preprocessing)
    return replace(images, start=kept, unaugmented=unaugmented)


def _trial(number: int, architecture: Architecture, drawn: Mapping[str, Value], epochs: int) -> Trial:
    cost = network_complexity(architecture.network, architecture.resolution, architecture.classes).total
    macs, parameters, activations = (int(value) for value in cost)
    return Trial(number, architecture.network, drawn, macs, parameters, activations, epochs)
