"""Engines from ONNX files: one path for TensorRT 10.9 to 11 and TensorRT-RTX.

Strongly typed: the engine computes in the types that the file has. Version 11 and TensorRT-RTX know nothing else, so no
flag of a precision is set for version 10 either, and flags are looked up by name, for their numbers changed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.builder_log import BuilderLog, BuildProgress, Progress, failure, record_log
from regnet_deploy.engines.gpu import Gpu, free_memory
from regnet_deploy.engines.inspection import Layer, layers_of_log
from regnet_deploy.engines.library import Library
from regnet_deploy.engines.timing_cache import attach, keep
from regnet_deploy.errors import UsageError

__all__ = ["BuildResult", "Progress", "build_plan"]

_LEVELS = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, eq=False)
class BuildResult:
    """An engine as its builder gave it.

    Attributes:
        plan: the bytes.
        layers: as the builder listed them where it does (TensorRT-RTX); else None, and
            :func:`regnet_deploy.engines.inspection.inspect_engine` reads them from the plan.
    """

    plan: bytes
    layers: tuple[Layer, ...] | None


def build_plan(
    library: Library,
    gpu: Gpu | None,
    onnx: bytes,
    side: int,
    options: EngineOptions,
    progress: Progress,
    *,
    timing_cache: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> BuildResult:
    """Build an engine for the batches that the options name, of images of ``side`` pixels a side.

    Args:
        library: that builds.
        gpu: that TensorRT builds on; TensorRT-RTX needs none.
        onnx: an ONNX file with one float32 input ``(batch, 3, side, side)``.
        side: height and width of the images, pixels.
        options: of the build.
        progress: is told how many steps the phase that begins has, and its name; from other threads.
        timing_cache: file of :func:`regnet_deploy.engines.timing_cache.cache_file`, or None for none. TensorRT-RTX
            times no kernel and uses none.
        note: is told in one line what did not work but is not needed.

    Raises:
        UsageError: an option is not one of the library's, or the GPU has too little memory.
        RegnetDeployError: the file is not parsed (with the nodes' names) or the build fails (with TensorRT's reason).
        KeyboardInterrupt: Ctrl-C; the build is ended first.
    """
    options = options.suited_to(library.runtime)
    if gpu is not None and library.runtime == "tensorrt":
        _ensure_memory(gpu, onnx, side, options)
    trt = library.module
    heard = BuilderLog(trt)
    try:
        builder = trt.Builder(heard.logger)
    except TypeError:  # what its binding makes of a driver that cannot be used
        raise failure(library, "does not start", heard.errors, gpu) from None
    # A flag of TensorRT 10; version 11 knows nothing but strong typing and deprecates it.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, heard.logger)
    if not parser.parse(onnx):
        reasons = [parser.get_error(i) for i in range(parser.num_errors)]
        named = [f"{reason.node_name() or 'the file'}: {reason.desc()}" for reason in reasons]
        raise failure(library, "does not parse the network", named, gpu)
    config = _configured(library, builder, network, side, options)
    uses_cache = timing_cache is not None and library.runtime == "tensorrt"  # RTX would look for a GPU
    cache = attach(config, timing_cache, note) if uses_cache and timing_cache else None
    monitor = BuildProgress(trt, progress)
    config.progress_monitor = monitor.hook
    with record_log(builder, heard):
        plan = _in_a_thread(lambda: builder.build_serialized_network(network, config), monitor)
    if plan is None:
        raise failure(library, "does not build the network", heard.errors, gpu)
    if cache is not None and timing_cache is not None:
        keep(config, cache, timing_cache, note)
    return BuildResult(bytes(plan), layers_of_log(heard.layers) if heard.layers else None)


def _configured(library: Library, builder: Any, network: Any, side: int, options: EngineOptions) -> Any:
    """Return the builder's configuration."""
    trt = library.module
    config = builder.create_builder_config()
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is meant, not float32 rounded to 10 bits
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the types cannot be read back
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        # The lean runtime stays out of the plan: it would be code that the plan brings along, and loading it would
        # need engine_host_code_allowed. Another version runs the plan with the lean runtime's own package.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatible is not None:
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[options.hardware_compatible])
        config.hardware_compatibility_level = level
    if library.runtime == "tensorrt-rtx":
        _set_targets(library, config, options.compute_capabilities)
        ours = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if ours is not None:
            config.set_flag(ours)  # no memory is taken while it runs, so that it can be captured
    name = network.get_input(0).name
    shapes = builder.create_optimization_profile()
    batches = (options.min_batch, options.tuned_batch, options.max_batch)
    shapes.set_shape(name, *((batch, 3, side, side) for batch in batches))
    config.add_optimization_profile(shapes)
    return config


def _set_targets(library: Library, config: Any, capabilities: tuple[str, ...]) -> None:
    """Tell TensorRT-RTX which GPUs to build for."""
    known = library.module.ComputeCapability.__members__
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        if name not in known:
            there = ", ".join(f"{one[2:-1]}.{one[-1]}" for one in known if one.startswith("SM"))
            raise UsageError(f"{library} does not build for compute capability {capability}, it does for {there}")
        if not config.set_compute_capability(known[name], index):
            raise UsageError(
                f"{library} does not build for compute capability {', '.join(capabilities)} at once: choose fewer"
            )


def _ensure_memory(gpu: Gpu, onnx: bytes, side: int, options: EngineOptions) -> None:
    """Refuse a build that cannot end well: not even the weights and one batch of images fit into what is free."""
    free = free_memory()
    needed = len(onnx) + options.max_batch * 3 * side * side * 4
    if free is not None and free < needed:
        raise UsageError(
            f"{gpu.name} has {free / 2**20:.0f} MiB of its {gpu.memory_bytes / 2**20:.0f} MiB free and the weights "
            f"and a batch of {options.max_batch} images alone are {needed / 2**20:.0f} MiB: end what else runs on it, "
            "or use a smaller largest batch"
        )


def _in_a_thread(work: Callable[[], Any], monitor: BuildProgress) -> Any:
    """Run a build in a thread of its own, so that Ctrl-C reaches this one; the build then ends at its next step."""
    with ThreadPoolExecutor(1) as pool:
        try:
            result = pool.submit(work).result()
        except BaseException:
            monitor.cancelled = True
            raise
    if monitor.raised is not None:
        raise monitor.raised
    return result
