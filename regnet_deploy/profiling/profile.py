"""Profiles a bundle: counts its operations, measures its latency, and writes the part ``profile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Manifest
from regnet_deploy.bundle.measurements import Profile
from regnet_deploy.errors import UsageError
from regnet_deploy.field_types import check_field_types
from regnet_deploy.models.weights import load_model
from regnet_deploy.profiling.counts import count
from regnet_deploy.profiling.latency import check_memory, measure_latency
from regnet_deploy.profiling.machine import busy_cores, describe_machine, environment
from regnet_deploy.profiling.runners import pick_device, torch_runner, variant_runners
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.runtime import Device

#: Number of cores that other programs may use before a message warns of it.
_BUSY = 0.3


#: Longest measurement, s, and most threads: above them a number is a mistake.
MAX_SECONDS = 3600
MAX_THREADS = 1024


@dataclass(frozen=True)
class ProfileOptions:
    """What to measure.

    Attributes:
        batches: batch sizes.
        seconds: measured for each runtime and batch size, without the warm-up.
        threads: number of CPU threads; None for every core that this process may use.
        device: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
        compiled: also measure the PyTorch model by torch.compile, for comparison.
    """

    batches: tuple[int, ...]
    seconds: float
    threads: int | None
    device: Device
    compiled: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: one is out of range.
        """
        check_field_types(self)
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes must be 1 or more, not {', '.join(map(str, self.batches)) or 'none'}")
        if not 0 < self.seconds <= MAX_SECONDS:
            raise UsageError(
                f"the time of each measurement must be above 0 and at most {MAX_SECONDS} s, not {self.seconds}"
            )
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads must be from 1 to {MAX_THREADS}, not {self.threads}")


def profile(path: str | Path, options: ProfileOptions, progress: Progress | None = None) -> Profile:
    """Profile the bundle at ``path``, write the part ``profile`` and return it.

    Args:
        path: folder of the bundle.
        options: what to measure.
        progress: receives the measurements, and messages on variants that are not measured.

    Raises:
        BundleError: the bundle is missing, damaged, changed meanwhile or not writable.
        UsageError: the device is not available, or a batch does not fit into its memory.
        ProofError: the counts differ from the closed form.
    """
    progress = progress or NoProgress()
    bundle = open_bundle(path)
    network, classes, resolution = bundle.architecture.network, bundle.architecture.classes, bundle.preprocessing.crop
    machine, device = describe_machine(), pick_device(options.device)
    threads = options.threads or machine.cores
    if device.type == "cpu":
        check_memory(network, resolution, max(options.batches), machine.memory_bytes)
    busy = busy_cores()
    if busy is not None and busy > _BUSY:
        progress.message(
            f"other programs keep {busy:.1f} of {machine.cores} cores busy: latencies will be higher and less steady"
        )
    model = load_model(bundle)
    counts = count(model, network, resolution, classes)
    # With auto each variant runs where it is served, and its rows record where: an engine may run on a GPU that PyTorch
    # cannot use, and the CPU build of ONNX Runtime cannot use the GPU that PyTorch uses.
    variant_device: Device = "auto" if options.device == "cuda" else options.device
    runners = [
        torch_runner(model, device, bundle.preprocessing, threads),
        *([torch_runner(model, device, bundle.preprocessing, threads, compiled=True)] if options.compiled else []),
        *variant_runners(bundle, variant_device, threads, progress),
    ]
    progress.step("measuring")
    try:
        with _torch_threads(threads):
            rows = measure_latency(runners, options.batches, options.seconds, progress)
    except torch.OutOfMemoryError:
        raise UsageError(
            f"a batch of {max(options.batches)} does not fit into the GPU's memory: give a smaller --batch"
        ) from None
    result = Profile(complexity=counts.record(), latency=tuple(rows), machine=machine.replace(busy_cores=busy))
    update_bundle(path, Manifest(profile=result, environment=environment("profile")), expect=bundle)
    return result


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
