"""What an engine is made from and for: everything that can change it, and whether it fits a machine.

A plan's bytes differ from build to build, for kernels are chosen by the clock; so an engine is known by what went in.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import RUNTIMES, Library, Runtime, lean_runtime, lean_wheel, version_numbers
from regnet_deploy.engines.options import RTX_DEFAULT, EngineOptions, capability
from regnet_deploy.errors import BundleError, UsageError


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine is made from and for.

    The driver and CUDA are part of the key, for a builder may choose otherwise with others; they are no part of the
    fit, for an engine outlives an update of the driver.

    Attributes:
        onnx_sha256: of the ONNX file, weights and all.
        precision: its name.
        calibration: digest of the images that gave the ranges of a quantised one, or None.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the runtime, in full.
        toolkit: CUDA that its wheel was compiled for, such as ``cu13``, or None.
        gpu: name of the GPU; None where the engine was built for several kinds, as all fields of the GPU then.
        compute_capability: such as ``9.0``.
        multiprocessors: how many streaming multiprocessors it has.
        driver: version of its driver.
        cuda: newest CUDA of the driver.
        system: operating system and architecture, such as ``linux-x86_64``.
        options: of the build.
    """

    onnx_sha256: str
    precision: str
    calibration: str | None
    runtime: Runtime
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
        """The sha256 of all of it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def builder(self) -> str:
        """What built it, such as ``tensorrt 11.4.0.106``."""
        return f"{self.runtime} {self.version}"

    @property
    def made_for(self) -> str:
        """The GPUs that it runs on, in words."""
        if self.runtime == "tensorrt-rtx":
            return f"compute capability {', '.join(self._capabilities)}"
        if self.options.hardware_compatible == "ampere+":
            return "compute capability 8.0 and later"
        if self.options.hardware_compatible == "same-compute-capability":
            return f"compute capability {self.compute_capability}"
        return f"{self.gpu} (compute capability {self.compute_capability}, {self.multiprocessors} multiprocessors)"

    @property
    def _capabilities(self) -> tuple[str, ...]:
        return self.options.compute_capabilities or RTX_DEFAULT

    def differences(self, other: EngineIdentity) -> dict[str, tuple[Any, Any]]:
        """Return what differs, by name: this one's value and the other's; options as ``options.max_batch``."""
        mine, others = _flat(self), _flat(other)
        return {name: (mine[name], others[name]) for name in mine if mine[name] != others[name]}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {**asdict(self), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> EngineIdentity:
        """Return the identity that :meth:`to_json` wrote.

        Raises:
            BundleError: it was not written by it, or by a version that knows more.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != names or data["runtime"] not in RUNTIMES:
            raise BundleError("an engine's identity was written by another version: export it again")
        try:
            return cls(**{**data, "options": EngineOptions.from_json(data["options"])})
        except (UsageError, TypeError, AttributeError) as error:
            raise BundleError(f"an engine's identity cannot be read: {error}; export it again") from None


def identify(
    onnx_sha256: str,
    precision: str,
    calibration: str | None,
    library: Library,
    gpu: Gpu | None,
    options: EngineOptions,
) -> EngineIdentity:
    """Return the identity of the engine that :func:`regnet_deploy.engines.plan_builder.build_plan` would build here.

    Raises:
        UsageError: an option is not one of the runtime's, or it is TensorRT and there is no GPU.
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
    """Return operating system and architecture, such as ``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def engine_unsupported_reason(identity: EngineIdentity, library: Library, gpu: Gpu | None) -> str | None:
    """Return the first thing that keeps an engine from running on this machine, with both values; None: it fits.

    Args:
        identity: of the engine.
        library: of the engine's runtime, as it is installed here.
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
        fits = here in identity._capabilities
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
        f"it was built for {identity.made_for} and this machine has {gpu.name} "
        f"(compute capability {here}, {gpu.multiprocessors} multiprocessors)"
    )


def _flat(identity: EngineIdentity) -> dict[str, Any]:
    data = identity.to_json()
    options = cast("dict[str, Any]", data.pop("options"))
    return {**data, **{f"options.{name}": value for name, value in options.items()}}
