"""Options of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.field_types import check_field_types
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.runtimes.runtime import Device


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and what it may lose.

    Attributes:
        precisions: in addition to fp32, which is always exported: it is the reference and the fallback.
        auto: export the precisions that this machine can run, measure them, and keep the fastest accurate ones.
        uint8: also export variants whose input is pixels, which the graph normalizes.
        openvino: also prove the files in OpenVINO, in FP32, in BF16 where the CPU has it, and in INT8 with
            ``int8-cpu``; ``auto`` does where OpenVINO is installed.
        engines: also build TensorRT engines.
        images: files and folders for the golden set; without them the samples that training stored are used.
        data: the training folder, for accuracy on its validation images and for calibration.
        calibration: another folder of images for calibration.
        calibration_images: number of images for calibration, 1 to 512; 300 or more are advisable.
        seed: of the choice of these images.
        gates: name of a precision -> limits on the golden set.
        max_drop: percentage points of validation top-1 that a variant may lose.
        remove_refused: remove the variant of an earlier export where the new one does not pass its gate.
        engine: options of engines.
        accept_unaccounted: accept engines whose report does not name every convolution.
        batches: batch sizes that ``auto`` measures.
        seconds: duration of the measurement of each candidate and batch size.
        device: where ONNX Runtime runs.
    """

    precisions: tuple[Precision, ...] = ()
    auto: bool = False
    uint8: bool = False
    openvino: bool = False
    engines: bool = False
    images: tuple[Path, ...] = ()
    data: Path | None = None
    calibration: Path | None = None
    calibration_images: int = 512
    seed: int = 0
    gates: Mapping[str, Gate] = field(default_factory=lambda: GATES)
    max_drop: float = 0.5
    remove_refused: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    accept_unaccounted: bool = False
    batches: tuple[int, ...] = (1, 8)
    seconds: float = 2.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Check that the options can be used together.

        Raises:
            UsageError: an option is missing.
        """
        check_field_types(self)
        if self.auto and self.data is None:
            raise UsageError(
                "--precision auto measures accuracy on validation images: give --data DIR, the training folder"
            )
        quantized = [precision.name for precision in self.precisions if precision.needs_ranges]
        if quantized and self.data is None and self.calibration is None:
            raise UsageError(
                f"{', '.join(quantized)} must be calibrated on real images: give --data DIR, the training folder, or "
                "--calibration DIR with images like those that the network will classify"
            )

    def requests(self, variant: str) -> bool:
        """Tell whether a variant is requested: by its precision, or with ``openvino`` or ``engines``."""
        if variant.startswith("onnx-"):
            return variant.removeprefix("onnx-") in {precision.name for precision in self.precisions}
        return self.openvino if variant.startswith("openvino-") else self.engines
