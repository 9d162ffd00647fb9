"""Successive halving: all candidates are trained for a few epochs, the best third three times as long, and so on.

Every round trains from the initial weights of the seed with a complete schedule of its own length (arXiv 1502.07943
with a factor of 3). A round is therefore a sweep like any other: each outcome is stored immediately, and an interrupted
round continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.evaluation.metrics import Share
from regnet_deploy.populations.store import Store, Trial, check_store_path, lock_store, open_store
from regnet_deploy.progress import Progress
from regnet_deploy.selection.selection import Selection, UnseenError, diverse_ranks, ranked_by_measurement
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.network import Network
from regnet_deploy.sweeping.sweep import (
    SweepOptions,
    report_oversized_batch,
    reset_failures,
    run_pending_trials,
    sweep_identity,
)
from regnet_deploy.sweeping.sweep_images import SweepImages, check_folder, list_folder, load_images

FACTOR = 3


@dataclass(frozen=True)
class HalvingResult:
    """The result of successive halving for one candidate.

    Attributes:
        candidate: its index among the candidates.
        errors: epochs -> top-1 error, percent, of each round that it completed.
        test: epochs -> its error on the images to test on, of the last round; by this nothing is chosen.
    """

    candidate: int
    errors: dict[int, float]
    test: dict[int, UnseenError] = field(default_factory=dict)


def select_by_training(selection: Selection, n: int, options: SweepOptions, progress: Progress) -> Selection:
    """Train the first ``n`` candidates that differ in shape, and rank them by their measured errors.

    Args:
        selection: the candidates, ranked without training.
        n: number of candidates to train.
        options: data, recipe of the last round, store and executor.
        progress: receives the progress.

    Raises:
        UsageError: the store belongs to other candidates or options, or no candidate could be trained.
        DataError: the images cannot be used, or the store cannot be written.
    """
    ranks = diverse_ranks(selection, n)
    networks = [selection.candidate(rank).network for rank in ranks]
    results = successive_halving(networks, selection.budget.resolution, options, progress)
    order, errors = [ranks[each.candidate] for each in results], [each.errors for each in results]
    best = results[0]
    return ranked_by_measurement(selection, order, errors, str(options.data), best.test.get(max(best.errors)))


def rounds(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """Return the number of candidates and of epochs of each round; the last one has all ``epochs``.

    The last round has up to three candidates; each round before it three times as many, and a third of the epochs, but
    at least one. Of several rounds with the same number of epochs only the first is run, because the others would
    repeat the same training.
    """
    sizes = [candidates]
    while sizes[-1] > FACTOR:
        sizes.append(math.ceil(sizes[-1] / FACTOR))
    last = len(sizes) - 1
    planned = [(size, max(1, round(epochs / FACTOR ** (last - i)))) for i, size in enumerate(sizes)]
    return [each for i, each in enumerate(planned) if not i or each[1] > planned[i - 1][1]]


def successive_halving(
    networks: Sequence[Network], resolution: int, options: SweepOptions, progress: Progress
) -> list[HalvingResult]:
    """Train candidates in rounds and return all of them, the best first.

    Candidates of a later round precede those that were dropped before it; within a round they are sorted by error, and
    those that diverged or failed are last.

    Args:
        networks: the candidates, the most likely first; of equal errors the earlier one is better. All take images of
            the same channels.
        resolution: width and height of the image in pixels.
        options: data, recipe of the last round, store and executor; earlier rounds have fewer epochs.
        progress: receives the progress.

    Raises:
        UsageError: the store belongs to other candidates or options, or no candidate could be trained.
        DataError: the images cannot be used, or the store cannot be written.
    """
    check_store_path(options.store)
    torch.set_num_threads(options.threads or available_cores())
    listing = list_folder(options.data, options.val_split, options.test_split, test=True, progress=progress)
    with lock_store(options.store):
        folder = check_folder(
            listing, options.val_split, options.recipe.seed, options.store, progress, options.test_split
        )
        report_oversized_batch(options.recipe, folder, progress)
        identity = {"tried": len(networks), **sweep_identity(folder, options, resolution)}
        with open_store(options.store, identity) as store:
            if options.retry:
                reset_failures(store, progress)
            channels = networks[0].input_channels
            images = load_images(folder, options.recipe, resolution, progress, channels=channels, test=True)

            def trial(number: int, candidate: int, epochs: int) -> Trial:
                return _trial(number, networks[candidate], candidate, resolution, len(folder.classes), epochs)

            round_options = replace(options, recipe=replace(options.recipe, warmup_epochs=None))
            return run_rounds(store, trial, len(networks), images, round_options, progress)


def run_rounds(
    store: Store,
    trial_of: Callable[[int, int, int], Trial],
    n: int,
    images: SweepImages,
    options: SweepOptions,
    progress: Progress,
) -> list[HalvingResult]:
    """Train candidates in rounds and return all of them, the best first; see :func:`successive_halving`.

    Args:
        store: open for writing; trials that have an outcome in it are not run again.
        trial_of: returns the trial of this number, of this candidate with so many epochs.
        n: number of candidates; of equal errors the earlier one is better.
        images: to train on; those to test on are for the last round alone.
        options: executor, and the recipe of the last round with its epochs.
        progress: receives the progress.

    Raises:
        UsageError: no candidate could be trained.
        DataError: the images cannot be used, or the store cannot be written.
    """
    results = [HalvingResult(candidate, {}) for candidate in range(n)]
    remaining, first = list(results), 0
    planned = rounds(n, options.recipe.epochs)
    for size, epochs in planned:
        remaining = remaining[:size]
        progress.message(f"{len(remaining)} candidates, {epochs} epoch{'s' if epochs > 1 else ''} each")
        trials = [trial_of(first + i, each.candidate, epochs) for i, each in enumerate(remaining)]
        store.add(trials)
        of_round = images if epochs == planned[-1][1] else replace(images, test=None)
        run_pending_trials(store, trials, of_round, options, progress)
        outcomes = store.outcomes()
        for trial, each in zip(trials, remaining, strict=True):
            error = outcomes[trial.number].error
            if error is not None:
                each.errors[epochs] = error
            test = outcomes[trial.number].test
            if test is not None:
                each.test[epochs] = unseen_error(test)
        remaining.sort(key=lambda each: each.errors.get(epochs, math.inf))
        first += len(trials)
    return ranked(results)


def unseen_error(test: Mapping[str, Any]) -> UnseenError:
    """Return the error on the images to test on, of what an outcome says of them."""
    right = Share.of(round(test["top1"] * test["images"]), test["images"])
    error, low, high = (round(100 * (1 - share), 6) for share in (right.value, right.high, right.low))
    return UnseenError(error, low, high, test["images"], test["digest"])


def ranked(results: list[HalvingResult]) -> list[HalvingResult]:
    """Sort candidates by the epochs of their longest training, then by its error.

    Raises:
        UsageError: no candidate was trained.
    """

    def key(each: HalvingResult) -> tuple[int, float]:
        epochs = max(each.errors, default=0)
        return -epochs, each.errors.get(epochs, math.inf)

    ranked = sorted(results, key=key)
    if not ranked[0].errors:
        raise UsageError(f"none of the {len(ranked)} candidates could be trained: lower --lr and add --retry")
    return ranked


def _trial(number: int, network: Network, candidate: int, resolution: int, classes: int, epochs: int) -> Trial:
    cost = network_complexity(network, resolution, classes).total
    macs, parameters, activations = (int(value) for value in cost)
    return Trial(number, network, {"candidate": float(candidate)}, macs, parameters, activations, epochs)
