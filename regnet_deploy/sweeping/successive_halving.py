"""Successive halving: many candidates get a little training, the better third of them three times as much, and so on.

Every round trains from the seed's weights with a whole schedule of its own length (arXiv 1502.07943 with a factor of
3), so that a round is a sweep like any other: kept at once, and gone on with after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.populations.store import Trial, check_store_path, lock_store, open_store
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network
from regnet_deploy.sweeping.reporter import Reporter
from regnet_deploy.sweeping.sweep import SweepOptions, forget_failures, run_pending_trials, sweep_identity
from regnet_deploy.sweeping.sweep_images import check_folder, list_folder, load_images
from regnet_deploy.training.recipe import Recipe

FACTOR = 3


@dataclass(frozen=True)
class HalvingResult:
    """What the rounds said of a candidate.

    Attributes:
        candidate: its place among the candidates, from 0.
        errors: epochs -> top-1 error, percent, of each round in which it was trained to the end.
    """

    candidate: int
    errors: dict[int, float]


def rounds(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """Return how many candidates each round trains and for how many epochs, the last for all ``epochs``.

    The last round has up to three; a round before it three times as many and a third of the epochs, one at least. Of
    rounds of as many epochs only the first is held: the others would train the same again.
    """
    sizes = [candidates]
    while sizes[-1] > FACTOR:
        sizes.append(math.ceil(sizes[-1] / FACTOR))
    last = len(sizes) - 1
    planned = [(size, max(1, round(epochs / FACTOR ** (last - i)))) for i, size in enumerate(sizes)]
    return [each for i, each in enumerate(planned) if not i or each[1] > planned[i - 1][1]]


def successive_halving(
    networks: Sequence[Network],
    data: Path,
    resolution: int,
    recipe: Recipe,
    options: SweepOptions,
    path: Path,
    reporter: Reporter,
) -> list[HalvingResult]:
    """Train candidates in rounds and return all of them, the best first: by the error of their last round.

    Candidates that got further stand before those that did not; those that diverged or failed are last of their round.

    Args:
        networks: the candidates, the likeliest first; of equal errors the earlier stands first.
        data: folder of images.
        resolution: pixels a side.
        recipe: of the last round; earlier ones have fewer epochs.
        options: ``n`` is not looked at.
        path: the store.
        reporter: is told how it goes.

    Raises:
        UsageError: a store of other candidates or options, or no candidate could be trained.
        DataError: the images cannot be used, or the store cannot be written.
    """
    check_store_path(path)
    torch.set_num_threads(options.threads or available_cores())
    listing = list_folder(data, options.val_split)
    with lock_store(path):
        folder = check_folder(listing, options.val_split, recipe.seed, path, reporter)
        identity = {"tried": len(networks), **sweep_identity(folder, recipe, options.execution, resolution)}
        return _halve(networks, folder, identity, recipe, options, path, reporter)


def _halve(
    networks: Sequence[Network],
    folder: ImageDataset,
    identity: Mapping[str, Any],
    recipe: Recipe,
    options: SweepOptions,
    path: Path,
    reporter: Reporter,
) -> list[HalvingResult]:
    resolution = identity["resolution"]
    with open_store(path, identity) as store:
        if options.retry:
            forget_failures(store, reporter)
        images = load_images(folder, recipe, resolution, reporter)
        tried = {candidate: HalvingResult(candidate, {}) for candidate in range(len(networks))}
        left = list(tried)
        first = 0
        for size, epochs in rounds(len(networks), recipe.epochs):
            left = left[:size]
            reporter.say(f"{len(left)} candidates, {epochs} epoch{'s' if epochs > 1 else ''} each")
            trials = [_trial(first + i, networks[c], folder, resolution, epochs, c) for i, c in enumerate(left)]
            store.plan(trials)
            run_pending_trials(store, trials, images, replace(recipe, warmup_epochs=None), options, reporter)
            outcomes = store.outcomes()
            for i, candidate in enumerate(left):
                error = outcomes[first + i].error
                if error is not None:
                    tried[candidate].errors[epochs] = error
            left = _by_error(left, tried, epochs)
            first += len(left)
    return _ranked(tried)


def _by_error(candidates: list[int], tried: dict[int, HalvingResult], epochs: int) -> list[int]:
    """Return candidates by their error in a round; those without one are last."""
    return sorted(candidates, key=lambda candidate: tried[candidate].errors.get(epochs, math.inf))


def _ranked(tried: dict[int, HalvingResult]) -> list[HalvingResult]:
    """Return the candidates, those of the longest training first, and of them those of the least error.

    Raises:
        UsageError: none was trained to an end.
    """

    def key(each: HalvingResult) -> tuple[int, float]:
        epochs = max(each.errors, default=0)
        return -epochs, each.errors.get(epochs, math.inf)

    ranked = sorted(tried.values(), key=key)
    if not ranked[0].errors:
        raise UsageError(f"none of the {len(ranked)} candidates could be trained: give a lower --lr, and --retry")
    return ranked


def _trial(number: int, network: Network, folder: ImageDataset, resolution: int, epochs: int, candidate: int) -> Trial:
    cost = network_complexity(network, resolution, len(folder.classes)).total
    macs, parameters, activations = (int(value) for value in cost)
    return Trial(number, network, {"candidate": float(candidate)}, macs, parameters, activations, epochs)
