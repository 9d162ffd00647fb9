"""Records of what was counted and measured: profiles, machines, tuned servers."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from regnet_deploy.bundle.record import Record, default

_Count = Annotated[int, Meta(ge=1)]
_NonNegative = Annotated[float, Meta(ge=0)]


class Latency(Record, frozen=True, kw_only=True):
    """Measured latency of one batch size; percentiles are interpolated between repetitions.

    With fewer than 100 repetitions the 99th percentile lies next to the slowest of them; ``repetitions`` tells.

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
        repetitions: measured inferences.
        warmup_repetitions: inferences before.
    """

    runtime: str
    variant: str | None
    device: str
    precision: str
    layout: str
    threads: int
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    repetitions: int
    warmup_repetitions: int


class Machine(Record, frozen=True, kw_only=True):
    """What a measurement depends on besides the network.

    Attributes:
        cpu: model as the kernel names it.
        cores: physical cores that the process may use (affinity and container quota included).
        memory_bytes: memory that the process may use.
        system: operating system and kernel.
        python: version.
        gpus: names of the NVIDIA GPUs that the driver lists.
        versions: of installed libraries and of regnet-deploy.
        busy_cores: cores that other programs kept busy; None where it is not known. Of a profile only.
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
    """The same counts in closed form; ``equal``: they equal the counted ones."""

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
    """What tuned settings depend on: equal machines run a network equally fast.

    Attributes:
        cpu: model.
        cores: that the process may use.
        instructions: sorted names of instruction sets that decide which kernels are used.
        gpu: name of the first GPU, or None.
    """

    cpu: str
    cores: int
    instructions: tuple[str, ...]
    gpu: str | None


class ServerSettings(Record, frozen=True):
    """Settings of ``serve``.

    Attributes:
        runtime: that runs the variant.
        variant: its name.
        executors: inferences at a time.
        threads: of each.
        batch: most images in an inference.
        max_delay_ms: how long an image waits for others at most.
    """

    runtime: Literal["onnxruntime", "tensorrt", "openvino"]
    variant: str
    executors: _Count
    threads: _Count
    batch: _Count = default(4)
    max_delay_ms: _NonNegative = default(0.0)


class TuningRow(Record, frozen=True, kw_only=True):
    """What was measured with one setting.

    Attributes:
        setting: that was tried.
        rate: highest images/s within the limit; 0 where there was none.
        p99_ms: at that rate, or the lowest seen; None where the server did not start.
        trials: load tests that it took.
        note: why it was chosen or given up.
    """

    setting: ServerSettings
    rate: float
    p99_ms: float | None
    trials: int
    note: str


class Serving(Record, frozen=True, kw_only=True):
    """What ``tune`` found.

    Attributes:
        machine: where it holds.
        p99_ms: limit of the 99th percentile of the latency that was asked for.
        rate: images/s within the limit.
        kind: what was sent, ``tensor`` or ``image``.
        device: that was asked for.
        settings: the best ones.
        rows: all that were tried.
    """

    machine: MachineSummary
    p99_ms: _NonNegative
    rate: _NonNegative
    kind: str = default("tensor")
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = default("auto")
    settings: ServerSettings
    rows: tuple[TuningRow, ...] = default(())
