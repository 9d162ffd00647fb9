"""Chooses the exported variant that runs when the user names none."""

from __future__ import annotations

import math
from collections.abc import Collection

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import EngineVariant, OnnxVariant, OpenvinoVariant, Proof
from regnet_deploy.cpu import int8_sums_saturate
from regnet_deploy.engines.bundle_engines import fitting_engine, library_here
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.gates import GATES, is_standard
from regnet_deploy.runtimes.runtime import Device, Runtime, check_runtime, find_variant, runtime_unsupported_reason


def default_variant(
    bundle: Bundle, requested: str | None = None, device: Device = "auto", runtime: Runtime = "auto"
) -> str:
    """Return the requested variant if it can be run, else the fastest proved variant that can.

    Raises:
        MissingPart: nothing has been exported.
        UsageError: the requested variant, or every variant, is not proved or cannot be run here (a variant that was
            proved with a looser gate than that of its precision has to be requested); or there is no such device or
            runtime, or they do not go together.
    """
    check_runtime(runtime, device)
    if requested is not None:
        reason = variant_unsupported_reason(bundle, requested, device, runtime)
        if reason:
            raise UsageError(f"variant {requested} of {bundle.path} cannot be served: {reason}")
        return requested
    variants = bundle.manifest.variants
    names = [*variants, *bundle.unknown_variants]
    if not names:
        raise MissingPart(
            f"{bundle.path} has no exported variants yet: run `regnet-deploy export --onnx{bundle.argument}`"
        )
    if runtime == "tensorrt":
        names = [name for name, variant in variants.items() if isinstance(variant, EngineVariant)]
        if not names:
            raise UsageError(
                f"--runtime tensorrt runs engines, and {bundle.path} has none: run `regnet-deploy export "
                f"--trt{bundle.argument}`, or choose --runtime onnxruntime"
            )
    reasons = {name: not_default_reason(bundle, name, device, runtime) for name in names}
    runnable = [name for name in names if reasons[name] is None]
    if not runnable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UsageError(f"no variant of {bundle.path} can be served - {listed}")
    speeds = _ms_per_image(bundle, runnable, by_openvino=runtime == "openvino")
    # Without measurements, the most precise one, which is the reference of all others.
    order = list(GATES)
    return min(
        runnable,
        key=lambda name: (speeds.get(name, math.inf), order.index(find_variant(bundle, name).precision), name),
    )


def not_default_reason(bundle: Bundle, name: str, device: Device = "auto", runtime: Runtime = "auto") -> str | None:
    """Return why a variant is not served here unless it is named, or not at all; None where it may be the default.

    Raises:
        UsageError: no variant has this name, or there is no such device or runtime, or they do not go together.
    """
    return variant_unsupported_reason(bundle, name, device, runtime) or _only_named_reason(bundle, name)


def variant_unsupported_reason(
    bundle: Bundle, name: str, device: Device = "auto", runtime: Runtime = "auto"
) -> str | None:
    """Return why a variant cannot be served on this machine, or None where it can.

    A proof holds for the runtime that the variant was made for; another runtime has to prove it again before it serves.

    Raises:
        UsageError: no variant has this name, or there is no such device or runtime, or they do not go together.
    """
    reason = runtime_unsupported_reason(bundle, name, device, runtime)
    if reason is not None:
        return reason
    proof = proof_of(bundle, name)
    if proof is None or not proof.passed:
        return f"it is not proved to agree with the trained model: run `regnet-deploy export{bundle.argument}` again"
    return None


def fallback_note(bundle: Bundle, chosen: str, device: Device = "auto", runtime: Runtime = "auto") -> str | None:
    """Return one line where a variant of OpenVINO was measured as faster than the chosen one and cannot run here.

    Args:
        bundle: has the variants.
        chosen: by :func:`default_variant`, for no requested variant.
        device: requested device.
        runtime: requested runtime.
    """
    if runtime not in ("auto", "openvino") or device not in ("auto", "cpu"):
        return None
    others = [name for name, one in bundle.manifest.variants.items() if isinstance(one, OpenvinoVariant)]
    speeds = _ms_per_image(bundle, {chosen, *others}, by_openvino=runtime == "openvino")
    for name in sorted(set(speeds) - {chosen}, key=lambda one: speeds[one]):
        reason = variant_unsupported_reason(bundle, name, device, runtime)
        if speeds[name] < speeds.get(chosen, math.inf) and reason is not None:
            return f"{chosen} runs in place of {name}, which was measured as faster: {reason}"
    return None


def proof_of(bundle: Bundle, name: str) -> Proof | None:
    """Return the proof of a variant (of engines: of the one that runs on this machine), or None.

    Raises:
        UsageError: no variant has this name.
    """
    variant = find_variant(bundle, name)
    if not isinstance(variant, EngineVariant):
        return variant.proof
    stored = fitting_engine(bundle, name, library_here(variant.runtime), find_gpu())
    return stored.engine.proof if stored else None


def needs_engine_build(bundle: Bundle, name: str, device: Device = "auto", runtime: Runtime = "auto") -> bool:
    """Tell whether this machine has a GPU and a variant of engines has no proved engine for it."""
    is_engine = isinstance(find_variant(bundle, name), EngineVariant)
    if not is_engine or device == "cpu" or runtime not in ("auto", "tensorrt"):
        return False
    return find_gpu() is not None and variant_unsupported_reason(bundle, name, device, runtime) is not None


def _only_named_reason(bundle: Bundle, name: str) -> str | None:
    variant = find_variant(bundle, name)
    if isinstance(variant, OnnxVariant) and variant.exact:
        return f"TensorRT engines are built from it and ONNX Runtime runs it slowly, name it with --variant {name}"
    source = find_variant(bundle, variant.source) if isinstance(variant, OpenvinoVariant) else variant
    if isinstance(source, OnnxVariant) and source.weight_bits == 8 and int8_sums_saturate():
        return (
            "its weights have 8 bits, and sums of such products saturate on this CPU: export it again here, or name it "
            f"with --variant {name}"
        )
    choice = bundle.manifest.choice
    refusable = {name.removesuffix("-uint8")}
    if isinstance(variant, OpenvinoVariant):  # the file that it runs may have been refused before it was tried
        refusable.add(variant.source.removesuffix("-uint8"))
    for candidate in choice.candidates if choice else ():
        if candidate.result == "refused" and candidate.variant in refusable:
            return f"`export --precision auto` refused it ({candidate.reason}), name it with --variant {name}"
    if is_standard(proof_of(bundle, name), variant.precision):
        return None
    return f"it was proved with a looser gate than {variant.precision} has, name it with --variant {name}"


def _ms_per_image(bundle: Bundle, names: Collection[str], *, by_openvino: bool) -> dict[str, float]:
    """Return the measured latency of these variants, ms per image: geometric mean over the batch sizes that all have.

    Those of an ONNX variant count only for the runtime that was measured; variants of OpenVINO have no other. A bundle
    may have two measurements, which cannot be compared with each other: the one with more of the variants counts, else
    that of ``profile``.
    """
    choice, profile = bundle.manifest.choice, bundle.manifest.profile
    chosen = [row for candidate in choice.candidates for row in candidate.latency] if choice else []
    profiled = profile.latency if profile else ()
    variants = bundle.manifest.variants
    own_runtime = {name for name in names if isinstance(variants.get(name), OpenvinoVariant)}
    found: dict[str, float] = {}
    for rows in (chosen, profiled):
        by_batch: dict[str, dict[int, float]] = {}
        for row in rows:
            if row.variant in names and (
                row.runtime.startswith("openvino ") == by_openvino or row.variant in own_runtime
            ):
                by_batch.setdefault(str(row.variant), {})[row.batch] = row.p50_ms / row.batch
        shared = set.intersection(*map(set, by_batch.values())) if by_batch else set()
        if shared and len(by_batch) >= len(found):
            found = {
                name: math.exp(math.fsum(math.log(each[batch]) for batch in shared) / len(shared))
                for name, each in by_batch.items()
            }
    return found
