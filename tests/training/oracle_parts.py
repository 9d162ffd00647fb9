"""Run by test_recipe_oracles in the environment of `make oracles`: parts of recipes by torchvision and timm."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# torchvision registers its operators in a library that is built for one build of torch; no transform here uses them.
for _operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.loss import BinaryCrossEntropy  # noqa: E402
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide  # noqa: E402
from torchvision.transforms.autoaugment import _apply_op  # noqa: E402
from torchvision.transforms.v2 import CutMix, MixUp  # noqa: E402


def main(given: Path, result: Path) -> None:
    data, out = np.load(given), {}
    image = Image.fromarray(data["image"])
    tables = {
        "trivialaugment": TrivialAugmentWide()._augmentation_space(31),
        "randaugment": RandAugment()._augmentation_space(31, (image.height, image.width)),
    }
    for policy, table in tables.items():
        for name, (magnitudes, signed) in table.items():
            for level in data["levels"]:
                for sign in (1, -1) if signed else (1,):
                    magnitude = sign * (float(magnitudes[level]) if magnitudes.ndim else 0.0)
                    for mode in ("RGB", "L"):
                        changed = _apply_op(image.convert(mode), name, magnitude, InterpolationMode.BILINEAR, None)
                        out[f"{policy} {name} {level} {sign} {mode}"] = np.asarray(changed)
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    box = tuple(int(side) for side in data["box"])
    parts = {"mixup": (MixUp, {"lam": 0.7}), "cutmix": (CutMix, {"box": box, "lam_adjusted": 0.7})}
    for name, (kind, values) in parts.items():
        transform = kind(num_classes=3)
        for key, value in (("images", images), ("labels", labels)):
            out[f"{name} {key}"] = transform.transform(value, {**values, "labels": labels, "batch_size": 4}).numpy()
    loss = BinaryCrossEntropy(smoothing=0.1, sum_classes=True)
    out["bce"] = loss(torch.from_numpy(data["logits"]), labels).numpy()
    np.savez(result, **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
