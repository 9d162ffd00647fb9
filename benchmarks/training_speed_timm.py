"""Images a second of timm's train.py, for `benchmarks/training_speed.py`.

Only the epochs are timed, from one to the next: train.py evaluates after the last one alone. The first one is left out,
and so is the last.
"""

import itertools
import json
import logging
import time
from pathlib import Path

import torch
from training_peer_timm import GIVEN, train
from training_phases import Phases


class Epochs(logging.Handler):
    """Takes the time of the lines of train.py that say that an epoch has ended without an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line of the log."""
        if record.getMessage().startswith("Skipping eval"):
            self.at.append(time.perf_counter())


def main() -> None:
    torch.set_num_threads(GIVEN["threads"])
    epochs, seen = GIVEN["epochs"] + 2, Epochs()
    logging.getLogger("train").addHandler(seen)
    options = ["--batch-size", str(GIVEN["batch"]), "--val-interval", "1000", "--color-jitter", "0"]
    options += ["--channels-last"] if GIVEN["side"].endswith("channels last") else []
    train(epochs, Path(GIVEN["out"]) / "run", Phases(GIVEN["started"]), *options)
    used = GIVEN["images"] // GIVEN["batch"] * GIVEN["batch"]
    print(json.dumps({"rates": [round(used / (b - a), 1) for a, b in itertools.pairwise(seen.at)]}))


if __name__ == "__main__":
    main()
