"""An AnyNet described by the parameters of its stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean

STEM_WIDTH = 32
SE_RATIO = 0.25

#: Resolution (pixels) and classes of the published networks and of the bounds on complexity.
REFERENCE_RESOLUTION, REFERENCE_CLASSES = 224, 1000

#: Below this resolution (pixels) the stem has stride 1: halving a small image five times leaves nothing to pool.
SMALL_RESOLUTION = 96

#: Channels of the images that a network takes: gray or RGB.
INPUT_CHANNELS = (1, 3)

#: Kinds of blocks (arXiv 2003.13678, section 3.2 and appendix D). The R block of the paper, a bottleneck without
#: groups, is a bottleneck block whose group width is its bottleneck width, which ``fit_groups`` gives for a large g.
BLOCKS = ("bottleneck", "v", "vr")


@dataclass(frozen=True)
class Network:
    """A network of a 3x3 stem, stages of blocks, and a linear head.

    Blocks are residual bottlenecks (X, or Y with squeeze-and-excitation), or a single 3x3 convolution without (``v``)
    or with (``vr``) a shortcut. The latter have only a width: group widths equal the widths, bottlenecks are 1, and
    there is no squeeze-and-excitation.

    Attributes:
        depths: blocks per stage.
        widths: output channels per stage.
        group_widths: channels per group of the 3x3 convolutions, per stage (g in the paper).
        bottlenecks: width divided by bottleneck width, per stage (b in the paper).
        se_ratio: squeezed channels divided by the input channels of the block; 0 means no SE.
        stem_stride: 2, or 1 for small images.
        stem_width: channels of the stem.
        block: kind of the blocks, one of :data:`BLOCKS`.
        input_channels: channels of the image, one of :data:`INPUT_CHANNELS`: 1 is gray, 3 is RGB.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_widths: tuple[int, ...]
    bottlenecks: tuple[float, ...]
    se_ratio: float = 0.0
    stem_stride: int = 2
    stem_width: int = STEM_WIDTH
    block: str = "bottleneck"
    input_channels: int = 3

    def __post_init__(self) -> None:
        """Check that the network can be built.

        Raises:
            UsageError: the numbers of stages differ, a value is below 1, a width is not a multiple of its group width,
                or the kind of block does not have a parameter.
        """
        stages = {name: getattr(self, name) for name in ("depths", "widths", "group_widths", "bottlenecks")}
        if len(set(map(len, stages.values()))) != 1 or not self.depths:
            listed = "; ".join(f"{name} {_listed(values) or 'none'}" for name, values in stages.items())
            raise UsageError(f"{', '.join(stages)} must have one value for each stage, got {listed}")
        for name, values in {**stages, "stem_width": (self.stem_width,)}.items():
            if name != "bottlenecks" and min(values) < 1:
                raise UsageError(f"{name} must be 1 or more, got {_listed(values)}")
        if not all(0 < b < math.inf for b in self.bottlenecks):
            raise UsageError(f"bottlenecks must be above 0, got {_listed(self.bottlenecks)}")
        if not 0 <= self.se_ratio < math.inf:
            raise UsageError(f"se_ratio must be 0 or more, got {self.se_ratio:g}")
        if self.stem_stride not in (1, 2):
            raise UsageError(f"stem stride must be 1 or 2, got {self.stem_stride}")
        check_input_channels(self.input_channels)
        check_block(self.block)
        if self.block != "bottleneck":
            self._check_single_convolution()
        for inner, group in zip(self.bottleneck_widths, self.group_widths, strict=True):
            if inner < 1:
                wide, narrow = _listed(self.widths), _listed(self.bottlenecks)
                raise UsageError(f"bottlenecks {narrow} leave no channel of widths {wide}")
            if inner % group:
                raise UsageError(f"bottleneck width {inner} is not a multiple of its group width {group}")

    def _check_single_convolution(self) -> None:
        """Raise if parameters of bottleneck blocks are set, which blocks of one convolution would ignore."""
        kind = f"blocks of kind {self.block} are a single 3x3 convolution"
        if any(b != 1 for b in self.bottlenecks):
            raise UsageError(f"{kind}: bottlenecks must be 1, got {_listed(self.bottlenecks)}")
        if self.group_widths != self.widths:
            wanted, got = _listed(self.widths), _listed(self.group_widths)
            raise UsageError(f"{kind}: group widths must equal the widths, {wanted}, got {got}")
        if self.se_ratio:
            raise UsageError(f"{kind}: without squeeze-and-excitation, se_ratio must be 0, got {self.se_ratio:g}")

    @property
    def bottleneck_widths(self) -> tuple[int, ...]:
        """Channels inside the blocks of each stage."""
        return tuple(round(width / b) for width, b in zip(self.widths, self.bottlenecks, strict=True))

    @property
    def family(self) -> str:
        """``v`` or ``vr`` for blocks of that kind; for bottlenecks ``y`` with squeeze-and-excitation, ``x`` without.

        A network without groups counts as ``x``, also in selection.
        """
        if self.block != "bottleneck":
            return self.block
        return "y" if self.se_ratio else "x"

    def block_widths(self) -> tuple[int, ...]:
        """Return the width of every block, in order."""
        return tuple(w for w, d in zip(self.widths, self.depths, strict=True) for _ in range(d))

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        data = {
            "depths": list(self.depths),
            "widths": list(self.widths),
            "group_widths": list(self.group_widths),
            "bottlenecks": list(self.bottlenecks),
            "se_ratio": self.se_ratio,
            "stem_stride": self.stem_stride,
            "stem_width": self.stem_width,
            "block": self.block,
        }
        if self.input_channels != 3:  # data of RGB networks are as those of earlier versions
            data["input_channels"] = self.input_channels
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Network:
        """Return the network of data that :meth:`to_json` wrote; other keys are ignored.

        Data without a kind of block, from earlier versions, is a network of bottlenecks; without input channels, it is
        one of RGB images.
        """
        return cls(
            tuple(data["depths"]),
            tuple(data["widths"]),
            tuple(data["group_widths"]),
            tuple(data["bottlenecks"]),
            data["se_ratio"],
            data["stem_stride"],
            data["stem_width"],
            data.get("block", "bottleneck"),
            data.get("input_channels", 3),
        )


def check_block(block: str) -> None:
    """Check that a kind of block exists.

    Raises:
        UsageError: it does not; the message names the kinds.
    """
    if block not in BLOCKS:
        name = str(block).lower()
        # The most similar name to "r" is "vr", which is something else.
        is_bottleneck = name in ("x", "y", "r")
        hint = " (x, y and r are networks of bottleneck blocks)" if is_bottleneck else did_you_mean(name, BLOCKS)
        raise UsageError(f"block must be one of {', '.join(BLOCKS)}, got {block}{hint}")


def check_input_channels(channels: int) -> None:
    """Check that a network can take images of this number of channels.

    Raises:
        UsageError: it cannot.
    """
    if channels not in INPUT_CHANNELS:
        raise UsageError(f"input channels must be 1 (gray) or 3 (RGB), got {channels}")


def default_stem_stride(resolution: int) -> int:
    """Return the stride of the stem for images of ``resolution`` pixels."""
    return 1 if resolution < SMALL_RESOLUTION else 2


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
