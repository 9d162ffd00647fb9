"""Builds TensorRT engines from ONNX files, and checks the types in which they compute.

One path serves TensorRT 10.9 to 11 and TensorRT-RTX. Engines are strongly typed: they compute in the types of the ONNX
file. Version 11 and TensorRT-RTX have no other mode, so no precision flag is set for version 10 either. Flags are found
by name, because their numbers differ between versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.engine_options import FP8_FROM, EngineOptions, capability, rtx_capabilities
from regnet_deploy.bundle.variants import Engine, EngineIdentity, OnnxVariant
from regnet_deploy.engines.builder_log import BuilderLog, BuildMonitor, build_error, record_errors
from regnet_deploy.engines.bundle_engines import engine_file, find_engine_variant
from regnet_deploy.engines.gpu import Gpu, free_memory
from regnet_deploy.engines.identity import engine_unsupported_reason, identify
from regnet_deploy.engines.inspection import Layer, check_types, is_squeeze_excitation, layers_of_log
from regnet_deploy.engines.library import Library, lean_runtime, load_library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.engines.timing_cache import attach, cache_file, keep
from regnet_deploy.errors import UsageError
from regnet_deploy.progress import NoProgress, Progress

_UNPROVED = "built without a GPU and not proved: export --trt on a machine with an NVIDIA GPU builds and proves one"

_LEVELS = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, eq=False)
class EngineSource:
    """The network that an engine is built from, and how it is built.

    Attributes:
        variant: name of the variant of engines.
        onnx: ONNX file with one float32 input ``(batch, channels, side, side)``.
        side: height and width of the images, pixels.
        precision: its name.
        convolutions: name of each convolution -> the type that it has to compute in.
        options: of the build.
        calibration: digest of the calibration images of a quantized network.
        accept_unaccounted: accept an engine whose report does not name every convolution.
    """

    variant: str
    onnx: bytes
    side: int
    precision: str
    convolutions: Mapping[str, str]
    options: EngineOptions
    calibration: str | None = None
    accept_unaccounted: bool = False


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """An engine that was built on this machine.

    Attributes:
        engine: its record for the manifest, without a proof.
        plan: its bytes.
        session: runs it; None where this machine cannot.
    """

    engine: Engine
    plan: bytes
    session: EngineSession | None


@dataclass(frozen=True, eq=False)
class BuiltPlan:
    """A plan as the builder returned it.

    Attributes:
        plan: its bytes.
        layers: of TensorRT-RTX's log; None for TensorRT, whose log does not have the types of dynamic shapes.
    """

    plan: bytes
    layers: tuple[Layer, ...] | None


def build_engine(
    library: Library, gpu: Gpu | None, source: EngineSource, progress: Progress | None = None
) -> BuiltEngine:
    """Build an engine and check the types in which it computes.

    Args:
        library: builds it.
        gpu: of this machine, or None.
        source: what to build it from.
        progress: receives the phases of the build.

    Raises:
        UsageError: the library does not support an option, or the GPU has too little memory.
        ProofError: a convolution computes in another type than required, or in an unknown one.
        RegnetDeployError: the build fails, or the engine cannot be loaded; the message has the library's reason.
    """
    options, precision = source.options, source.precision
    if library.runtime == "tensorrt-rtx" and not options.compute_capabilities:
        options = options.replace(compute_capabilities=rtx_capabilities(precision))
    too_old = [
        one for one in options.compute_capabilities if precision.startswith("fp8") and capability(one) < FP8_FROM
    ]
    if too_old:
        raise UsageError(
            f"{source.variant} needs FP8, which compute capability {', '.join(too_old)} does not have: choose 8.9 or "
            "later"
        )
    identity = identify(hashlib.sha256(source.onnx).hexdigest(), precision, source.calibration, library, gpu, options)
    cache = cache_file(library, gpu) if gpu is not None else None
    built = build_plan(library, gpu, source.onnx, source.side, options, progress, timing_cache=cache)
    note = _UNPROVED if gpu is None else _unproved_reason(identity, library, gpu)
    session = None
    if gpu is not None and note is None:
        lean = lean_runtime(library.version) if options.version_compatible else None
        session = EngineSession(library, gpu, built.plan, options, lean=lean)
    layers = _layers(library, gpu, built, options, session)
    types = None
    if layers is not None:
        types = check_types(
            source.convolutions, layers, tf32=options.tf32, accept_unaccounted=source.accept_unaccounted
        )
    engine = Engine(
        key=identity.key,
        file=engine_file(source.variant, identity.key),
        bytes=len(built.plan),
        identity=identity,
        note=note,
        types=types.counts if types else None,
        unaccounted=types.unaccounted if types else None,
        wider=types.wider if types else None,
    )
    return BuiltEngine(engine, built.plan, session)


def _layers(
    library: Library, gpu: Gpu | None, built: BuiltPlan, options: EngineOptions, session: EngineSession | None
) -> tuple[Layer, ...] | None:
    """Return the layers of an engine with their types, or None where nothing tells them.

    The builder of TensorRT-RTX lists every layer, and its inspector may report several compiled layers as one.
    """
    if built.layers is not None or session is None or gpu is None:
        return built.layers
    if session.is_lean:  # it has no inspector; the runtime that built the engine has one, and needs no lean runtime
        return EngineSession(library, gpu, built.plan, options.replace(version_compatible=False)).layers()
    return session.layers()


def rebuild_engine(bundle: Bundle, name: str, gpu: Gpu | None, progress: Progress | None = None) -> BuiltEngine:
    """Build the engine of a variant for this machine, from the bundle's ONNX file, with the options of its last engine.

    Args:
        bundle: has the variant.
        name: of the variant.
        gpu: of this machine, or None.
        progress: receives the phases of the build.

    Raises:
        MissingExtra: the library is not installed.
        UsageError: no variant of engines has this name, or there is no GPU.
        BundleError: the ONNX file is damaged.
        ProofError: a convolution computes in another type than required.
        RegnetDeployError: the build fails.
    """
    variant = find_engine_variant(bundle, name)
    library = load_library(variant.runtime)
    if gpu is None:
        raise UsageError(
            f"an engine of {name} is built for the GPU that runs it, and the NVIDIA driver shows none here"
        )
    onnx = bundle.variants.get(variant.source)
    if not isinstance(onnx, OnnxVariant):
        raise UsageError(
            f"{name} cannot be built: {variant.source}, which it is built from, is not in {bundle.path}: "
            f"run `regnet-deploy export --trt{bundle.argument}`"
        )
    last = variant.engines[-1] if variant.engines else None
    options = last.identity.options if last else EngineOptions()
    if library.runtime == "tensorrt-rtx":
        built_for = options.compute_capabilities or rtx_capabilities(variant.precision)
        if gpu.compute_capability not in built_for:
            options = options.replace(compute_capabilities=(gpu.compute_capability,))
    # Unaccounted convolutions are accepted where they were accepted for the last engine.
    unaccounted = last.unaccounted if last else None
    source = EngineSource(
        variant=name,
        onnx=bundle.read(onnx.file),
        side=bundle.preprocessing.crop,
        precision=variant.precision,
        convolutions=variant.convolutions,
        options=options,
        calibration=onnx.calibration.digest if onnx.calibration else None,
        accept_unaccounted=unaccounted is not None and not all(map(is_squeeze_excitation, unaccounted)),
    )
    return build_engine(library, gpu, source, progress)


def build_plan(
    library: Library,
    gpu: Gpu | None,
    onnx: bytes,
    side: int,
    options: EngineOptions,
    progress: Progress | None = None,
    *,
    timing_cache: Path | None = None,
) -> BuiltPlan:
    """Build a plan for the batch sizes of the options and images ``(channels, side, side)``; its types are not checked.

    Args:
        library: builds it.
        gpu: on which TensorRT builds; TensorRT-RTX needs none.
        onnx: ONNX file with one float32 input ``(batch, channels, side, side)``.
        side: height and width of the images, pixels.
        options: of the build.
        progress: receives the phases of the build, from other threads, and a message if the timing cache cannot be
            used.
        timing_cache: file of :func:`regnet_deploy.engines.timing_cache.cache_file`, or None. TensorRT-RTX does not
            measure kernels and has no such cache.

    Raises:
        UsageError: the library does not support an option, or the GPU has too little memory.
        RegnetDeployError: the file cannot be parsed (with the names of the nodes), or the build fails (with TensorRT's
            reason).
        KeyboardInterrupt: Ctrl-C; the build is cancelled first.
    """
    progress = progress or NoProgress()
    options = options.suited_to(library.runtime)
    trt = library.module
    log = BuilderLog(trt)
    try:
        builder = trt.Builder(log.logger)
    except TypeError:  # raised by the Python binding if the driver cannot be used
        raise build_error(library, "does not start", log.errors, gpu) from None
    # TensorRT 10 has this flag; version 11 always types strongly and deprecates it.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{error.node_name() or 'the file'}: {error.desc()}" for error in errors]
        raise build_error(library, "does not parse the network", reasons, gpu)
    if gpu is not None and library.runtime == "tensorrt":
        _ensure_memory(gpu, len(onnx) + options.max_batch * network.get_input(0).shape[1] * side * side * 4, options)
    config = _build_config(library, builder, network, side, options)
    if library.runtime != "tensorrt":  # TensorRT-RTX would look for a GPU
        timing_cache = None
    cache = attach(config, timing_cache, progress) if timing_cache is not None else None
    monitor = BuildMonitor(trt, progress)
    config.progress_monitor = monitor.hook
    with record_errors(builder, log):
        plan = _run_in_thread(lambda: builder.build_serialized_network(network, config), monitor)
    if plan is None:
        raise build_error(library, "does not build the network", log.errors, gpu)
    if timing_cache is not None:
        keep(config, cache, timing_cache, progress)
    # TensorRT lists layers in its log too, but with a dynamic batch size it has "N/A due to dynamic shapes" for types.
    listed = log.layers if library.runtime == "tensorrt-rtx" else None
    return BuiltPlan(bytes(plan), layers_of_log(listed) if listed else None)


def _unproved_reason(identity: EngineIdentity, library: Library, gpu: Gpu) -> str | None:
    """Return why an engine cannot be proved on this machine: TensorRT-RTX also builds for other GPUs."""
    reason = engine_unsupported_reason(identity, library, gpu)
    return reason and f"not proved: {reason}"


def _build_config(library: Library, builder: Any, network: Any, side: int, options: EngineOptions) -> Any:
    """Return the builder's configuration."""
    trt = library.module
    config = builder.create_builder_config()
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # or factors are rounded to 10 bits
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the types cannot be read back
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        # The lean runtime is not embedded: loading code from a plan needs engine_host_code_allowed. Another version of
        # TensorRT takes the lean runtime from its own wheel.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatible is not None:
        level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[options.hardware_compatible])
        config.hardware_compatibility_level = level
    if library.runtime == "tensorrt-rtx":
        _set_targets(library, config, options.compute_capabilities)
        user_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if user_allocation is not None:
            config.set_flag(user_allocation)  # the engine allocates no memory at run time, so graphs can be captured
    name, channels = network.get_input(0).name, network.get_input(0).shape[1]
    shapes = builder.create_optimization_profile()
    batches = (options.min_batch, options.tuned_batch, options.max_batch)
    shapes.set_shape(name, *((batch, channels, side, side) for batch in batches))
    config.add_optimization_profile(shapes)
    return config


def _set_targets(library: Library, config: Any, capabilities: tuple[str, ...]) -> None:
    """Set the GPUs for which TensorRT-RTX builds."""
    known = library.module.ComputeCapability.__members__
    config.num_compute_capabilities = len(capabilities)
    for index, each in enumerate(capabilities):
        name = f"SM{each.replace('.', '')}"
        if name not in known:
            supported = ", ".join(f"{one[2:-1]}.{one[-1]}" for one in known if one.startswith("SM"))
            raise UsageError(f"{library} does not build for compute capability {each}; it builds for {supported}")
        if not config.set_compute_capability(known[name], index):
            raise UsageError(
                f"{library} does not build for compute capability {', '.join(capabilities)} at once: choose fewer"
            )


def _ensure_memory(gpu: Gpu, needed: int, options: EngineOptions) -> None:
    """Raise UsageError if the weights and one batch of images do not fit into the GPU's free memory."""
    free = free_memory()
    if free is not None and free < needed:
        raise UsageError(
            f"{gpu.name} has {free / 2**20:.0f} MiB of its {gpu.memory_bytes / 2**20:.0f} MiB free and the weights "
            f"and a batch of {options.max_batch} images alone are {needed / 2**20:.0f} MiB: stop other programs on it, "
            "or use a smaller maximum batch"
        )


def _run_in_thread(work: Callable[[], Any], monitor: BuildMonitor) -> Any:
    """Run a build in another thread, so that Ctrl-C reaches this one; the build then ends at its next step."""
    with ThreadPoolExecutor(1) as pool:
        try:
            result = pool.submit(work).result()
        except BaseException:
            monitor.cancelled = True
            raise
    if monitor.raised is not None:
        raise monitor.raised
    return result
