"""What ``tune`` found for a bundle, where it holds on this machine: the part ``serving``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import variant_unsupported_reason
from regnet_deploy.runtimes.machine_summary import machine_summary
from regnet_deploy.runtimes.runtime import Device, Runtime, check_runtime


@dataclass(frozen=True)
class TunedSettings:
    """Settings that gave the highest rate under a limit of latency.

    Attributes:
        runtime: who ran the variant; never ``auto``.
        variant: its name.
        executors: inferences at a time.
        threads: of each of them.
        batch: most images of an inference.
        max_delay_ms: that an image waits for others at most.
        p99_ms: the limit of latency that was asked for.
        rate: images/s that kept to it.
        device: that was asked for.
    """

    runtime: Runtime
    variant: str
    executors: int
    threads: int
    batch: int
    max_delay_ms: float
    p99_ms: float
    rate: float
    device: Device = "auto"


def tuned_settings(
    bundle: Bundle, *, variant: str | None = None, device: Device = "auto", runtime: Runtime = "auto"
) -> TunedSettings | str | None:
    """Return what ``tune`` found for this machine, or why that does not hold in one line, or None where it never ran.

    Args:
        bundle: that may have been tuned.
        variant: the one that is asked for, if any.
        device: where it is to run.
        runtime: who is to run it.

    Raises:
        UsageError: no such device or runtime, or they do not go together.
    """
    check_runtime(runtime, device)
    part = bundle.manifest.serving
    if part is None:
        return None
    found = part.settings
    tuned = TunedSettings(
        runtime=found.runtime,
        variant=found.variant,
        executors=found.executors,
        threads=found.threads,
        batch=found.batch,
        max_delay_ms=found.max_delay_ms,
        p99_ms=part.p99_ms,
        rate=part.rate,
        device=part.device,
    )
    here = machine_summary()
    changed = [
        f"{name} {_told(getattr(part.machine, name))}, here {_told(now)}"
        for name in here.__struct_fields__
        if (now := getattr(here, name)) != getattr(part.machine, name)
    ]
    if changed:
        return f"the settings of {bundle.path} were tuned on another machine ({'; '.join(changed)})"
    what = f"the settings of {bundle.path} were tuned for {tuned.variant} by {tuned.runtime}"
    for option, asked, tuned_for in (("variant", variant, tuned.variant), ("runtime", runtime, tuned.runtime)):
        if asked not in (None, "auto", tuned_for):
            return f"{what}, and --{option} {asked} was requested"
    try:
        reason = variant_unsupported_reason(bundle, tuned.variant, device, tuned.runtime)
    except (UsageError, MissingPart) as error:  # the variant is gone, or the device is one that this runtime is not for
        reason = str(error)
    return tuned if reason is None else f"{what}, which cannot be served: {reason}"


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
