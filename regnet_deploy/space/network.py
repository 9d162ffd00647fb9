"""A network of the family AnyNet, in numbers: what each stage is, nothing about training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError

STEM_WIDTH = 32
SE_RATIO = 0.25

#: Below this resolution (pixels) the stem keeps the resolution: five halvings of a small image leave nothing to pool.
SMALL_RESOLUTION = 96


@dataclass(frozen=True)
class Network:
    """Stages of residual bottleneck blocks behind a 3x3 stem; X without and Y with squeeze-and-excitation.

    Attributes:
        depths: blocks per stage.
        widths: channels that each stage puts out.
        group_widths: channels per group of the 3x3 convolutions of each stage (the paper's g).
        bottlenecks: width divided by bottleneck width, per stage (the paper's b).
        se_ratio: squeezed channels divided by the channels that enter the block; 0 means no SE.
        stem_stride: 2, or 1 for small images.
        stem_width: channels of the stem.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_widths: tuple[int, ...]
    bottlenecks: tuple[float, ...]
    se_ratio: float = 0.0
    stem_stride: int = 2
    stem_width: int = STEM_WIDTH

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UsageError: stages of different number, values below 1, or a width that its groups do not divide.
        """
        lengths = {len(self.depths), len(self.widths), len(self.group_widths), len(self.bottlenecks)}
        if len(lengths) != 1 or not self.depths:
            raise UsageError(f"depths, widths, group widths and bottlenecks must have one value a stage, got {self}")
        if min(*self.depths, *self.widths, *self.group_widths, self.stem_width) < 1:
            raise UsageError(f"depths, widths and group widths must be 1 or more, got {self}")
        if self.stem_stride not in (1, 2):
            raise UsageError(f"stem stride must be 1 or 2, got {self.stem_stride}")
        for inner, group in zip(self.bottleneck_widths, self.group_widths, strict=True):
            if inner % group:
                raise UsageError(f"bottleneck width {inner} is not a multiple of its group width {group}")

    @property
    def bottleneck_widths(self) -> tuple[int, ...]:
        """Channels inside the blocks of each stage."""
        return tuple(round(width / b) for width, b in zip(self.widths, self.bottlenecks, strict=True))

    @property
    def family(self) -> str:
        """``y`` with squeeze-and-excitation, ``x`` without."""
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
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Network:
        """Build a network from what :meth:`to_json` wrote; other keys are left alone."""
        return cls(
            tuple(data["depths"]),
            tuple(data["widths"]),
            tuple(data["group_widths"]),
            tuple(data["bottlenecks"]),
            data["se_ratio"],
            data["stem_stride"],
            data["stem_width"],
        )


def default_stem_stride(resolution: int) -> int:
    """Return the stem's stride for images of ``resolution`` pixels a side."""
    return 1 if resolution < SMALL_RESOLUTION else 2
