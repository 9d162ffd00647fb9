"""Records of measurements: profiles, machines, settings of the server."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, UnsetType

from regnet_deploy.bundle.record import Record, default

_Count = Annotated[int, Meta(ge=1)]
_NonNegative = Annotated[float, Meta(ge=0)]


class Latency(Record, frozen=True, kw_only=True):
    """Measured latency of one batch size; percentiles are interpolated between repetitions.

    With fewer than 100 repetitions, the 99th percentile is close to the slowest of them.

    Attributes:
        runtime: name and version, such as ``torch 2.13.0``.
        variant: name of the exported variant, or None for the PyTorch model.
        device: ``cpu`` or the name of the GPU.
        precision: such as ``fp32``.
        layout: of the input in memory, ``channels_last`` or ``channels_first``.
        threads: CPU threads.
        batch: images in an inference.
        p50_ms: median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_second: throughput.
        repetitions: number of measured inferences.
        warmup_repetitions: number of inferences before.
    """

    runtime: str
    variant: str | None
    device: str
    precision: str
    layout: str
    threads: int
    batch: _Count
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    repetitions: int
    warmup_repetitions: int


class EvaluatedVariant(Record, frozen=True, kw_only=True):
    """The answers of one variant on labeled images; shares are 0 to 1.

    Attributes:
        runtime: name and version of what ran it.
        top1: share of images whose class is the first answer.
        low: lower end of its 95 % interval.
        high: upper end.
        top5: share of images whose class is among the first five; None with fewer than six classes.
        ece: expected calibration error.
        lost_points: top-1 that it loses against the first variant, percentage points; None for the first one.
    """

    runtime: str
    top1: float
    low: float
    high: float
    top5: float | None = None
    ece: float
    lost_points: float | None = None


class EvaluationRecord(Record, frozen=True, kw_only=True):
    """Variants on labeled images that had no part in training.

    Attributes:
        data: name of the folder.
        split: folder of the images in it, or their split if they were held out; "" for the folder itself.
        images: number of images.
        unreadable: number of images that could not be read.
        baseline: share of the largest class, which a constant answer reaches.
        baseline_label: its name.
        variants: by name; the first one is the one that the others are compared with.
        held_out: whether training held the images out of the folder; None if not.
    """

    data: str
    split: str
    images: _Count
    unreadable: int
    baseline: float
    baseline_label: str
    variants: dict[str, EvaluatedVariant]
    held_out: bool | None = None

    @property
    def where(self) -> str:
        """The folder of the images, or whose held-out images they are."""
        if self.held_out:
            return f"{self.data}, held out for {self.split}"
        return f"{self.data}/{self.split}" if self.split else self.data


class Machine(Record, frozen=True, kw_only=True):
    """The machine of a measurement.

    Attributes:
        cpu: model as the kernel names it.
        cores: physical cores that the process may use (affinity and container quota included).
        memory_bytes: memory that the process may use.
        system: operating system and kernel.
        python: version.
        gpus: names of the NVIDIA GPUs that the driver lists.
        versions: of installed libraries and of regnet-deploy.
        busy_cores: number of cores that other programs used; None if it is not known. For profiles only.
    """

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    gpus: tuple[str, ...]
    versions: dict[str, str]
    busy_cores: float | UnsetType | None = UNSET


class CostRecord(Record, frozen=True, kw_only=True):
    """MACs, parameters and activations (elements) of one image."""

    macs: int
    parameters: int
    activations: int


class ClosedForm(CostRecord, frozen=True, kw_only=True):
    """The same figures in closed form; ``equal`` tells whether they equal the counted ones."""

    equal: bool


class CountRecord(CostRecord, frozen=True, kw_only=True):
    """Counted MACs (the paper's rule), parameters and activations, and fvcore's own total of operations."""

    fvcore_total: int


class StageCount(CountRecord, frozen=True, kw_only=True):
    """Counts of one stage."""

    stage: str


class OperatorCount(CountRecord, frozen=True, kw_only=True):
    """Counts of one kind of operator."""

    operator: str


class ComplexityRecord(CountRecord, frozen=True, kw_only=True):
    """Counts of one image at ``resolution``, in total, by stage and by operator."""

    resolution: int
    classes: int
    closed_form: ClosedForm
    stages: tuple[StageCount, ...]
    operators: tuple[OperatorCount, ...]


class Profile(Record, frozen=True, kw_only=True):
    """Complexity, and measured latency on a machine."""

    complexity: ComplexityRecord
    latency: tuple[Latency, ...]
    machine: Machine


class MachineSummary(Record, frozen=True, kw_only=True):
    """The properties of a machine on which tuned settings depend.

    Attributes:
        cpu: model.
        cores: that the process may use.
        instructions: sorted names of the instruction sets by which kernels are chosen.
        gpu: name of the first GPU, or None.
    """

    cpu: str
    cores: int
    instructions: tuple[str, ...]
    gpu: str | None


#: A runtime of ``serve``: see :data:`regnet_deploy.runtimes.runtime.Runtime`.
ServingRuntime: TypeAlias = Literal["onnxruntime", "tensorrt", "openvino"]


class ServerSetting(Record, frozen=True):
    """One setting of ``serve``: the options that ``tune`` varies.

    Attributes:
        runtime: runs the variant.
        variant: its name.
        executors: number of concurrent inferences.
        threads: threads of each executor.
        batch: maximum batch size, images.
        max_delay_ms: maximum time that an image waits for others to form a batch.
    """

    runtime: ServingRuntime
    variant: str
    executors: _Count
    threads: _Count
    batch: _Count = default(4)
    max_delay_ms: _NonNegative = default(0.0)

    def __str__(self) -> str:
        delay = f"delay {self.max_delay_ms:g} ms" if self.max_delay_ms else "no delay"
        layout = f"{self.executors} x {self.threads} threads"
        return f"{self.variant} by {self.runtime}, {layout}, batch {self.batch}, {delay}"


class TuningRow(Record, frozen=True):
    """The result of one setting.

    Attributes:
        setting: the setting.
        rate: highest images/s within the limit; 0 if no rate was.
        p99_ms: 99th percentile of latency at that rate, or the lowest measured; None if the server did not start.
        trials: number of loads.
        note: why it was rejected, or that it is selected.
        first_rate: rate of the search, where it was lower when it was measured again.
    """

    setting: ServerSetting
    rate: float
    p99_ms: float | None
    trials: int
    note: str
    first_rate: float | None = None

    def __str__(self) -> str:
        p99 = f"p99 {self.p99_ms:.1f} ms" if self.p99_ms is not None else ""
        outcome = f"{self.rate:.1f} images/s, {p99}" if self.rate else self.note + (f" ({p99})" if p99 else "")
        return f"{self.setting}: {outcome}"


class Serving(Record, frozen=True, kw_only=True):
    """The result of ``tune``.

    Attributes:
        machine: for which it is valid.
        p99_ms: required limit of the 99th percentile of latency.
        rate: highest images/s within the limit.
        kind: what the requests contained, ``tensor`` or ``image``.
        device: requested device.
        settings: the best setting.
        rows: results of all settings that were tried.
    """

    machine: MachineSummary
    p99_ms: _NonNegative
    rate: _NonNegative
    kind: str = default("tensor")
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = default("auto")
    settings: ServerSetting
    rows: tuple[TuningRow, ...] = default(())
