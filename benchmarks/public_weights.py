"""Writes profiles/public_weights.csv: the public weights of RegNets, where they are, and how they are used.

    python benchmarks/public_weights.py

It needs timm and torchvision: of timm it reads the pretrained configurations, of torchvision the metadata and the
transforms of its weights. Files of pycls and the measured accuracies come from profiles/published_networks.csv. Of
timm's test settings (such as 288 pixels) and training settings, the row has the one with the published accuracy.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

PROFILES = Path(__file__).parent.parent / "profiles"
COLUMNS = (
    *("name", "source", "network", "location", "sha256_prefix", "bytes", "license", "classes"),
    *("resolution", "resize", "interpolation", "top1_percent", "top1_setting"),
)


def main() -> None:
    with open(PROFILES / "published_networks.csv", newline="", encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    rows = [*of_pycls(published), *of_torchvision(), *of_timm(published)]
    with open(PROFILES / "public_weights.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def of_pycls(published: list[dict[str, str]]) -> list[dict[str, object]]:
    return [
        {
            "name": f"{row['name']}.pycls",
            "source": "pycls",
            "network": row["name"],
            "location": f"https://dl.fbaipublicfiles.com/pycls/{row['weights']}",
            "license": "MIT",
            "classes": 1000,
            "resolution": 224,
            "resize": 256,
            "interpolation": "bilinear",
            "top1_percent": f"{100 - float(row['top1_error']):.3f}",
            "top1_setting": "pycls MODEL_ZOO, OpenCV's bilinear without antialiasing",
        }
        for row in published
        if row["source"].startswith("pycls MODEL_ZOO")
    ]


def of_torchvision() -> list[dict[str, object]]:
    from torchvision.models import get_model_weights, list_models

    rows = []
    for name in list_models(include="regnet*"):
        for weights in get_model_weights(name):
            transforms = weights.transforms()
            rows.append(
                {
                    "name": f"{name}.{weights.name}",
                    "source": "torchvision",
                    "network": name,
                    "location": weights.url,
                    "sha256_prefix": re.search(r"-([0-9a-f]{8})\.pth", weights.url)[1],
                    "bytes": round(weights.meta["_file_size"] * 2**20),
                    "license": "CC-BY-NC-4.0" if "SWAG" in weights.name else "BSD-3-Clause",
                    "classes": len(weights.meta["categories"]),
                    "resolution": transforms.crop_size[0],
                    "resize": transforms.resize_size[0],
                    "interpolation": transforms.interpolation.value,
                    "top1_percent": weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
                    "top1_setting": "torchvision's metadata",
                }
            )
    return rows


def of_timm(published: list[dict[str, str]]) -> list[dict[str, object]]:
    import timm
    from timm.models import get_pretrained_cfg

    measured = {row["name"]: row for row in published if row["source"].startswith("timm") and row["top1_error"]}
    rows = []
    for name in timm.list_pretrained("regnet[xy]*"):
        config = get_pretrained_cfg(name)
        if not config.num_classes:  # a trunk of self-supervised training
            continue
        found = measured.get(name)
        training = (config.input_size[1], config.crop_pct)
        test = (config.test_input_size[1], config.test_crop_pct) if config.test_input_size else training
        resolution, share = test if found is None or int(found["resolution"]) == test[0] else training
        rows.append(
            {
                "name": name,
                "source": "timm",
                "network": name.partition(".")[0],
                "location": f"hf:{config.hf_hub_id}",
                "license": {"mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "apache-2.0": "Apache-2.0"}.get(
                    config.license, config.license.upper() if config.license.startswith("cc") else config.license
                ),
                "classes": config.num_classes,
                "resolution": resolution,
                "resize": int(resolution / share),
                "interpolation": config.interpolation,
                "top1_percent": f"{100 - float(found['top1_error']):.3f}" if found else "",
                "top1_setting": "timm's results-imagenet.csv" if found else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
