"""Measures how long networks take here: each is exported with seeded random weights, opened and timed, in turns.

The values of weights and images do not change how long a convolution takes, so a network need not be trained to be
measured. INT8 files get the ranges of one random image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from regnet_deploy import __version__
from regnet_deploy.cpu import available_cores, available_memory
from regnet_deploy.errors import UsageError
from regnet_deploy.latency.machine_state import measured_machine, watch_machine
from regnet_deploy.latency.measurement import Execution, Measurement, Protocol, summarize
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.space.network import Network

#: Runtimes and precisions in which networks are measured.
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16", "int8-cpu")
#: Networks that take turns; more would keep the memory of all of them.
TOGETHER = 6
#: Measured for each network, s, without the warm-up.
SECONDS = 1.0
_SEED = 0

Runtime = Literal["onnxruntime", "openvino"]


@dataclass(frozen=True)
class Setup:
    """How networks are run to be measured.

    Attributes:
        runtime: ``onnxruntime`` or ``openvino``.
        precision: one of :data:`PRECISIONS`.
        resolution: height and width of the images, pixels.
        classes: outputs of the linear layer.
        batch: images in an inference.
        threads: CPU threads; None: the cores that this process may use.
        device: ``cpu`` or ``cuda``.
    """

    runtime: Runtime = "onnxruntime"
    precision: str = "fp32"
    resolution: int = 224
    classes: int = 1000
    batch: int = 1
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        """Check that runtime, precision and device go together.

        Raises:
            UsageError: they do not, and the message names what does; or a size is below 1.
        """
        sizes = {"resolution": self.resolution, "classes": self.classes, "batch": self.batch, "threads": self.threads}
        for what, size in sizes.items():
            if size is not None and size < 1:
                raise UsageError(f"{what} must be 1 or more, got {size}")
        for what, value, known in (("runtime", self.runtime, RUNTIMES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise UsageError(f"{what} must be one of {', '.join(known)}, got {value}")
        if self.device == "cuda" and self.runtime == "openvino":
            raise UsageError("--runtime openvino runs on the CPU: give --device cpu, or --runtime onnxruntime")
        if self.precision == "bf16" and self.runtime != "openvino":
            raise UsageError("--precision bf16 is computed by OpenVINO: give --runtime openvino, or --precision fp32")
        if self.precision == "fp16" and self.device == "cpu":
            raise UsageError("--precision fp16 is slow on a CPU: give --device cuda, or --precision fp32 or int8-cpu")
        if self.precision == "int8-cpu" and self.device == "cuda":
            raise UsageError("--precision int8-cpu is for CPUs: give --device cpu, or --precision fp16")

    def __str__(self) -> str:
        """Return it in words."""
        place = "GPU" if self.device == "cuda" else f"{self.cpu_threads} thread{'s' * (self.cpu_threads > 1)}"
        return f"{self.runtime} {self.precision}, {place}, batch {self.batch}, {self.resolution} pixels"

    @property
    def cpu_threads(self) -> int:
        """CPU threads of the runtime."""
        return self.threads or available_cores()


def measure_networks(
    networks: Sequence[Network], setup: Setup, *, seconds: float = SECONDS, progress: Progress | None = None
) -> list[Measurement]:
    """Measure networks, at most :data:`TOGETHER` of them in turns, and return the measurements in the same order.

    Fewer take turns where so many batches do not fit into memory.

    Args:
        networks: the networks.
        setup: how they are run.
        seconds: measured for each network, without the warm-up.
        progress: receives the turns.

    Raises:
        MissingExtra: a library is not installed.
        UsageError: the runtime cannot run this precision or device here, or a batch does not fit into memory.
    """
    from regnet_deploy.profiling.latency import check_memory, first_maps_bytes

    progress, memory, together = progress or NoProgress(), available_memory(), TOGETHER
    for network in networks:
        check_memory(network, setup.resolution, setup.batch, memory)
        needed = setup.batch * first_maps_bytes(network, setup.resolution)
        together = max(1, min(together, memory // (2 * needed)))
    measurements: list[Measurement] = []
    for start in range(0, len(networks), together):
        measurements += _measure_together(networks[start : start + together], setup, seconds, progress)
    return measurements


def seeded_onnx(network: Network, setup: Setup) -> bytes:
    """Return the ONNX file of a network with random weights that are always the same.

    Raises:
        MissingExtra: a library is not installed.
        UsageError: the network is too large for one file.
    """
    from regnet_deploy.exporting.activation_ranges import observe_activations
    from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx
    from regnet_deploy.exporting.precision import PRECISIONS as TYPES
    from regnet_deploy.exporting.quantization import TensorRange
    from regnet_deploy.images.preprocessing import default_preprocessing
    from regnet_deploy.models.anynet import AnyNet

    model = AnyNet(network, setup.classes, seed=_SEED)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    preprocessing = default_preprocessing(setup.resolution, network.input_channels)
    file = build_onnx(network, weights, preprocessing, TYPES["fp16" if setup.precision == "fp16" else "fp32"])
    precision = TYPES.get(setup.precision)
    if precision is None or not precision.needs_ranges:
        return file  # BF16 is a setting of the runtime
    shape = (1, setup.resolution, setup.resolution, network.input_channels)
    pixels = np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)
    observed = observe_activations(
        file, activation_names(network, weights), pixels, preprocessing, threads=setup.cpu_threads
    )
    ranges = {name: TensorRange(each.low, each.high) for name, each in observed.tensors.items()}
    return build_onnx(network, weights, preprocessing, precision, ranges)


def open_artifact(data: bytes, setup: Setup) -> Any:
    """Open an exported file as the setup says, and return the session.

    Raises:
        MissingExtra: the runtime is not installed.
        UsageError: it cannot run this precision or device here.
        BundleError: it cannot open the file.
    """
    from regnet_deploy.runtimes.openvino_session import open_by_openvino
    from regnet_deploy.runtimes.runtime import open_onnx

    if setup.runtime == "openvino":
        compute: Literal["bf16", "fp32"] = "bf16" if setup.precision == "bf16" else "fp32"
        return open_by_openvino(data, threads=setup.cpu_threads, compute=compute)
    return open_onnx(data, threads=setup.cpu_threads, device=setup.device, runtime=setup.runtime)


def installed_execution(setup: Setup) -> Execution:
    """Return how the setup is executed here, with the version of the runtime, without opening a network.

    Raises:
        MissingExtra: the runtime is not installed.
        UsageError: it is installed twice, or there is no GPU for ``cuda``.
    """
    from regnet_deploy.engines.gpu import find_gpu
    from regnet_deploy.runtimes.openvino_session import installed_openvino
    from regnet_deploy.runtimes.runtime import installed_onnxruntime

    device = "cpu"
    if setup.device == "cuda":
        gpu = find_gpu()
        if gpu is None:
            raise UsageError("--device cuda: no GPU is found here; give --device cpu")
        device = gpu.name
    version = installed_openvino() if setup.runtime == "openvino" else installed_onnxruntime()[1]
    return Execution(
        runtime=setup.runtime,
        version=version,
        device=device,
        precision=setup.precision,
        threads=setup.cpu_threads,
        layout="channels_first",
    )


def _measure_together(
    networks: Sequence[Network], setup: Setup, seconds: float, progress: Progress
) -> list[Measurement]:
    from regnet_deploy.images.preprocessing import default_preprocessing
    from regnet_deploy.profiling.latency import ROUNDS, time_in_turns
    from regnet_deploy.profiling.runners import session_runner

    execution, runners, digests = installed_execution(setup), [], []
    for network in networks:
        data = seeded_onnx(network, setup)
        digests.append(hashlib.sha256(data).hexdigest())
        preprocessing = default_preprocessing(setup.resolution, network.input_channels)
        session = open_artifact(data, setup)
        runners.append(session_runner(session, "seeded", setup.precision, preprocessing, setup.cpu_threads))
    machine = measured_machine()
    watch = watch_machine(setup.device)
    turns = time_in_turns(runners, setup.batch, seconds, progress)
    state = watch.state()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Measurement(
            network=network,
            resolution=setup.resolution,
            classes=setup.classes,
            batch=setup.batch,
            execution=execution,
            machine=machine,
            state=state,
            protocol=Protocol(
                warmup_repetitions=each.warmup_repetitions,
                rounds=ROUNDS,
                repetitions=sum(map(len, each.rounds)),
                interleaved_with=len(networks) - 1,
            ),
            artifact_sha256=digest,
            times=summarize(each.rounds),
            date=date,
            regnet_deploy=__version__,
        )
        for network, digest, each in zip(networks, digests, turns, strict=True)
    ]
