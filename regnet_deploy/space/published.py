"""Published RegNets: their parameters, exact counts and errors, from ``profiles/published_networks.csv``."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import regnet_deploy
from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.space.network import SE_RATIO, Network

_SIZE = re.compile(r"(?:reg_?net)?[ _-]*([xyz])[ _-]*(\d+(?:[._]\d+)?)[ _-]*(m|g)(?:f|flops|macs)?\Z")
#: Source of the 24 baselines to which trends and expected errors are fitted: one recipe, exact parameters.
_BASELINES = "pycls MODEL_ZOO"


@dataclass(frozen=True)
class PublishedNetwork:
    """A published network: parameters, counts at ``resolution``, and ImageNet error.

    ``w_0``, ``w_a`` and ``w_m`` are None where only the stages are published; ``top1_error`` is in percent.
    """

    name: str
    family: str
    source: str
    d: int
    w_0: int | None
    w_a: float | None
    w_m: float | None
    g: int
    rounding: str
    network: Network
    resolution: int
    macs: int
    parameters: int
    activations: int
    top1_error: float | None
    recipe: str

    @property
    def architecture_name(self) -> str:
        """Name without the tag of the weights."""
        return self.name.split(".pycls")[0] if ".pycls" in self.name else re.sub(r"\.[A-Za-z_]\w*\Z", "", self.name)


def data_folder() -> Path:
    """Return the folder of data files, inside the installed package or beside it in a source tree."""
    package = Path(regnet_deploy.__file__).parent
    installed = package / "profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


@lru_cache(maxsize=1)
def published_networks() -> tuple[PublishedNetwork, ...]:
    """Return every published X and Y network, with one entry for each name and set of weights."""
    with open(data_folder() / "published_networks.csv", newline="", encoding="utf-8") as file:
        return tuple(_entry(row) for row in csv.DictReader(file))


def baselines(family: str) -> tuple[PublishedNetwork, ...]:
    """Return the 12 networks of a family (``x`` or ``y``) that the authors of the paper trained with its recipe."""
    return tuple(p for p in published_networks() if p.source.startswith(_BASELINES) and p.family == family)


def find_published(name: str) -> PublishedNetwork:
    """Return the published network of a name, regardless of case, separators and the tag of the weights.

    Examples of names are ``RegNetY-4.0GF``, ``regnety_040``, ``regnet_y_8gf`` (of torchvision, with its own widths) and
    ``y-4gf``.

    Raises:
        UsageError: the network does not exist; the message suggests similar names.
    """
    exact: dict[str, PublishedNetwork] = {}
    known: dict[str, PublishedNetwork] = {}
    for entry in published_networks():
        for alias in (entry.name, entry.architecture_name):
            exact.setdefault(alias.lower(), entry)
            known.setdefault(_plain(alias), entry)
    wanted = name.strip().lower().rpartition("/")[2]  # timm/regnety_040, facebook/regnet-y-040
    # The exact spelling first: regnet_x_400mf (torchvision) and RegNetX-400MF (pycls) have different widths.
    for names, key in ((exact, wanted), (known, _plain(wanted))):
        if key in names:
            return names[key]
    size_of = _SIZE.match(wanted)
    if "regnetz" in _plain(wanted) or (size_of and size_of[1] == "z"):
        raise UsageError(f"{name}: RegNetZ has another kind of block and is not supported")
    if size_of:
        family, number, unit = size_of.groups()
        mega = float(number.replace("_", ".")) * (1000 if unit == "g" else 1)
        size = f"{mega:g}MF" if mega < 1000 else f"{mega / 1000:.1f}GF" if mega < 10_000 else f"{mega / 1000:g}GF"
        if (key := _plain(f"RegNet{family}-{size}")) in known:
            return known[key]
    raise UsageError(
        f"no published network {name!r}{_nearest(wanted)}; RegNetX and RegNetY from 200MF to 32GF are available"
    )


def _nearest(wanted: str) -> str:
    """Return a suggestion: the network with the nearest size if a family and size are named, else the nearest name."""
    if match := _SIZE.match(wanted):
        family, number, unit = match.groups()
        macs = float(number.replace("_", ".")) * (1e9 if unit == "g" else 1e6)
        near = min(baselines(family), key=lambda entry: abs(math.log(max(macs, 1.0) / entry.macs)))
        return f" (did you mean {near.name}?)"
    names = {entry.architecture_name.lower(): entry.architecture_name for entry in published_networks()}
    return did_you_mean(wanted, names) if "reg" in wanted else ""


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def _entry(row: dict[str, str]) -> PublishedNetwork:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split())

    depths = numbers(row["depths"])
    return PublishedNetwork(
        name=row["name"],
        family=row["family"],
        source=row["source"],
        d=int(row["d"]),
        w_0=int(row["w_0"]) if row["w_0"] else None,
        w_a=float(row["w_a"]) if row["w_a"] else None,
        w_m=float(row["w_m"]) if row["w_m"] else None,
        g=int(row["g"]),
        rounding=row["rounding"],
        network=Network(
            depths=depths,
            widths=numbers(row["widths"]),
            group_widths=numbers(row["group_widths"]),
            bottlenecks=(1.0,) * len(depths),
            se_ratio=SE_RATIO if row["family"] == "y" else 0.0,
        ),
        resolution=int(row["resolution"]),
        macs=int(row["macs"]),
        parameters=int(row["parameters"]),
        activations=int(row["activations"]),
        top1_error=float(row["top1_error"]) if row["top1_error"] else None,
        recipe=row["recipe"],
    )
