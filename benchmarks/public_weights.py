"""Writes profiles/public_weights.csv: the public weights of RegNets, where they are, and how they are used.

    python benchmarks/public_weights.py

It needs timm, torchvision and pytorchcv: of timm it reads the pretrained configurations, of torchvision the metadata
and the transforms of its weights, of pytorchcv its table of files. Files of pycls and the measured accuracies come
from profiles/published_networks.csv. Of timm's test settings (such as 288 pixels) and training settings, the row has
the one with the published accuracy. What the other libraries publish in texts alone is written here, with its source;
a field that they do not publish is empty.
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
    rows = [*of_pycls(published), *of_torchvision(), *of_timm(published), *of_transformers(), *of_swag(), *of_vissl()]
    rows += [*of_mmpretrain(), *of_paddleclas(), *of_pytorchcv()]
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


#: The networks of the paper, by the size that transformers and pytorchcv have in their names.
SIZES = {"002": "200MF", "004": "400MF", "006": "600MF", "008": "800MF", "016": "1.6GF", "032": "3.2GF", "040": "4.0GF"}
SIZES |= {"064": "6.4GF", "080": "8.0GF", "120": "12GF", "160": "16GF", "320": "32GF"}


def row(name: str, source: str, network: str, location: str, license: str, **other: object) -> dict[str, object]:
    """Return a row of ImageNet-1k, tested at 256 / 224 with bilinear interpolation where nothing else is given."""
    test = {"classes": 1000, "resolution": 224, "resize": 256, "interpolation": "bilinear"}
    given = {"name": name, "source": source, "network": network, "location": location, "license": license}
    return {**test, **given, **other}


def of_transformers() -> list[dict[str, object]]:
    """Repositories of the hub; the weights are those of pycls and SEER. Their cards publish no accuracy."""
    rows = []
    for family in "xy":
        for size, flops in SIZES.items():
            name = f"facebook/regnet-{family}-{size}"
            network = f"RegNet{family.upper()}-{flops}"
            rows.append(row(name, "transformers", network, f"hf:{name}", "Apache-2.0", interpolation="bicubic"))
    test = {"resolution": 384, "resize": 384, "interpolation": "bicubic"}
    for size in ("320", "640", "1280"):  # 2560 has a group width that does not divide its width
        name = f"facebook/regnet-y-{size}-seer-in1k"
        rows.append(row(name, "transformers", f"regnety_{size}", f"hf:{name}", "seer-license", **test))
    name = "facebook/regnet-y-10b-seer-in1k"
    return [*rows, row(name, "transformers", "RegNetY-10B (SEER)", f"hf:{name}", "seer-license", **test)]


def of_swag() -> list[dict[str, object]]:
    """The table in the README of facebookresearch/SWAG; the test is that of torchvision's files of these weights."""
    test = {"resolution": 384, "resize": 384, "interpolation": "bicubic", "top1_setting": "README of SWAG"}
    base = "https://dl.fbaipublicfiles.com/SWAG/"
    found = (("regnety_16gf_in1k", "regnety_160", 86.0), ("regnety_32gf_in1k", "regnety_320", 86.8))
    return [
        row(f"{name}.swag", "classy", network, f"{base}{name}.torch", "CC-BY-NC-4.0", top1_percent=top1, **test)
        for name, network, top1 in (*found, ("regnety_128gf_in1k", "regnety_1280", 88.2))
    ]


def of_vissl() -> list[dict[str, object]]:
    """The table in projects/SEER/README.md of facebookresearch/vissl, which does not say how images were resized."""
    base = "https://dl.fbaipublicfiles.com/vissl/model_zoo/seer_finetuned/"
    files = {
        "seer_regnet32_in1k": ("regnety_320", "seer_regnet32_finetuned_in1k_model_final_checkpoint_phase78", 83.4),
        "seer_regnet64_in1k": ("regnety_640", "seer_regnet64_finetuned_in1k_model_final_checkpoint_phase78", 84.0),
        "seer_regnet128_in1k": ("regnety_1280", "seer_regnet128_finetuned_in1k_model_final_checkpoint_phase78", 84.5),
        "seer_regnet256_in1k": ("regnety_2560", "seer_regnet256_finetuned_in1k_model_final_checkpoint_phase38", 85.2),
        "seer_regnet10b_in1k": ("RegNetY-10B (SEER)", "seer_10b_finetuned_in1k_model_phase28_conso", 85.8),
    }
    test = {"resolution": 384, "resize": "", "top1_setting": "README of SEER"}
    return [
        row(f"{name}.vissl", "vissl", network, f"{base}{file}.torch", "seer-license", top1_percent=top1, **test)
        for name, (network, file, top1) in files.items()
    ]


def of_mmpretrain() -> list[dict[str, object]]:
    """configs/regnet/metafile.yml of open-mmlab/mmpretrain; names of files end in the SHA-256."""
    base = "https://download.openmmlab.com/mmclassification/v0/regnet/"
    files = (
        ("regnetx-400mf_8xb128_in1k", "400MF", "20211213-89bfc226", 72.56),
        ("regnetx-800mf_8xb128_in1k", "800MF", "20211213-222b0f11", 74.76),
        ("regnetx-1.6gf_8xb128_in1k", "1.6GF", "20211213-d1b89758", 76.84),
        ("regnetx-3.2gf_8xb64_in1k", "3.2GF", "20211213-1fdd82ae", 78.09),
        ("regnetx-4.0gf_8xb64_in1k", "4.0GF", "20211213-efed675c", 78.60),
        ("regnetx-6.4gf_8xb64_in1k", "6.4GF", "20211215-5c6089da", 79.38),
        ("regnetx-8.0gf_8xb64_in1k", "8.0GF", "20211213-9a9fcc76", 79.12),
        ("regnetx-12gf_8xb64_in1k", "12GF", "20211213-5df8c2f8", 79.67),
    )
    return [
        row(
            *(f"{name}.mmpretrain", "mmpretrain", f"RegNetX-{size}", f"{base}{name}_{date}.pth", "Apache-2.0"),
            sha256_prefix=date[-8:],
            top1_percent=top1,
            top1_setting="metafile of mmpretrain, OpenCV's bilinear without antialiasing",
        )
        for name, size, date, top1 in files
    ]


def of_paddleclas() -> list[dict[str, object]]:
    """The list of models in the documentation of PaddlePaddle/PaddleClas."""
    base = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/"
    accuracies = (68.04, 72.25, 73.66, 75.12, 76.73, 78.09, 78.50, 78.97, 79.28, 79.72, 80.13, 80.32)
    rows = []
    for flops, top1 in zip(SIZES.values(), accuracies, strict=True):
        number, unit = float(flops[:-2]), flops[-2:]
        size = f"{number:g}{unit}" if number == int(number) else f"{number * 1000:g}MF"  # 3200MF, and 4GF
        name, setting = f"RegNetX_{size}", "PaddleClas's documentation, OpenCV's bilinear without antialiasing"
        address = f"{base}{name}_pretrained.pdparams"
        of = (f"{name}.paddleclas", "paddleclas", f"RegNetX-{flops}", address, "Apache-2.0")
        rows.append(row(*of, top1_percent=top1, top1_setting=setting))
    return rows


def of_pytorchcv() -> list[dict[str, object]]:
    """The table of files in the package; top-1 errors are in the README of osmr/imgclsmob, for some of the files."""
    from importlib import resources

    errors = {"x002": 30.20, "x004": 26.44, "x006": 24.96, "x008": 24.21, "x016": 22.44, "x032": 21.48, "y002": 28.66}
    errors |= {"y004": 25.02, "y006": 23.79, "y008": 22.67, "y016": 21.41, "y032": 18.04}
    base = "https://github.com/osmr/imgclsmob/releases/download/"
    table = resources.files("pytorchcv") / "models" / "common" / "model_metainfos.csv"
    rows = []
    for each in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        found = re.fullmatch(r"regnet([xy])(\d+)", each["model_name"])
        if found is None:
            continue
        network, error = f"RegNet{found[1].upper()}-{SIZES[found[2]]}", errors.get(found[1] + found[2])
        file = f"{each['model_name']}-{each['error_value']}-{each['checksum'][:8]}.pth.zip"
        of = (
            f"{each['model_name']}.pytorchcv",
            "pytorchcv",
            network,
            f"{base}{each['repo_release_tag']}/{file}",
            "MIT",
        )
        measured = {"top1_percent": f"{100 - error:.2f}", "top1_setting": "README of imgclsmob"} if error else {}
        rows.append(row(*of, **measured))
    return rows


if __name__ == "__main__":
    main()
