"""Builds an engine from an ONNX file: build, load where there is a GPU, check of the types that it computes in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.engine_options import FP8_FROM, EngineOptions, capability, rtx_capabilities
from regnet_deploy.bundle.variants import Engine, EngineIdentity, OnnxVariant
from regnet_deploy.engines.bundle_engines import engine_file, find_engine_variant
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.identity import engine_unsupported_reason, identify
from regnet_deploy.engines.inspection import check_types, is_squeeze_excitation
from regnet_deploy.engines.library import Library, lean_runtime, load_library
from regnet_deploy.engines.plan_builder import Progress, build_plan
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.engines.timing_cache import cache_file
from regnet_deploy.errors import UsageError

_UNPROVED = (
    "built without a GPU and not proved: `regnet-deploy export --trt` on a machine with an NVIDIA GPU builds and "
    "proves one"
)


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """An engine that was built here.

    Attributes:
        engine: its entry in the manifest, not proved yet.
        plan: its bytes.
        session: of it, where there is a GPU.
    """

    engine: Engine
    plan: bytes
    session: EngineSession | None


def build_engine(
    library: Library,
    gpu: Gpu | None,
    name: str,
    onnx: bytes,
    precision: str,
    calibration: str | None,
    convolutions: Mapping[str, str],
    side: int,
    options: EngineOptions,
    progress: Progress,
    note: Callable[[str], None] = lambda line: None,
    *,
    accept_unaccounted: bool = False,
) -> BuiltEngine:
    """Build an engine, and see that it computes in the types that were asked for.

    Args:
        library: that builds.
        gpu: of this machine, or None.
        name: of the variant.
        onnx: the file to build from.
        precision: its name.
        calibration: digest of the images that a quantized one was calibrated with.
        convolutions: in which type each must compute.
        side: height and width of the images, pixels.
        options: of the build.
        progress: is told the phases of the build.
        note: is told what did not work and is not needed, in a line.
        accept_unaccounted: take an engine whose report does not name every convolution.

    Raises:
        UsageError: an option does not fit the library, or the GPU has too little memory.
        ProofError: a convolution computes in another type than asked, or in which one is not known.
        RegnetDeployError: the build fails, or the engine does not load; the message has the library's reason.
    """
    if library.runtime == "tensorrt-rtx" and not options.compute_capabilities:
        options = options.replace(compute_capabilities=rtx_capabilities(precision))
    too_old = [
        one for one in options.compute_capabilities if precision.startswith("fp8") and capability(one) < FP8_FROM
    ]
    if too_old:
        raise UsageError(f"{name} needs compute capability 8.9 or later, where FP8 begins, not {', '.join(too_old)}")
    identity = identify(hashlib.sha256(onnx).hexdigest(), precision, calibration, library, gpu, options)
    cache = cache_file(library, gpu) if gpu is not None else None
    built = build_plan(library, gpu, onnx, side, options, progress, timing_cache=cache, note=note)
    elsewhere = _UNPROVED if gpu is None else _not_here(identity, library, gpu)
    session = None
    if gpu is not None and elsewhere is None:
        lean = lean_runtime(library.version) if options.version_compatible else None
        session = EngineSession(library, gpu, built.plan, options, lean=lean)
    # A builder that lists its layers lists them whole; the inspector may sum up what it compiled as one.
    layers = built.layers if built.layers is not None or session is None else session.layers()
    checked = None
    if layers is not None:
        checked = check_types(convolutions, layers, tf32=options.tf32, accept_unaccounted=accept_unaccounted)
    engine = Engine(
        key=identity.key,
        file=engine_file(name, identity.key),
        bytes=len(built.plan),
        identity=identity,
        note=elsewhere,
        types=checked.counts if checked else None,
        unaccounted=checked.unaccounted if checked else None,
        wider=checked.wider if checked else None,
    )
    return BuiltEngine(engine, built.plan, session)


def _not_here(identity: EngineIdentity, library: Library, gpu: Gpu) -> str | None:
    """Return why an engine that was built here does not run here: TensorRT-RTX builds for other GPUs than this one."""
    reason = engine_unsupported_reason(identity, library, gpu)
    return reason and f"not proved: {reason}"


def rebuild_engine(
    bundle: Bundle, name: str, gpu: Gpu | None, progress: Progress, note: Callable[[str], None] = lambda line: None
) -> BuiltEngine:
    """Build the engine of a variant for this machine, from the ONNX file that the bundle has, as others were built.

    Raises:
        MissingExtra: its library is not installed.
        UsageError: no variant of engines has this name, or there is no GPU.
        BundleError: the ONNX file is damaged.
        ProofError: a convolution computes in another type than asked.
        RegnetDeployError: the build fails.
    """
    variant = find_engine_variant(bundle, name)
    library = load_library(variant.runtime)
    if gpu is None:
        raise UsageError(
            f"an engine of {name} is built for the GPU that runs it, and the NVIDIA driver shows none here"
        )
    source = bundle.variants.get(variant.source)
    if not isinstance(source, OnnxVariant):
        raise UsageError(
            f"{name} cannot be built: {variant.source}, which it is built from, is not in {bundle.path}: "
            "run `regnet-deploy export --trt`"
        )
    last = variant.engines[-1] if variant.engines else None
    options = last.identity.options if last else EngineOptions()
    if library.runtime == "tensorrt-rtx":
        built_for = options.compute_capabilities or rtx_capabilities(variant.precision)
        if gpu.compute_capability not in built_for:
            options = options.replace(compute_capabilities=(gpu.compute_capability,))
    # Whether all convolutions have to be accounted for is as it was for the others, too.
    unaccounted = last.unaccounted if last else None
    accepted = unaccounted is not None and not all(map(is_squeeze_excitation, unaccounted))
    return build_engine(
        library,
        gpu,
        name,
        bundle.read(source.file),
        variant.precision,
        source.calibration.digest if source.calibration else None,
        variant.convolutions,
        bundle.preprocessing.crop,
        options,
        progress,
        note,
        accept_unaccounted=accepted,
    )
