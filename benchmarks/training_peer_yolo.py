"""`yolo classify train` from random weights, for `benchmarks/training.py`: its defaults, and the time as its limit.

The clock begins where ultralytics begins that of `time`: at the first step, after it has scanned the images. It ends
with the last epoch; the evaluation of the best weights on the validation images follows it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import training_peer_operators  # noqa: F401  (before torchvision is imported)
from training_phases import Phases

GIVEN = json.loads(sys.argv[1])
OUT = Path(GIVEN["out"])
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(OUT), "YOLO_AUTOINSTALL": "false"}

import torch  # noqa: E402
from ultralytics import YOLO, __version__, settings  # noqa: E402


def folder_with_test() -> Path:
    """Return a folder of links to the images of all three parts, as ultralytics looks for them."""
    folder = OUT / "images"
    folder.mkdir()
    for part in ("train", "val"):
        (folder / part).symlink_to(Path(GIVEN["data"]) / part)
    (folder / "test").symlink_to(GIVEN["test"])
    return folder


def main() -> None:
    phases = Phases(GIVEN["started"])
    settings.update({"sync": False, "tensorboard": False})
    torch.set_num_threads(GIVEN["threads"])
    data, side, epochs = folder_with_test(), GIVEN["resolution"], set()

    def epoch(trainer: Any) -> None:
        if trainer.epoch not in epochs:  # it is called once more after the last epoch
            epochs.add(trainer.epoch)
            phases.epoch(trainer.metrics["metrics/accuracy_top1"])

    network = YOLO(GIVEN["model"])
    network.add_callback("on_train_start", lambda _: phases.begin())
    network.add_callback("on_fit_epoch_end", epoch)
    network.train(
        data=str(data),
        imgsz=side,
        time=GIVEN["seconds"] / 3600,
        seed=GIVEN["seed"],
        project=str(OUT),
        name="run",
        exist_ok=True,
        plots=False,
        device="cpu",
        verbose=False,
    )
    phases.returned()
    val_top1 = network.trainer.metrics["metrics/accuracy_top1"]
    tested = YOLO(OUT / "run" / "weights" / "best.pt").val(
        data=str(data),
        split="test",
        imgsz=side,
        device="cpu",
        plots=False,
        verbose=False,
        project=str(OUT),
        name="test",
    )
    images = sum(1 for _ in Path(GIVEN["test"]).rglob("*.png"))
    print(
        phases.report(
            test_images=images,
            right=round(float(tested.top1) * images),
            val_top1=round(float(val_top1), 5),
            epochs=len(epochs),
            version=__version__,
            parameters=sum(each.numel() for each in network.trainer.model.parameters()),
        )
    )


if __name__ == "__main__":
    main()
