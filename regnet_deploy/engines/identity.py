"""The identity of an engine: everything that can change it, and whether it runs on a machine.

The bytes of a plan differ from build to build, because kernels are chosen by measured time. An engine is therefore
identified by the inputs of its build.
"""

from __future__ import annotations

import platform

from regnet_deploy.bundle.engine_options import EngineOptions, capability
from regnet_deploy.bundle.variants import EngineIdentity
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library, lean_runtime, lean_wheel, version_numbers
from regnet_deploy.errors import UsageError


def identify(
    onnx_sha256: str,
    precision: str,
    calibration: str | None,
    library: Library,
    gpu: Gpu | None,
    options: EngineOptions,
) -> EngineIdentity:
    """Return the identity of the engine that :func:`regnet_deploy.engines.engine_builder.build_plan` would build here.

    Raises:
        UsageError: the runtime does not support an option, or it is TensorRT and there is no GPU.
    """
    options = options.suited_to(library.runtime)
    here = None
    if library.runtime == "tensorrt":
        if gpu is None:
            raise UsageError("tensorrt builds on the GPU that will run the engine, and the NVIDIA driver shows none")
        here = gpu
    return EngineIdentity(
        onnx_sha256=onnx_sha256,
        precision=precision,
        calibration=calibration,
        runtime=library.runtime,
        version=library.version,
        toolkit=library.toolkit,
        gpu=here.name if here else None,
        compute_capability=here.compute_capability if here else None,
        multiprocessors=here.multiprocessors if here else None,
        driver=here.driver if here else None,
        cuda=here.cuda if here else None,
        system=this_system(),
        options=options,
    )


def this_system() -> str:
    """Return the operating system and architecture, such as ``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def engine_unsupported_reason(identity: EngineIdentity, library: Library, gpu: Gpu | None) -> str | None:
    """Return why an engine does not run on this machine, with the value required and the one here; None if it runs.

    Args:
        identity: of the engine.
        library: installed library of the engine's runtime.
        gpu: of this machine, or None.
    """
    if identity.runtime != library.runtime:
        return f"it is an engine of {identity.runtime} and not of {library.runtime}"
    if gpu is None:
        return f"it is a {identity.runtime} engine and the NVIDIA driver shows no GPU"
    if identity.system != this_system():
        return f"it was built on {identity.system} and this is {this_system()}"
    return _other_version(identity, library) or _other_gpu(identity, gpu)


def _other_version(identity: EngineIdentity, library: Library) -> str | None:
    if identity.version == library.version:
        return None
    reason = f"it was built by {identity.builder} and this machine has {library}"
    if not identity.options.version_compatible:
        return reason
    if version_numbers(library.version) < version_numbers(identity.version):
        return f"{reason}: a version-compatible engine runs on later versions, not on earlier ones"
    if lean_runtime(identity.version) is None:
        return f"{reason}: it needs {lean_wheel(identity.version, identity.toolkit)}"
    return None


def _other_gpu(identity: EngineIdentity, gpu: Gpu) -> str | None:
    here = gpu.compute_capability
    if identity.runtime == "tensorrt-rtx":
        fits = here in identity.compute_capabilities
    elif identity.options.hardware_compatible == "ampere+":
        fits = capability(here) >= (8, 0)
    elif identity.options.hardware_compatible == "same-compute-capability":
        fits = here == identity.compute_capability
    else:
        fits = (identity.gpu, identity.compute_capability, identity.multiprocessors) == (
            gpu.name,
            here,
            gpu.multiprocessors,
        )
    if fits:
        return None
    return (
        f"it was built for {identity.built_for} and this machine has {gpu.name} "
        f"(compute capability {here}, {gpu.multiprocessors} multiprocessors)"
    )
