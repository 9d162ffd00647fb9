"""What the user wants exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regnet_deploy.engines.options import EngineOptions
from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.calibration_images import MOST
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.runtimes.gates import GATES, Gate
from regnet_deploy.runtimes.runtime import Device


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        precisions: beside fp32, which is always made: everything else is held against it and can fall back to it.
        auto: try what this machine runs, measure it, and keep the fastest that is accurate enough.
        uint8: also variants that take pixels and normalise them themselves.
        engines: also TensorRT engines.
        images: files and folders of the user's for the golden set; none takes those that training left.
        data: the folder that was trained on, for accuracy on its validation images and for calibration.
        calibration: a folder of images to calibrate with instead.
        calibration_images: how many.
        seed: which ones.
        gates: by the name of the precision.
        max_drop: points of validation top-1 that a variant may lose.
        options: of engines.
        accept_unaccounted: take engines whose reports do not name every convolution.
        batches: images an inference, for the measurement of ``auto``.
        seconds: measured for each candidate and batch size.
        device: where ONNX Runtime runs.
    """

    precisions: tuple[Precision, ...] = ()
    auto: bool = False
    uint8: bool = False
    engines: bool = False
    images: tuple[Path, ...] = ()
    data: Path | None = None
    calibration: Path | None = None
    calibration_images: int = MOST
    seed: int = 0
    gates: Mapping[str, Gate] = field(default_factory=lambda: GATES)
    max_drop: float = 0.5
    options: EngineOptions = field(default_factory=EngineOptions)
    accept_unaccounted: bool = False
    batches: tuple[int, ...] = (1, 8)
    seconds: float = 2.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            UsageError: one line with what is missing.
        """
        if self.auto and self.data is None:
            raise UsageError(
                "--precision auto measures accuracy on validation images: give --data DIR, the folder you trained on"
            )
        quantised = [precision.name for precision in self.precisions if precision.needs_ranges]
        if quantised and self.data is None and self.calibration is None:
            raise UsageError(
                f"{', '.join(quantised)} must be calibrated on real images: give --data DIR, the folder you trained "
                "on, or --calibration DIR with images like those that the network will see"
            )
