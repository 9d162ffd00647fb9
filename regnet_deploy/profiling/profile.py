"""Profiles a bundle: counts and closed form, latencies, machine; writes the part ``profile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.models.weights import load_model
from regnet_deploy.profiling.counts import count
from regnet_deploy.profiling.latency import ROUNDS, measure_latency
from regnet_deploy.profiling.machine import busy_cores, describe_machine, environment
from regnet_deploy.profiling.memory_limit import check_memory
from regnet_deploy.profiling.runners import pick_device, torch_runner, variant_runners
from regnet_deploy.runtimes.runtime import Device
from regnet_deploy.space.network import Network

#: Cores that other programs may keep busy without a word.
_BUSY = 0.3


@dataclass(frozen=True)
class ProfileOptions:
    """What to measure.

    Attributes:
        batches: images an inference.
        seconds: measured for each runtime and batch size, warm-up not counted.
        threads: of the CPU; None takes every core that this process may use.
        device: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
    """

    batches: tuple[int, ...]
    seconds: float
    threads: int | None
    device: Device


def profile(
    path: str | Path, plan: ProfileOptions, note: Callable[[str], None], progress: Callable[[int, str], None]
) -> dict[str, Any]:
    """Profile the bundle at ``path``, write the part ``profile`` and return it.

    Args:
        path: folder of the bundle.
        plan: what to measure.
        note: is told, in a line, what is not measured and why.
        progress: is told, before each step, how many steps there are and what this one is.

    Raises:
        BundleError: missing, damaged, changed meanwhile or not writable.
        UsageError: the device is not there, or a batch does not fit into its memory.
        ProofError: the counts are not those of the closed form.
    """
    bundle = open_bundle(path)
    architecture = bundle.part("architecture")
    network, classes = Network.from_json(architecture), architecture["classes"]
    resolution = Preprocessing.from_json(bundle.part("preprocessing")).crop
    machine, device = describe_machine(), pick_device(plan.device)
    threads = plan.threads or machine.cores
    if device.type == "cpu":
        check_memory(network, resolution, max(plan.batches), machine.memory_bytes)
    busy = busy_cores()
    if busy is not None and busy > _BUSY:
        note(f"other programs keep {busy:.1f} of {machine.cores} cores busy: expect slower and unsteady latencies")
    model = load_model(bundle)
    counts = count(model, network, resolution, classes)
    # auto: each variant where it is served, and its rows say where: PyTorch may see no GPU that an engine runs on, and
    # the CPU build of ONNX Runtime none that PyTorch sees.
    by: Device = "auto" if plan.device == "cuda" else plan.device
    contenders = [
        torch_runner(model, device, resolution, threads),
        *variant_runners(bundle, by, resolution, threads, note),
    ]
    steps = len(plan.batches) * len(contenders) * (1 + ROUNDS)
    try:
        with _torch_threads(threads):
            rows = measure_latency(contenders, plan.batches, plan.seconds, lambda what: progress(steps, what))
    except torch.OutOfMemoryError:
        raise UsageError(
            f"a batch of {max(plan.batches)} does not fit into the GPU's memory: give a smaller --batch"
        ) from None
    part = {
        "complexity": counts.to_json(),
        "latency": [row.to_json() for row in rows],
        "machine": {**machine.to_json(), "busy_cores": busy},
    }
    update_bundle(path, {"profile": part, "environment": environment("profile")}, expect=bundle)
    return part


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
