"""timm's train.py with its defaults on the network of ours, for `benchmarks/training.py`.

It registers the network by its parameters. A trial says how long an epoch is, and the training has as many epochs as
come nearest to the time; the clock does not have the trial. It begins with the first epoch, when train.py has made
network and loaders, and ends with the last one. There are as many loading processes as threads: the 4 of its default
would share the cores of one. A folder with fewer images than a batch has them in one batch. The best checkpoint is
evaluated on the test images with timm's loader.
"""

import hashlib
import json
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import training_peer_operators  # noqa: F401  (before torchvision is imported)
from training_phases import Phases, epoch_seconds, fitted_epochs, trial_epochs

import timm  # isort: skip
import torch
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import register_model
from timm.models.regnet import RegNet, RegNetCfg

GIVEN = json.loads(sys.argv[1])
OUT = Path(GIVEN["out"])
#: Default of train.py.
BATCH = 128


@register_model
def regnet_of_ours(pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, **_: Any) -> RegNet:
    """Return the network that `benchmarks/training.py` names by its parameters."""
    del pretrained
    shape = GIVEN["network"]
    config = RegNetCfg(
        depth=shape["d"],
        w0=shape["w_0"],
        wa=shape["w_a"],
        wm=shape["w_m"],
        group_size=shape["g"],
        bottle_ratio=shape["b"],
        stem_width=shape["stem_width"],
        se_ratio=shape["se_ratio"],
    )
    network = RegNet(config, in_chans=in_chans, num_classes=num_classes)
    network.stem.conv.stride = (shape["stem_stride"],) * 2
    side = GIVEN["resolution"]
    network.default_cfg = {"input_size": (3, side, side), "crop_pct": 0.875, "num_classes": num_classes}
    return network


class FirstEpoch(logging.Handler):
    """Calls a function when train.py says that its epochs begin."""

    def __init__(self, begin: Callable[[], None]) -> None:
        super().__init__()
        self._begin = begin

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line of the log."""
        if record.getMessage().startswith("Scheduled epochs"):
            self._begin()


def train(epochs: int, out: Path, phases: Phases, *options: str) -> None:
    """Run train.py for so many epochs, with more options."""
    arguments = {
        "--data-dir": GIVEN["data"],
        "--val-split": "val",
        "--model": "regnet_of_ours",
        "--num-classes": GIVEN["classes"],
        "--img-size": GIVEN["resolution"],
        "--device": "cpu",
        "--epochs": epochs,
        "--seed": GIVEN["seed"],
        "--workers": GIVEN["threads"],
        "--output": out.parent,
        "--experiment": out.name,
    }
    if GIVEN["images"] < BATCH:
        arguments["--batch-size"] = GIVEN["images"]  # else an epoch has no step
    sys.argv = ["train.py", *(str(item) for pair in arguments.items() for item in pair), *options]
    summarize, log = utils.update_summary, logging.getLogger("train")

    def epoch(number: int, train_metrics: Any, eval_metrics: Any, *rest: Any, **named: Any) -> None:
        phases.epoch(eval_metrics["top1"] / 100)
        summarize(number, train_metrics, eval_metrics, *rest, **named)

    begin = FirstEpoch(phases.begin)
    utils.update_summary = epoch
    log.addHandler(begin)
    try:
        runpy.run_path(GIVEN["train_py"], run_name="__main__")
    finally:
        log.removeHandler(begin)
        utils.update_summary = summarize


def right_of_test(checkpoint: Path) -> tuple[int, int, int]:
    """Return how many test images the network of a checkpoint recognizes, how many there are, and its parameters."""
    network = timm.create_model("regnet_of_ours", num_classes=GIVEN["classes"])
    network.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    network.eval()
    settings = resolve_data_config({"img_size": GIVEN["resolution"]}, model=network)
    images = create_dataset("", root=GIVEN["test"])
    loader = create_loader(images, batch_size=64, use_prefetcher=False, num_workers=0, **settings)
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in loader)
    return right, len(images), sum(each.numel() for each in network.parameters())


def main() -> None:
    phases = Phases(GIVEN["started"])
    torch.set_num_threads(GIVEN["threads"])
    epoch_s = GIVEN["epoch_s"]
    if epoch_s is None:
        train(trial_epochs(GIVEN["images"]), OUT / "trial", phases)
        epoch_s = epoch_seconds([at for at, _ in phases.curve])
        phases.curve.clear()
        phases.leave_out_until_now()
    train(fitted_epochs(GIVEN["seconds"], epoch_s), OUT / "run", phases)
    phases.returned()
    right, images, parameters = right_of_test(OUT / "run" / "model_best.pth.tar")
    if parameters != GIVEN["parameters"]:
        raise RuntimeError(f"timm's network has {parameters} parameters, ours {GIVEN['parameters']}")
    best = max(top1 for _, top1 in phases.curve)
    print(
        phases.report(
            test_images=images,
            right=right,
            val_top1=best,
            epochs=len(phases.curve),
            parameters=parameters,
            version=timm.__version__,
            train_py_sha256=hashlib.sha256(Path(GIVEN["train_py"]).read_bytes()).hexdigest(),
        )
    )


if __name__ == "__main__":
    main()
