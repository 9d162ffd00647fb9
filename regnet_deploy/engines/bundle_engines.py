"""Engines in a bundle: a variant has one engine for each kind of machine; this module finds the one for this machine.

A variant of engines records the ONNX variant that they are built from; each engine is a plan among the bundle's files.
An engine is only used with the ONNX file that it was built from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import Engine, EngineIdentity, EngineVariant, OnnxVariant, Variant
from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.engines.identity import engine_unsupported_reason
from regnet_deploy.engines.library import EngineRuntime, Library, lean_runtime, load_library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.errors import RegnetDeployError, UsageError, did_you_mean


@dataclass(frozen=True, eq=False)
class StoredEngine:
    """An engine of a variant.

    Attributes:
        engine: its record in the manifest.
        unsupported_reason: why it does not run on this machine, in one line; None if it does.
    """

    engine: Engine
    unsupported_reason: str | None

    @property
    def identity(self) -> EngineIdentity:
        """What it was built from and for which GPU."""
        return self.engine.identity

    @property
    def file(self) -> str:
        """Logical name of its plan."""
        return self.engine.file

    @property
    def is_proved(self) -> bool:
        """Whether it was proved to agree with the trained model."""
        return self.engine.is_proved


def engine_file(variant: str, key: str) -> str:
    """Return the logical name of a plan."""
    return f"{variant}-{key[:12]}.plan"


def unused_plans(bundle: Bundle, variants: Mapping[str, Variant]) -> tuple[str, ...]:
    """Return the logical names of the bundle's plans that neither these variants nor unknown ones have."""
    used = {one.file for variant in variants.values() if isinstance(variant, EngineVariant) for one in variant.engines}
    unknown = tuple(f"{name}-" for name in bundle.unknown_variants)
    plans = (name for name in bundle.files if name.endswith(".plan") and not name.startswith(unknown))
    return tuple(sorted(name for name in plans if name not in used))


def engine_variants(bundle: Bundle) -> dict[str, EngineVariant]:
    """Return the bundle's variants of engines by name; empty before export."""
    return {name: one for name, one in bundle.manifest.variants.items() if isinstance(one, EngineVariant)}


def find_engine_variant(bundle: Bundle, name: str) -> EngineVariant:
    """Return a variant of engines.

    Raises:
        UsageError: no variant of engines has this name.
    """
    variants = engine_variants(bundle)
    if name not in variants:
        known = f"there are {', '.join(variants)}" if variants else f"run `regnet-deploy export --trt{bundle.argument}`"
        raise UsageError(f"{bundle.path} has no engines {name!r}{did_you_mean(name, variants)}; {known}")
    return variants[name]


def fits(bundle: Bundle, name: str, library: Library | str, gpu: Gpu | None) -> list[StoredEngine]:
    """Return the engines of a variant, each with the reason why it does not run here.

    Args:
        bundle: has the variant.
        name: of the variant.
        library: of the variant's runtime, or why it is not available: from :func:`library_here`.
        gpu: of this machine, or None.

    Raises:
        UsageError: no variant of engines has this name.
    """
    variant = find_engine_variant(bundle, name)
    found = []
    for engine in variant.engines:
        reason = _stale(bundle, variant, engine.identity)
        if reason is None:
            reason = library if isinstance(library, str) else engine_unsupported_reason(engine.identity, library, gpu)
        found.append(StoredEngine(engine, reason))
    return found


def fitting_engine(bundle: Bundle, name: str, library: Library | str, gpu: Gpu | None) -> StoredEngine | None:
    """Return the engine of a variant that runs here, or None: proved engines first, then the latest.

    Raises:
        UsageError: no variant of engines has this name.
    """
    fitting = [engine for engine in fits(bundle, name, library, gpu) if engine.unsupported_reason is None]
    return max(reversed(fitting), key=lambda engine: engine.is_proved, default=None)


def no_engine_reason(bundle: Bundle, name: str) -> str | None:
    """Return in one line why no engine of a variant runs on this machine, or None if one does.

    Raises:
        UsageError: no variant of engines has this name.
    """
    runtime = find_engine_variant(bundle, name).runtime
    engines = fits(bundle, name, library_here(runtime), find_gpu())
    if any(engine.unsupported_reason is None for engine in engines):
        return None
    reasons = list(dict.fromkeys(str(engine.unsupported_reason) for engine in engines))
    more = f" (and {len(reasons) - 2} more reasons)" if len(reasons) > 2 else ""
    return f"{'; '.join(reasons[:2])}{more}" if reasons else "it has no engine"


def open_engine(bundle: Bundle, name: str) -> EngineSession:
    """Open the engine of a variant for this machine; its sha256 is checked before it is loaded.

    Raises:
        MissingExtra: its library is not installed.
        UsageError: no variant of engines has this name, or none of its engines runs here; the message says why.
        BundleError: the plan is damaged.
        RegnetDeployError: the engine cannot be loaded.
    """
    runtime = find_engine_variant(bundle, name).runtime
    library, gpu = load_library(runtime), find_gpu()
    engine = fitting_engine(bundle, name, library, gpu)
    if engine is None or gpu is None:
        raise UsageError(
            f"no engine of {name} runs here: {no_engine_reason(bundle, name)}; "
            f"`regnet-deploy export --trt{bundle.argument}` builds one for this machine"
        )
    identity = engine.identity
    lean = lean_runtime(identity.version) if identity.options.version_compatible else None
    return EngineSession(library, gpu, bundle.read(engine.file), identity.options, lean=lean)


def library_here(runtime: EngineRuntime) -> Library | str:
    """Return the library of a runtime, or in one line why it is not available."""
    try:
        return load_library(runtime)
    except RegnetDeployError as error:
        return str(error)


def missing_engine_error(bundle: Bundle, file: str) -> str | None:
    """Return a message if a plan is missing or has another size, else None; its bytes are checked when it is loaded."""
    stored = bundle.files.get(file)
    try:
        size = None if stored is None else bundle.stored_path(file).stat().st_size
    except OSError:
        size = None
    if stored is None or size is None:
        return f"its file {file} is missing: `regnet-deploy export --trt{bundle.argument}` builds it again"
    if size != stored.bytes:
        return (
            f"its file {file} is damaged, {size} bytes of {stored.bytes}: "
            f"`regnet-deploy export --trt{bundle.argument}` builds it again"
        )
    return None


def _stale(bundle: Bundle, variant: EngineVariant, identity: EngineIdentity) -> str | None:
    """Return why an engine does not belong to the ONNX file in the bundle, or None."""
    source = bundle.manifest.variants.get(variant.source)
    stored = bundle.files.get(source.file) if isinstance(source, OnnxVariant) else None
    if stored is None:
        return f"{variant.source}, which it was built from, is not in the bundle any more"
    if stored.sha256 != identity.onnx_sha256:
        return (
            f"it was built from another {variant.source} ({identity.onnx_sha256[:12]}) than the bundle has now "
            f"({stored.sha256[:12]})"
        )
    return None
