"""The networks that are measured on a GPU: the published ones, and selected ones that differ in their group widths."""

from __future__ import annotations

from dataclasses import dataclass

from regnet_deploy.selection.budget import Budget
from regnet_deploy.selection.selection import select
from regnet_deploy.space.complexity import network_complexity
from regnet_deploy.space.enumeration import Bounds
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import baselines

CLASSES = 1000
RESOLUTION = 224
#: Largest number of MACs of a published network.
LARGEST_MACS = 8.5e9

#: Group widths for which networks are selected with the same budget of MACs.
GROUP_WIDTHS = (8, 16, 24, 32, 64)
GROUPED_MACS = 1.6e9


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: as it is shown.
        network: the stages.
        resolution: height and width of the images, pixels.
        classes: outputs.
        kind: ``groups`` (selected for its group width), ``published`` or ``tiny``.
        timm: name of timm's model of the same network, or None.
    """

    name: str
    network: Network
    resolution: int
    classes: int
    kind: str
    timm: str | None = None

    @property
    def macs(self) -> int:
        """MACs for one image."""
        return int(network_complexity(self.network, self.resolution, self.classes).total.macs)

    def to_json(self) -> dict:
        """Return the fields of a row that describe the network."""
        return {
            "network": self.name,
            "kind": self.kind,
            "family": self.network.family,
            "group_widths": list(self.network.group_widths),
            "gmacs": round(self.macs / 1e9, 6),
        }


def grouped_networks() -> list[Subject]:
    """Return the most likely RegNetX with 1.6 GMACs for each group width; all stages have exactly this width."""
    subjects = []
    for width in GROUP_WIDTHS:
        bounds = Bounds(g=(width, width), g_multiple=width)
        pick = select(Budget(macs=GROUPED_MACS, family="x", bounds=bounds)).best
        subjects.append(Subject(f"X-1.6GF-g{width}", pick.network, RESOLUTION, CLASSES, "groups"))
    return subjects


def published() -> list[Subject]:
    """Return the published RegNetX and RegNetY of 0.2 to 8 GMACs, the smallest first."""
    entries = [entry for family in "xy" for entry in baselines(family) if entry.macs <= LARGEST_MACS]
    return [
        Subject(
            entry.architecture_name, entry.network, RESOLUTION, CLASSES, "published", timm_name(entry.architecture_name)
        )
        for entry in sorted(entries, key=lambda entry: (entry.macs, entry.name))
    ]


def timm_name(name: str) -> str:
    """Return timm's name of a published network: ``RegNetX-400MF`` is ``regnetx_004``."""
    family, _, size = name.lower().partition("-")
    mega = float(size[:-2]) * (1000 if size.endswith("gf") else 1)
    return f"{family}_{round(mega / 100):03d}"


def tiny_networks() -> list[Subject]:
    """Return networks that run fast on a CPU, to test the program."""
    return [
        Subject(f"tiny-g{width}", Network((1, 1), (16, 32), (width,) * 2, (1.0, 1.0), 0.0, 1, 8), 32, 10, "tiny")
        for width in (8, 16)
    ]
