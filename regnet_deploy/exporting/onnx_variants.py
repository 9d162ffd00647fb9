"""ONNX files of one precision: calibrated where it quantises, written, and judged in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from regnet_deploy.cpu import describe_int8_support, int8_sums_saturate
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.calibration import ObservedActivations, observe_activations
from regnet_deploy.exporting.calibration_images import CalibrationSet
from regnet_deploy.exporting.calibration_methods import choose_ranges
from regnet_deploy.exporting.cpu_kernels import runs_as_typed
from regnet_deploy.exporting.emulation import emulate
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.runtimes.runtime import Device, Session, open_onnx


@dataclass(frozen=True)
class Reporter:
    """Who is told how it goes.

    Attributes:
        step: of what is done next.
        advance: how much of it is done, and how much there is.
        note: of what did not work and is not needed, a line.
        phase: of the phases in which an engine is built, and the steps of each; from other threads.
    """

    step: Callable[[str], None]
    advance: Callable[[int, int], None]
    note: Callable[[str], None]
    phase: Callable[[int, str], None]


@dataclass(frozen=True, eq=False)
class OnnxVariant:
    """A file, its name in the bundle's part ``variants`` and its entry there."""

    name: str
    data: bytes
    entry: dict[str, Any]
    session: Session

    @property
    def own_entry(self) -> dict[str, Any]:
        """Where its proof and its accuracy stand."""
        return self.entry


class LazyCalibration:
    """The images that activations are measured on, and what was measured; not before a precision asks for it.

    Args:
        images: makes the set; raises DataError or UsageError where there is none.
        source: the network.
        reporter: is told.
    """

    def __init__(self, images: Callable[[], CalibrationSet], source: ModelSource, reporter: Reporter) -> None:
        self._images, self._source, self._reporter = images, source, reporter

    @cached_property
    def _found(self) -> CalibrationSet | RegnetDeployError:
        self._reporter.step("calibration images")
        try:
            return self._images()
        except RegnetDeployError as error:  # kept, so that the next precision does not look through the folder again
            return error

    @property
    def images(self) -> CalibrationSet:
        """The set of images."""
        if isinstance(self._found, RegnetDeployError):
            raise self._found
        return self._found

    @cached_property
    def observed(self) -> ObservedActivations:
        """What the activations were on them, in FP32."""
        images = self.images
        self._reporter.step("activations of the calibration images")
        plain = self._source.onnx(PRECISIONS["fp32"])
        return observe_activations(
            plain, self._source.tensors(), images.pixels, self._source.preprocessing, self._reporter.advance
        )


def make_onnx_variants(
    source: ModelSource,
    precision: Precision,
    calibration: LazyCalibration,
    judge: AccuracyGate,
    device: Device,
    reporter: Reporter,
    *,
    pixels: bool,
    whole: bool = True,
) -> list[OnnxVariant]:
    """Return the variant of a precision, judged, and with ``pixels`` also the one that takes pixels.

    Without ``whole`` it is not judged on the validation images.

    Raises:
        DataError: there are not enough images to calibrate with, or they are of other classes.
        UsageError: no images to calibrate with were given.
        ProofError: it does not agree with the model; the message has the figures.
    """
    ranges, extra = None, dict[str, Any]()
    if precision.needs_ranges:
        # Only ONNX Runtime's own small kernels saturate; TensorRT sums in 32 bits.
        reduced = precision.small == "uint8" and int8_sums_saturate()
        chosen = choose_ranges(
            source, precision, calibration.images, calibration.observed, judge, reduced, reporter.step
        )
        ranges, extra["calibration"] = chosen.ranges, chosen.part
        if precision.small == "uint8":
            extra["weight_bits"] = 7 if reduced else 8
            extra["note"] = f"weights of {extra['weight_bits']} bits, for {describe_int8_support()}"
    made = []
    for with_pixels in (False, True)[: 1 + pixels]:
        name = f"onnx-{precision.name}" + ("-uint8" if with_pixels else "")
        reporter.step(f"{name}: writing")
        data = source.onnx(precision, ranges, pixels=with_pixels, reduced=extra.get("weight_bits") == 7)
        session = open_for_proof(data, precision, device)
        reporter.step(f"{name}: proving")
        entry = {
            "file": f"{name}.onnx",
            "bytes": len(data),
            "runtime": "onnxruntime",
            "precision": precision.name,
            "input": "uint8" if with_pixels else "float32",
            "opset": precision.opset,
            "exact": precision.for_tensorrt,
            "note": _note(precision),
            **extra,
            **judge.judge(name, session, precision, reporter.advance, whole=whole),
        }
        made.append(OnnxVariant(name, data, entry, session))
    return made


def open_for_proof(data: bytes, precision: Precision, device: Device) -> Session:
    """Open a file as it will be run, or for what ONNX Runtime has no kernels for, as it is typed."""
    if precision.for_tensorrt:
        return open_onnx(emulate(data, precision), device="cpu", exact=True)
    if precision.small == "uint8" and device == "auto":  # for CPUs, and run there beside a GPU too
        device = "cpu"
    return open_onnx(data, device=device)


def _note(precision: Precision) -> str | None:
    if precision.rest == "bf16":
        return "proved with its rounding emulated in FP32: ONNX Runtime has no BF16 convolution on a CPU"
    if precision.for_tensorrt:
        note = "for TensorRT engines: ONNX Runtime runs it as it is written, which is slow"
        truncates = "; proved with FP16 quantised in FP32, because ONNX Runtime before 1.30 truncates it"
        return note + ("" if runs_as_typed(precision) else truncates)
    return None
