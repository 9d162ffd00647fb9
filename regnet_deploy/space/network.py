"""A network of the family AnyNet, in numbers: what each stage is, nothing about training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean

STEM_WIDTH = 32
SE_RATIO = 0.25

#: Resolution (pixels) and classes at which published networks, and bounds on them, are stated.
REFERENCE_RESOLUTION, REFERENCE_CLASSES = 224, 1000

#: Below this resolution (pixels) the stem keeps the resolution: five halvings of a small image leave nothing to pool.
SMALL_RESOLUTION = 96

#: Kinds of blocks (arXiv 2003.13678, section 3.2 and appendix D). A network of the paper's R block, the bottleneck
#: without groups, is one of bottlenecks whose group widths are its bottleneck widths, as ``fit_groups`` makes of any g
#: that is large enough.
BLOCKS = ("bottleneck", "v", "vr")


@dataclass(frozen=True)
class Network:
    """Stages of blocks behind a 3x3 stem.

    Blocks are residual bottlenecks - X without and Y with squeeze-and-excitation - or, of kind ``v`` (without) and
    ``vr`` (with a shortcut), one 3x3 convolution of the whole width, which leaves nothing to choose but the width:
    group widths are the widths, bottlenecks 1, and there is no squeeze-and-excitation.

    Attributes:
        depths: blocks per stage.
        widths: channels that each stage puts out.
        group_widths: channels per group of the 3x3 convolutions of each stage (the paper's g).
        bottlenecks: width divided by bottleneck width, per stage (the paper's b).
        se_ratio: squeezed channels divided by the channels that enter the block; 0 means no SE.
        stem_stride: 2, or 1 for small images.
        stem_width: channels of the stem.
        block: kind of the blocks, one of :data:`BLOCKS`.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_widths: tuple[int, ...]
    bottlenecks: tuple[float, ...]
    se_ratio: float = 0.0
    stem_stride: int = 2
    stem_width: int = STEM_WIDTH
    block: str = "bottleneck"

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UsageError: stages of different number, values below 1, a width that its groups do not divide, or a choice
                that this kind of block does not have.
        """
        lengths = {len(self.depths), len(self.widths), len(self.group_widths), len(self.bottlenecks)}
        if len(lengths) != 1 or not self.depths:
            raise UsageError(f"depths, widths, group widths and bottlenecks must have one value a stage, got {self}")
        if min(*self.depths, *self.widths, *self.group_widths, self.stem_width) < 1:
            raise UsageError(f"depths, widths and group widths must be 1 or more, got {self}")
        if self.stem_stride not in (1, 2):
            raise UsageError(f"stem stride must be 1 or 2, got {self.stem_stride}")
        check_block(self.block)
        if self.block != "bottleneck":
            self._refuse_choices()
        for inner, group in zip(self.bottleneck_widths, self.group_widths, strict=True):
            if inner % group:
                raise UsageError(f"bottleneck width {inner} is not a multiple of its group width {group}")

    def _refuse_choices(self) -> None:
        """Refuse values of bottleneck blocks that blocks of one convolution would pass over in silence."""
        kind = f"blocks of kind {self.block} are one 3x3 convolution of the whole width"
        if any(b != 1 for b in self.bottlenecks):
            raise UsageError(f"{kind}: bottlenecks must be 1, got {_listed(self.bottlenecks)}")
        if self.group_widths != self.widths:
            wanted, got = _listed(self.widths), _listed(self.group_widths)
            raise UsageError(f"{kind}: group widths must be the widths, {wanted}, got {got}")
        if self.se_ratio:
            raise UsageError(f"{kind}: they take no squeeze-and-excitation, se_ratio must be 0, got {self.se_ratio:g}")

    @property
    def bottleneck_widths(self) -> tuple[int, ...]:
        """Channels inside the blocks of each stage."""
        return tuple(round(width / b) for width, b in zip(self.widths, self.bottlenecks, strict=True))

    @property
    def family(self) -> str:
        """``v`` or ``vr`` for blocks of that kind; of bottlenecks ``y`` with squeeze-and-excitation, ``x`` without.

        A network without groups is an ``x`` too: selection and its trends treat it as one.
        """
        if self.block != "bottleneck":
            return self.block
        return "y" if self.se_ratio else "x"

    def block_widths(self) -> tuple[int, ...]:
        """Width of every block in order, as the paper's figures draw it."""
        return tuple(w for w, d in zip(self.widths, self.depths, strict=True) for _ in range(d))

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        return {
            "depths": list(self.depths),
            "widths": list(self.widths),
            "group_widths": list(self.group_widths),
            "bottlenecks": list(self.bottlenecks),
            "se_ratio": self.se_ratio,
            "stem_stride": self.stem_stride,
            "stem_width": self.stem_width,
            "block": self.block,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Network:
        """Build a network from what :meth:`to_json` wrote; other keys are left alone.

        Data without a kind of block, from before there was more than one, is a network of bottlenecks.
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
        )


def check_block(block: str) -> None:
    """Refuse what is no kind of block.

    Raises:
        UsageError: with the kinds that there are.
    """
    if block not in BLOCKS:
        word = str(block).lower()
        # The nearest name to "r" would be "vr", which is something else.
        of_bottlenecks = word in ("x", "y", "r")
        hint = " (x, y and r are networks of bottleneck blocks)" if of_bottlenecks else did_you_mean(word, BLOCKS)
        raise UsageError(f"block must be one of {', '.join(BLOCKS)}, got {block}{hint}")


def default_stem_stride(resolution: int) -> int:
    """Return the stem's stride for images of ``resolution`` pixels a side."""
    return 1 if resolution < SMALL_RESOLUTION else 2


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
