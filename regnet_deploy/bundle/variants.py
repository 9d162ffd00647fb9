"""Records of exported variants: ONNX files, TensorRT engines, and their proofs."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from msgspec.structs import force_setattr

from regnet_deploy.bundle.engine_options import RTX_DEFAULT, EngineOptions
from regnet_deploy.bundle.record import Record, default

if TYPE_CHECKING:
    from typing import Self

EngineRuntime: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]

#: Values of limits that always hold.
_NO_LIMIT = {"atol": math.inf, "rtol": 0.0, "mean": math.inf, "cosine": -1.0, "top1": 0.0, "worst": math.inf}


class Gate(Record, frozen=True):
    """Limits of the figures of a golden set replay; None is no limit.

    Attributes:
        atol: a logit may differ from its reference by ``atol + rtol * |reference|``, in units of the logits.
        rtol: relative part of that limit; without ``atol`` it means nothing.
        mean: maximum mean absolute error, as a share of the spread of the reference logits.
        cosine: minimum cosine similarity of an image's logits with their reference. It says little about few classes:
            the logits of an image between two classes are near 0, and a small error turns them.
        top1: minimum share of images whose first class is the same; if the reference does not decide between two
            classes, either counts as the same.
        worst: maximum root mean square error over the classes of one image, as a share of the spread of the reference
            logits, or of how far the image's logits are from the mean of all images where they are farther. Proofs of
            earlier versions do not have it.
    """

    atol: float | None = default(None)
    rtol: float | None = default(None)
    mean: float | None = default(None)
    cosine: float | None = default(None)
    top1: float | None = default(None)
    worst: float | None = None

    def __post_init__(self) -> None:
        """Replace limits that always hold by None."""
        for name, value in _NO_LIMIT.items():
            if getattr(self, name) == value:
                force_setattr(self, name, None)

    def limit(self, name: str) -> float:
        """Return a limit by its name; without one, a value that always holds."""
        value: float | None = getattr(self, name)
        return _NO_LIMIT[name] if value is None else value

    def looser(self, other: Gate) -> Gate:
        """Return the looser of two gates in every figure."""
        larger = {name: max(self.limit(name), other.limit(name)) for name in ("atol", "rtol", "mean", "worst")}
        smaller = {name: min(self.limit(name), other.limit(name)) for name in ("cosine", "top1")}
        if larger["atol"] == math.inf:
            del larger["rtol"]
        return Gate(**larger, **smaller)

    def within(self, other: Gate) -> bool:
        """Tell whether this gate is as tight as another in every figure, or tighter."""
        return self.looser(other) == other.looser(other)  # without an atol, rtol means nothing

    def __str__(self) -> str:
        limits = []
        if self.atol is not None:
            limits.append(f"atol {self.atol:g}, rtol {self.rtol or 0:g}")
        if self.mean is not None:
            limits.append(f"mean {self.mean:.2%} of the spread")
        if self.worst is not None:
            limits.append(f"worst image {self.worst:.2%} of the spread")
        if self.cosine is not None:
            limits.append(f"cosine {self.cosine:g}")
        if self.top1 is not None:
            limits.append(f"top-1 {self.top1:.1%}")
        return ", ".join(limits) or "anything finite"


class Proof(Record, frozen=True, kw_only=True):
    """The result of a golden set replay that a variant or an engine passed.

    Attributes:
        images: images compared.
        max_abs_error: largest absolute error of a logit.
        mean_abs_error: mean absolute error of a logit.
        relative_error: mean |error| as a share of the spread of the reference logits.
        cosine: smallest cosine similarity of an image's logits with their reference.
        top1_agreement: share of images whose first class is the same.
        top1_decided: the same, where images whose first class the reference does not decide count as the same.
        worst_error: root mean square error of the image where it is largest, as a share like that of the gate's limit;
            None in proofs of earlier versions.
        gate: the limits that were applied; None in proofs of earlier versions.
        passed: whether every figure is within its limit.
        standard: whether the gate was that of the precision, or a tighter one.
        runtime: name and version of what ran it.
        device: where it ran.
    """

    images: int
    max_abs_error: float | None
    mean_abs_error: float | None
    relative_error: float | None = default(None)
    cosine: float | None
    top1_agreement: float
    top1_decided: float | None = default(None)
    worst_error: float | None = None
    gate: Gate | None = default(None)
    passed: bool
    standard: bool = default(True)
    runtime: str
    device: str


class Accuracy(Record, frozen=True, kw_only=True):
    """Top-1 of a variant on the validation images, compared with the trained model.

    Attributes:
        images: images compared.
        top1: share of correct answers of the variant.
        reference_top1: share of correct answers of the model.
        drop: percentage points that the variant loses; below 0 where it gains.
        low: lower end of the 95 % interval of the drop, points.
        high: upper end.
        agreement: share of images whose first class is the same.
        max_abs_error: largest absolute error of a logit.
        mean_abs_error: mean absolute error of a logit.
        cosine: smallest cosine similarity of an image's logits with the model's.
        left_out: files of the validation set that cannot be read.
    """

    images: int
    top1: float
    reference_top1: float
    drop: float
    low: float
    high: float
    agreement: float
    max_abs_error: float | None
    mean_abs_error: float | None
    cosine: float | None
    left_out: int = default(0)


class CalibrationResult(Record, frozen=True):
    """Figures of one calibration method."""

    top1: float
    mean_abs_error: float


class Calibration(Record, frozen=True, kw_only=True):
    """How the ranges of a quantized variant were found.

    Attributes:
        method: the method that was chosen.
        tried: method -> its figures.
        images: images that activations were observed on.
        source: where they come from, in words.
        folder: name of their folder.
        seed: of the choice of images.
        digest: sha256 of the pixels and the preprocessing.
        left_out: path -> reason, of chosen files that could not be used.
    """

    method: str
    tried: dict[str, CalibrationResult]
    images: int
    source: str
    folder: str
    seed: int
    digest: str
    left_out: dict[str, str] = default({})


class EngineIdentity(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can change an engine. Unknown keys are rejected, because they could decide where an engine runs.

    The driver and CUDA are part of the key, because a builder may choose other kernels with others. They do not decide
    where the engine runs: an engine outlives an update of the driver.

    Attributes:
        onnx_sha256: of the ONNX file.
        precision: its name.
        calibration: digest of the calibration images of a quantized variant, or None.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        version: full version of the runtime.
        toolkit: CUDA version that its wheel was compiled for, such as ``cu13``, or None.
        gpu: name of the GPU; this and the other GPU fields are None for an engine that was built for several GPUs.
        compute_capability: such as ``9.0``.
        multiprocessors: streaming multiprocessors.
        driver: version of the NVIDIA driver.
        cuda: newest CUDA version that the driver supports.
        system: operating system and architecture, such as ``linux-x86_64``.
        options: of the build.
    """

    onnx_sha256: str
    precision: str
    calibration: str | None
    runtime: EngineRuntime
    version: str
    toolkit: str | None
    gpu: str | None
    compute_capability: str | None
    multiprocessors: int | None
    driver: str | None
    cuda: str | None
    system: str
    options: EngineOptions

    @property
    def key(self) -> str:
        """The sha256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def builder(self) -> str:
        """Runtime and version that built it, such as ``tensorrt 11.4.0.106``."""
        return f"{self.runtime} {self.version}"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Compute capabilities for which an engine of TensorRT-RTX was built."""
        return self.options.compute_capabilities or RTX_DEFAULT

    @property
    def built_for(self) -> str:
        """The GPUs on which it runs, in words."""
        if self.runtime == "tensorrt-rtx":
            return f"compute capability {', '.join(self.compute_capabilities)}"
        if self.options.hardware_compatible == "ampere+":
            return "compute capability 8.0 and later"
        if self.options.hardware_compatible == "same-compute-capability":
            return f"compute capability {self.compute_capability}"
        return f"{self.gpu} (compute capability {self.compute_capability}, {self.multiprocessors} multiprocessors)"


class Engine(Record, frozen=True, kw_only=True):
    """A TensorRT engine: a plan among the bundle's files.

    Attributes:
        key: sha256 of its identity.
        file: logical name of the plan.
        bytes: size of the plan.
        identity: what it was built from, and for which GPU.
        proof: None until it is proved on a GPU.
        note: why it is not proved, or None.
        types: type -> number of convolutions that compute in it; None if the builder does not report them.
        unaccounted: names of convolutions that the report does not contain.
        wider: names of squeeze-and-excitation convolutions that compute in a wider float than required.
        accuracy: on the validation images, if it was measured.
    """

    key: str
    file: str
    bytes: int
    identity: EngineIdentity
    proof: Proof | None = default(None)
    note: str | None = default(None)
    types: dict[str, int] | None = default(None)
    unaccounted: tuple[str, ...] | None = default(None)
    wider: tuple[str, ...] | None = default(None)
    accuracy: Accuracy | None = None

    @property
    def is_proved(self) -> bool:
        """Whether it was proved to agree with the trained model."""
        return self.proof is not None and self.proof.passed


class _Variant(Record, frozen=True, kw_only=True, tag_field="runtime"):
    """Fields of all variants.

    Attributes:
        precision: its name.
        input: ``float32`` for normalized images ``(n, channels, h, w)``, ``uint8`` for pixels
            ``(n, h, w, channels)``.
        opset: of the ONNX file.
    """

    precision: str
    input: Literal["float32", "uint8"]
    opset: int

    @property
    def runtime(self) -> str:
        """The runtime for which it was made: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt-rtx``."""
        return str(self.__struct_config__.tag)


class OnnxVariant(_Variant, frozen=True, kw_only=True, tag="onnxruntime"):
    """An ONNX file.

    Attributes:
        file: its logical name.
        bytes: its size.
        exact: whether it is for TensorRT, so that ONNX Runtime must run it without graph optimizations.
        note: a remark on its proof or its weights, or None.
        weight_bits: bits of INT8 weights for CPUs: 7 if sums of 8 bits would saturate.
        calibration: of a quantized variant.
        proof: that it agrees with the trained model.
        accuracy: on the validation images, if it was measured.
    """

    file: str
    bytes: int
    exact: bool = default(False)
    note: str | None = default(None)
    weight_bits: int | None = None
    calibration: Calibration | None = None
    proof: Proof | None = default(None)
    accuracy: Accuracy | None = None


class OpenvinoVariant(_Variant, frozen=True, kw_only=True, tag="openvino"):
    """An ONNX file of the bundle as OpenVINO runs it on a CPU.

    Attributes:
        source: name of the ONNX variant whose file it runs.
        onnx_sha256: of that file when this variant was proved.
        compute: type in which OpenVINO computes what the file has in FP32; ``bf16`` needs a CPU with such instructions.
        note: why it is not proved, or None.
        proof: that it agrees with the trained model.
        accuracy: on the validation images, if it was measured.
    """

    source: str
    onnx_sha256: str
    compute: Literal["fp32", "bf16"]
    note: str | None = None
    proof: Proof | None = None
    accuracy: Accuracy | None = None


class EngineVariant(_Variant, frozen=True, kw_only=True):
    """Engines of one precision, one for each kind of machine.

    Attributes:
        source: name of the ONNX variant from which they are built.
        convolutions: name of each convolution -> the type in which it has to compute.
        engines: oldest first.
    """

    source: str
    convolutions: dict[str, str]
    engines: tuple[Engine, ...]

    @property
    def runtime(self) -> EngineRuntime:
        """The library that built them."""
        return cast("EngineRuntime", self.__struct_config__.tag)

    def with_engine(self, engine: Engine) -> Self:
        """Return the variant with this engine last, without engines of the same key or of another ONNX file."""
        source = engine.identity.onnx_sha256
        kept = (one for one in self.engines if one.key != engine.key and one.identity.onnx_sha256 == source)
        return self.replace(engines=(*kept, engine))


class TensorrtVariant(EngineVariant, frozen=True, kw_only=True, tag="tensorrt"):
    """Engines of TensorRT."""


class TensorrtRtxVariant(EngineVariant, frozen=True, kw_only=True, tag="tensorrt-rtx"):
    """Engines of TensorRT-RTX."""


Variant = OnnxVariant | OpenvinoVariant | TensorrtVariant | TensorrtRtxVariant

#: Runtime of engines -> the record of its variants.
ENGINE_VARIANTS: dict[str, type[TensorrtVariant] | type[TensorrtRtxVariant]] = {
    "tensorrt": TensorrtVariant,
    "tensorrt-rtx": TensorrtRtxVariant,
}

#: Runtimes of variants that this version knows.
RUNTIMES = ("onnxruntime", "openvino", *ENGINE_VARIANTS)
