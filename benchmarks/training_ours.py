"""`regnet-deploy train` from random weights, for `benchmarks/training.py`: one of the ways in WAYS.

The clock begins with the call of train and ends when it returns: it has the check of the images and what is written.
The number of epochs of the ways that have no `--minutes` comes from a trial, which is not on the clock.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from training_phases import Phases, epoch_seconds, fitted_epochs, trial_epochs

import regnet_deploy as rd
from regnet_deploy.progress import NoProgress

DEFAULT = "default"
#: The recipe of the paper, which was that of `train` without an option before it had rules. Batches have 128 images,
#: and at most a quarter of the images; the rate rises in the first 5 epochs, and at most in a quarter of them.
PAPER: Mapping[str, Any] = {
    "lr": 0.1,
    "weight_decay": 5e-5,
    "crop_area": 0.08,
    "flip": True,
    "lighting": 0.1,
    "label_smoothing": 0.0,
    "precise_bn_images": 8192,
    "fine_tune": False,
}
PAPER_BATCH, PAPER_WARMUP = 128, 5
#: Settings of a person who has trained such networks on small folders: what they change of PAPER. ``warmup`` is a share
#: of the steps; with it the rate changes at every step. Characters are not mirrored.
TUNED: Mapping[str, Mapping[str, Any]] = {
    "tuned A": {"batch_size": 32, "lr": 0.05, "crop_area": 0.5},
    "tuned B": {"batch_size": 32, "lr": 0.2, "crop_area": 0.5, "weight_decay": 5e-4, "warmup": 0.1},
    "tuned C": {"batch_size": 64, "lr": 0.4, "crop_area": 0.7, "weight_decay": 5e-4, "warmup": 0.1, "lighting": 0.0},
}
OLD = "old default"
WAYS = (DEFAULT, OLD, *TUNED)


class Epochs(NoProgress):
    """Takes the time of the lines of a training that say that an epoch has ended."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def message(self, line: str) -> None:
        """Take the time of a line."""
        if found := re.match(r"epoch (\d+)[/:]", line):
            self.at[int(found[1])] = time.time()


class Messages(io.StringIO):
    """A stderr that takes the time of its lines and passes them on."""

    def __init__(self, epochs: Epochs) -> None:
        super().__init__()
        self._epochs, self._stderr = epochs, sys.stderr

    def write(self, text: str) -> int:
        """Write text; the command line writes whole lines."""
        for line in text.splitlines():
            self._epochs.message(line)
        return self._stderr.write(text)


def recipe_of(way: str, epochs: int, images: int, seed: int, mirrored: bool) -> rd.Recipe:
    """Return the complete recipe of a way that has one, so that no default of a later version is in it."""
    changed = dict(TUNED.get(way, {}))
    if way in TUNED:
        changed["flip"] = mirrored
    batch = min(changed.pop("batch_size", max(2, min(PAPER_BATCH, images // 4))), images)
    steps = epochs * max(1, images // batch)
    share = changed.pop("warmup", None)
    warmup = (
        {"warmup_epochs": min(PAPER_WARMUP, epochs // 4)} if share is None else {"warmup_steps": round(share * steps)}
    )
    return rd.Recipe(epochs=epochs, batch_size=batch, seed=seed, **{**PAPER, **changed, **warmup})


def training_of(way: str, given: Mapping[str, Any]) -> Callable[[Path, int | None, Epochs], rd.Bundle]:
    """Return the training of a way: of a bundle, for so many epochs, or for the time that is given."""
    data, seed, threads = given["data"], given["seed"], given["threads"]

    def by_command(bundle: Path, epochs: int | None, seen: Epochs) -> rd.Bundle:
        from regnet_deploy.cli.main import main as command_line

        limit = ("--minutes", f"{given['seconds'] / 60:.6g}") if epochs is None else ("--epochs", str(epochs))
        arguments = ["train", str(bundle), "--data", data, *limit, "--seed", str(seed), "--threads", str(threads)]
        stderr, sys.stderr = sys.stderr, Messages(seen)
        try:
            command_line.main(arguments, standalone_mode=False)
        finally:
            sys.stderr = stderr
        return rd.open_bundle(bundle)

    def by_function(bundle: Path, epochs: int | None, seen: Epochs) -> rd.Bundle:
        recipe = recipe_of(way, epochs or 1, given["images"], seed, given["mirrored"])
        options = rd.TrainOptions(execution=rd.ExecutionRequest(threads=threads))
        try:
            return rd.train(bundle, data, recipe, options, progress=seen)
        except rd.UsageError as error:
            if "--finish" not in str(error):
                raise
            return rd.train(bundle, options=rd.TrainOptions(finish=True))  # the loss diverged: its best epoch so far

    return by_command if way == DEFAULT else by_function


def has_minutes() -> bool:
    """Return whether train takes its time as an option."""
    from regnet_deploy.cli.train import command

    return any(option.name == "minutes" for option in command.params)


def main() -> None:
    given = json.loads(sys.argv[1])
    for module in ("torch.utils.tensorboard", "regnet_deploy.training.train", "regnet_deploy.cli.train"):
        importlib.import_module(module)
    phases = Phases(given["started"])
    torch.set_num_threads(given["threads"])
    way, out, epochs = given["side"], Path(given["out"]), None
    train = training_of(way, given)
    if way != DEFAULT or not has_minutes():
        epoch_s = given["epoch_s"]
        if epoch_s is None:
            trial, begin = Epochs(), time.time()
            train(Path(shutil.copytree(given["bundle"], out / "trial")), trial_epochs(given["images"]), trial)
            epoch_s = epoch_seconds([at - begin for at in trial.at.values()])
        epochs = fitted_epochs(given["seconds"], epoch_s)
    bundle, seen = Path(shutil.copytree(given["bundle"], out / "bundle")), Epochs()
    phases.leave_out_until_now()
    phases.begin()
    trained = train(bundle, epochs, seen)
    phases.end()
    phases.returned()
    training = trained.training
    for each in training.history:
        phases.epoch(each.val_top1, seen.at[each.epoch])
    tested = rd.evaluate(trained, given["test"], variants=()).to_json()["variants"]["model"]
    print(
        phases.report(
            test_images=tested["images"],
            right=round(tested["top1"]["value"] * tested["images"]),
            val_top1=round(training.best.val_top1, 5),
            epochs=len(training.history),
            parameters=given["parameters"],
            limit="minutes" if epochs is None else "epochs",
            version=rd.__version__,
            recipe=training.recipe,
        )
    )


if __name__ == "__main__":
    main()
