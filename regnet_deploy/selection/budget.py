"""The compute budget of a selection, and its validation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types
from regnet_deploy.space.enumeration import Bounds
from regnet_deploy.space.network import check_input_channels, default_stem_stride

FAMILIES = ("any", "x", "y")
MIN_RESOLUTION, MAX_RESOLUTION = 16, 2048


@dataclass(frozen=True)
class Budget:
    """A compute budget and further requirements.

    Attributes:
        macs: MACs for one image at ``resolution``.
        tolerance: relative deviation from ``macs`` that is accepted.
        family: ``x``, ``y`` (with squeeze-and-excitation) or ``any``: the one with the lower expected error.
        resolution: width and height of the image in pixels.
        classes: number of classes.
        max_parameters: largest number of parameters, or None.
        max_activations: largest number of activations (elements, one image) at ``resolution``, or None.
        stem_stride: 1 or 2; None means 1 below 96 pixels and 2 from 96 pixels.
        bounds: bounds of the design space.
        input_channels: channels of the image: 1 is gray, 3 is RGB.
    """

    macs: float
    tolerance: float = 0.01
    family: str = "any"
    resolution: int = 224
    classes: int = 1000
    max_parameters: float | None = None
    max_activations: float | None = None
    stem_stride: int | None = None
    bounds: Bounds = field(default_factory=Bounds)
    input_channels: int = 3

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value is not valid; the message names the allowed values.
        """
        check_field_types(self)
        if not (math.isfinite(self.macs) and self.macs > 0):
            raise UsageError(f"the budget must be a number of GMACs above 0, got {self.macs / 1e9:g}: try --gflops 4")
        if not 0 < self.tolerance <= 0.5:
            raise UsageError(f"the tolerance must be above 0 and at most 50 %, got {self.tolerance * 100:g} %")
        if self.family not in FAMILIES:
            raise UsageError(f"family must be one of {', '.join(FAMILIES)}, got {self.family}")
        if not MIN_RESOLUTION <= self.resolution <= MAX_RESOLUTION:
            raise UsageError(
                f"the resolution must be {MIN_RESOLUTION} to {MAX_RESOLUTION} pixels, got {self.resolution}"
            )
        check_input_channels(self.input_channels)
        if not 1 <= self.classes <= 1_000_000:
            raise UsageError(f"classes must be 1 to 1,000,000, got {self.classes}")
        for name in ("max_parameters", "max_activations"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise UsageError(
                    f"{name.replace('_', ' ')} must be finite and above 0, got {limit:g}: leave it out for no limit"
                )

    @property
    def stride(self) -> int:
        """Stride of the stem, 1 or 2."""
        return self.stem_stride or default_stem_stride(self.resolution)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {**asdict(self), "stem_stride": self.stride}
