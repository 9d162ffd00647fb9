"""Settings that ``tune`` found for a bundle (its part ``serving``), where they are valid on this machine."""

from __future__ import annotations

from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.measurements import MachineSummary, Serving
from regnet_deploy.cpu import available_cores, cpu_flags, cpu_model
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import variant_unsupported_reason
from regnet_deploy.runtimes.runtime import Device, Runtime, check_runtime

#: Instruction sets by which runtimes choose their kernels, as Linux names them on x86 and ARM.
_INSTRUCTIONS = frozenset(
    {
        *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"),
        *("amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
    }
)


def cpu_instructions() -> tuple[str, ...]:
    """Return the instruction sets of this CPU by which runtimes choose their kernels, sorted."""
    return tuple(sorted(_INSTRUCTIONS.intersection(cpu_flags())))


def machine_summary() -> MachineSummary:
    """Return the properties of this machine on which tuned settings depend."""
    gpu = find_gpu()
    return MachineSummary(
        cpu=cpu_model(),
        cores=available_cores(),
        instructions=cpu_instructions(),
        gpu=gpu.name if gpu else None,
    )


def tuned_settings(
    bundle: Bundle, *, variant: str | None = None, device: Device = "auto", runtime: Runtime = "auto"
) -> Serving | str | None:
    """Return the result of ``tune`` if it is valid on this machine, the reason in one line if not, None without one.

    Args:
        bundle: may have been tuned.
        variant: requested variant, if any.
        device: requested device.
        runtime: requested runtime.

    Raises:
        UsageError: no such device or runtime, or they do not go together.
    """
    check_runtime(runtime, device)
    serving = bundle.manifest.serving
    if serving is None:
        return None
    tuned = serving.settings
    here = machine_summary()
    changed = [
        f"{name} {_text(getattr(serving.machine, name))}, here {_text(now)}"
        for name in here.__struct_fields__
        if (now := getattr(here, name)) != getattr(serving.machine, name)
    ]
    if changed:
        return f"the settings of {bundle.path} were tuned on another machine ({'; '.join(changed)})"
    what = f"the settings of {bundle.path} were tuned for {tuned.variant} by {tuned.runtime}"
    for option, requested, tuned_for in (("variant", variant, tuned.variant), ("runtime", runtime, tuned.runtime)):
        if requested not in (None, "auto", tuned_for):
            return f"{what}, and --{option} {requested} was requested"
    try:
        reason = variant_unsupported_reason(bundle, tuned.variant, device, tuned.runtime)
    except (UsageError, MissingPart) as error:  # the variant was removed, or the runtime does not run on the device
        reason = str(error)
    return serving if reason is None else f"{what}, which cannot be served: {reason}"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
