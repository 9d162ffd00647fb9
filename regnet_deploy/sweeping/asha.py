"""Asynchronous successive halving (ASHA, arXiv 1810.05934) on Ray Tune: bad recipes end early, while others go on.

Every recipe begins with the schedule of all epochs. After a few epochs, and again after three times as many, one that
is not among the best third of those that came so far is stopped. No machine waits for a round to end.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from regnet_deploy.bundle.training import Epoch, Execution
from regnet_deploy.errors import DataError, UsageError, require
from regnet_deploy.populations.store import DONE, FAILED, STOPPED, Store, Trial, TrialOutcome
from regnet_deploy.progress import Progress
from regnet_deploy.ray_cluster import RETRIES, connected
from regnet_deploy.sweeping.ray_executor import RayExecutor
from regnet_deploy.sweeping.successive_halving import FACTOR
from regnet_deploy.sweeping.sweep import SweepOptions
from regnet_deploy.sweeping.sweep_images import SweepImages
from regnet_deploy.sweeping.trial import run_trial
from regnet_deploy.training.recipe import Recipe

#: Ray Tune's own files, tables and signals are not wanted: the store has the results.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def load_ray_tune() -> Any:
    """Import Ray Tune.

    Raises:
        MissingExtra: it, or a library that it needs, is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for module in ("ray", "pandas", "pyarrow", "tensorboardX"):
        require(module, "tune")
    return require("ray.tune", "tune")


def run_asha(
    store: Store,
    trials: Sequence[Trial],
    images: SweepImages,
    options: SweepOptions,
    ray_options: RayExecutor,
    first_epochs: int,
    progress: Progress,
) -> None:
    """Run the trials that have no outcome in the store, and store each outcome at once.

    After an interruption, the trials that remain are compared with each other, and not with those before.

    Args:
        store: open for writing; it has the trials.
        trials: all with the same number of epochs.
        images: to train on, and to test those that have all epochs.
        options: recipe and execution.
        ray_options: cluster and resources of a trial.
        first_epochs: epochs before a trial may be stopped.
        progress: receives the progress.

    Raises:
        MissingExtra: Ray Tune is not installed.
        UsageError: the cluster cannot be reached, or no machine of it has the resources of a trial.
        DataError: the images can no longer be read, or the store cannot be written.
    """
    tune = load_ray_tune()
    ray = require("ray", "ray")
    stored = store.outcomes()
    pending = [trial for trial in trials if trial.number not in stored]
    progress.step("recipes", len(trials))
    if not pending:
        return
    epochs = pending[0].epochs
    recorder = _recorder(tune, store, trials, progress)
    with connected(ray, ray_options.address), tempfile.TemporaryDirectory(prefix="regnet-deploy-") as folder:
        ray_options.check_resources(ray)
        threads = max(1, int(ray_options.cpus))
        train = tune.with_parameters(
            _train, trials=pending, images=images, recipe=options.recipe, execution=options.execution, threads=threads
        )
        scheduler = None
        if epochs > first_epochs:
            scheduler = require("ray.tune.schedulers", "tune").ASHAScheduler(
                time_attr="epoch",
                max_t=epochs - 1,
                grace_period=first_epochs,
                reduction_factor=FACTOR,
                stop_last_trials=False,
            )
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": ray_options.cpus, "gpu": ray_options.gpus}),
            param_space={"place": tune.grid_search(list(range(len(pending))))},
            tune_config=tune.TuneConfig(metric="error", mode="min", scheduler=scheduler),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            tuner.fit()
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"Ray failed: {reason:.300}; run the same command again to continue") from None
    if recorder.fatal:
        raise DataError(recorder.fatal)


def _train(
    config: Mapping[str, int],
    *,
    trials: Sequence[Trial],
    images: SweepImages,
    recipe: Recipe,
    execution: Execution,
    threads: int,
) -> None:
    """Run a trial in a worker of Ray Tune, and report each epoch and the outcome."""
    import torch

    tune = require("ray.tune", "tune")
    torch.set_num_threads(threads)
    trial, best = trials[config["place"]], 100.0

    def on_epoch(epoch: Epoch) -> None:
        nonlocal best
        best = min(best, round(100 * (1 - epoch.val_top1), 6))
        tune.report({"number": trial.number, "epoch": epoch.epoch, "error": best, "values": epoch.to_json()})

    try:
        outcome = run_trial(trial, images, recipe, execution, on_epoch=on_epoch, max_workers=threads)
    except DataError as error:  # every other trial would have it too
        tune.report({"number": trial.number, "epoch": 0, "error": 100.0, "fatal": str(error)})
        return
    tune.report({"number": trial.number, "epoch": trial.epochs, "error": best, "outcome": outcome.to_json()})


def _recorder(tune: Any, store: Store, trials: Sequence[Trial], progress: Progress) -> Any:
    """Return a callback of Ray Tune that stores the outcomes."""
    pending = [trial.number for trial in trials if trial.number not in store.outcomes()]
    epochs, total = trials[0].epochs, len(trials)

    class Recorder(tune.Callback):  # type: ignore[misc]  # a class of an optional library
        fatal = ""

        def __init__(self) -> None:
            self.done = total - len(pending)
            self.histories: dict[str, list[Mapping[str, Any]]] = {}
            self.numbers: dict[str, int] = {}
            self.errors: dict[str, float] = {}
            self.ended: set[str] = set()

        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Ray Tune writes its state to disk, and a store cannot be written there

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
            name = trial.trial_id
            self.numbers[name], self.errors[name] = result["number"], result["error"]
            if result.get("fatal"):
                self.fatal = result["fatal"]
                self.ended.add(name)
            elif result.get("outcome"):
                self.record(name, TrialOutcome(**result["outcome"]))
            elif result.get("values"):
                history = self.histories.setdefault(name, [])
                if result["values"]["epoch"] == 1:  # again from the start, after its worker died
                    history.clear()
                history.append(result["values"])

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            name = trial.trial_id
            if name in self.numbers and name not in self.ended:
                history = self.histories.get(name, [])
                said = f"stopped after {len(history)} of {epochs} epochs, error {self.errors[name]:.2f} %"
                self.record(name, TrialOutcome(STOPPED, history=history, message=said))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self.numbers[trial.trial_id] = pending[trial.config["place"]]
            message = f"its worker died {RETRIES + 1} times"
            self.record(trial.trial_id, TrialOutcome(FAILED, message=message))

        def record(self, name: str, outcome: TrialOutcome) -> None:
            self.ended.add(name)
            store.record(self.numbers[name], outcome)
            self.done += 1
            said = f"error {outcome.error:.2f} %" if outcome.state == DONE else outcome.message or outcome.state
            progress.message(f"recipe {self.numbers[name]} ({self.done}/{total}): {said}")
            progress.update(self.done)

    return Recorder()
