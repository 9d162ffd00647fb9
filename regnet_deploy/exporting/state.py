"""What the stages of an export share, and what they produce."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Choice, Golden
from regnet_deploy.bundle.variants import (
    Accuracy,
    Engine,
    OnnxVariant,
    OpenvinoVariant,
    TensorrtRtxVariant,
    TensorrtVariant,
    Variant,
)
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.calibration import Calibrator
from regnet_deploy.exporting.golden_images import NewGoldenSet
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.progress import Progress
from regnet_deploy.runtimes.runtime import Session


@dataclass(frozen=True)
class EngineBuilder:
    """What can build TensorRT engines on this machine.

    Attributes:
        library: TensorRT or TensorRT-RTX, or None where engines are not requested or cannot be built.
        gpu: of this machine, or None.
        error: why requested engines cannot be built, or None.
    """

    library: Library | None
    gpu: Gpu | None
    error: RegnetDeployError | None = None


@dataclass(frozen=True, eq=False)
class ExportContext:
    """What the stages of an export share.

    Attributes:
        bundle: as it was read.
        options: what to export.
        source: the network.
        golden: the golden set of this export.
        gate: that every variant must pass.
        calibrator: of quantized precisions.
        builder: of engines.
        progress: receives steps and messages.
    """

    bundle: Bundle
    options: ExportOptions
    source: ModelSource
    golden: NewGoldenSet
    gate: AccuracyGate
    calibrator: Calibrator
    builder: EngineBuilder
    progress: Progress


@dataclass(frozen=True, eq=False)
class ExportedOnnx:
    """An ONNX file: its name among the variants, its bytes, its record and a session that runs it."""

    name: str
    data: bytes
    variant: OnnxVariant
    session: Session

    @property
    def file(self) -> str:
        """Logical name of the file."""
        return self.variant.file

    @property
    def accuracy(self) -> Accuracy | None:
        """Accuracy on the validation images, if it is measured."""
        return self.variant.accuracy

    def with_accuracy(self, accuracy: Accuracy) -> ExportedOnnx:
        """Return the variant with its accuracy."""
        return replace(self, variant=self.variant.replace(accuracy=accuracy))


@dataclass(frozen=True, eq=False)
class ExportedOpenvino:
    """An ONNX file in OpenVINO: the name of the variant, its record and a session that runs it."""

    name: str
    variant: OpenvinoVariant
    session: Session

    @property
    def accuracy(self) -> Accuracy | None:
        """Accuracy on the validation images, if it is measured."""
        return self.variant.accuracy

    def with_accuracy(self, accuracy: Accuracy) -> ExportedOpenvino:
        """Return the variant with its accuracy."""
        return replace(self, variant=self.variant.replace(accuracy=accuracy))


@dataclass(frozen=True, eq=False)
class ExportedEngine:
    """An engine: the name of its variant, its plan, the variant's record with it as the last engine, and a session.

    The session is None without a GPU.
    """

    name: str
    data: bytes
    variant: TensorrtVariant | TensorrtRtxVariant
    session: EngineSession | None

    @property
    def engine(self) -> Engine:
        """The record of the engine."""
        return self.variant.engines[-1]

    @property
    def file(self) -> str:
        """Logical name of the plan."""
        return self.engine.file

    @property
    def accuracy(self) -> Accuracy | None:
        """Accuracy on the validation images, if it is measured."""
        return self.engine.accuracy

    def with_accuracy(self, accuracy: Accuracy) -> ExportedEngine:
        """Return the variant with the accuracy of the engine."""
        return replace(self, variant=self.variant.with_engine(self.engine.replace(accuracy=accuracy)))


@dataclass(frozen=True, eq=False)
class ExportState:
    """Variants by name, and why others are rejected.

    Attributes:
        onnx: ONNX files.
        openvino: ONNX files in OpenVINO.
        engines: TensorRT engines.
        rejected: name of a variant, or ``engines`` for all of them -> why it is not exported.
    """

    onnx: Mapping[str, ExportedOnnx] = field(default_factory=dict)
    openvino: Mapping[str, ExportedOpenvino] = field(default_factory=dict)
    engines: Mapping[str, ExportedEngine] = field(default_factory=dict)
    rejected: Mapping[str, RegnetDeployError] = field(default_factory=dict)

    @property
    def variants(self) -> dict[str, ExportedOnnx | ExportedOpenvino | ExportedEngine]:
        """All variants by name."""
        return {**self.onnx, **self.openvino, **self.engines}

    @property
    def files(self) -> dict[str, bytes]:
        """All files by logical name."""
        written: list[ExportedOnnx | ExportedEngine] = [*self.onnx.values(), *self.engines.values()]
        return {one.file: one.data for one in written}

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """The accuracies that are measured, by variant."""
        return {name: one.accuracy for name, one in self.variants.items() if one.accuracy}

    def only(self, names: Collection[str]) -> ExportState:
        """Return the state with these variants only."""
        return replace(
            self,
            onnx={name: one for name, one in self.onnx.items() if name in names},
            openvino={name: one for name, one in self.openvino.items() if name in names},
            engines={name: one for name, one in self.engines.items() if name in names},
        )

    def with_accuracy(self, name: str, accuracy: Accuracy) -> ExportState:
        """Return the state with the accuracy of a variant."""
        if name in self.onnx:
            return replace(self, onnx={**self.onnx, name: self.onnx[name].with_accuracy(accuracy)})
        if name in self.openvino:
            return replace(self, openvino={**self.openvino, name: self.openvino[name].with_accuracy(accuracy)})
        return replace(self, engines={**self.engines, name: self.engines[name].with_accuracy(accuracy)})

    def with_rejected(self, name: str, error: RegnetDeployError) -> ExportState:
        """Return the state with the reason why a variant is rejected."""
        return replace(self, rejected={**self.rejected, name: error})


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Attributes:
        bundle: as it was written.
        variants: that this export added or replaced, by name.
        golden: the part ``golden``.
        skipped_images: path -> reason, of images that could not be used for the golden set.
        choice: the part ``choice``, the decisions of ``auto``; None without it.
        rejected: name of a requested variant -> why it is not in the bundle; the caller raises these.
    """

    bundle: Bundle
    variants: dict[str, Variant]
    golden: Golden
    skipped_images: Mapping[str, str]
    choice: Choice | None
    rejected: dict[str, RegnetDeployError]
