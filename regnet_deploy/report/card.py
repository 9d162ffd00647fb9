"""The model card as data: what a bundle knows, with the figures that a reader would otherwise work out by hand."""

from __future__ import annotations

import math
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.space.complexity import Cost, network_complexity
from regnet_deploy.space.network import Network


def model_card(bundle: Bundle) -> dict[str, Any]:
    """Return the model card of a bundle; parts that are not there yet are None.

    Raises:
        MissingPart: not even an architecture is there.
    """
    architecture = bundle.part("architecture")
    parts = {name: bundle.parts.get(name) for name in ("selection", "preprocessing", "labels", "training", "profile")}
    training = parts["training"]
    return {
        "bundle": bundle.path.resolve().name,
        "manifest_sha256": bundle.digest,
        "architecture": architecture,
        "stages": _stages(architecture),
        "accuracy": None if training is None else accuracy(training["best"]),
        **parts,
        "golden": bundle.parts.get("golden"),
        "variants": bundle.parts.get("variants", {}),
        "choice": bundle.parts.get("choice"),
        "files": {logical: vars(stored) for logical, stored in sorted(bundle.files.items())},
        "environment": bundle.parts.get("environment", {}),
    }


def accuracy(best: dict[str, Any]) -> dict[str, Any]:
    """Return validation top-1 with its 95 % interval (Wilson's score interval), as shares."""
    share, n = float(best["val_top1"]), int(best["val_images"])
    low, high = wilson_interval(share, n)
    return {"val_top1": share, "val_images": n, "low": low, "high": high, "epoch": best["epoch"]}


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the score interval of a share observed in ``n`` trials (E. B. Wilson, JASA 22, 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _stages(architecture: dict[str, Any]) -> list[dict[str, Any]]:
    network = Network.from_json(architecture)
    counted = network_complexity(network, architecture["resolution"], architecture["classes"])
    rows: list[tuple[str, int, int, int | None, Cost]] = []
    rows.append(("stem", 1, network.stem_width, None, counted.stem))
    for i, cost in enumerate(counted.stages):
        rows.append((f"s{i + 1}", network.depths[i], network.widths[i], network.group_widths[i], cost))
    rows.append(("head", 1, architecture["classes"], None, counted.head))
    return [
        {
            "stage": name,
            "blocks": blocks,
            "width": width,
            "group_width": group,
            "macs": int(cost.macs),
            "parameters": int(cost.parameters),
            "activations": int(cost.activations),
        }
        for name, blocks, width, group, cost in rows
    ]
