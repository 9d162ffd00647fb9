"""What ``tune`` found for a bundle, where it holds on this machine: the part ``serving``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import variant_unsupported_reason
from regnet_deploy.runtimes.machine_summary import machine_summary
from regnet_deploy.runtimes.runtime import DEVICES, RUNTIMES, Device, Runtime, check_runtime

#: The bundle's part with it.
PART = "serving"


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
        BundleError: the part is not one that ``tune`` writes.
    """
    check_runtime(runtime, device)
    if bundle.parts.get(PART) is None:
        return None
    tuned, machine = _read(bundle)
    here = machine_summary()
    changed = [
        f"{name} {_told(machine.get(name))}, here {_told(now)}"
        for name, now in here.items()
        if machine.get(name) != now
    ]
    if changed:
        return f"the settings of {bundle.path} were tuned on another machine ({'; '.join(changed)})"
    what = f"the settings of {bundle.path} were tuned for {tuned.variant} by {tuned.runtime}"
    for option, asked, found in (("variant", variant, tuned.variant), ("runtime", runtime, tuned.runtime)):
        if asked not in (None, "auto", found):
            return f"{what}, and --{option} {asked} is asked for"
    try:
        reason = variant_unsupported_reason(bundle, tuned.variant, device, tuned.runtime)
    except (UsageError, MissingPart) as error:  # the variant is gone, or the device is one that this runtime is not for
        reason = str(error)
    return tuned if reason is None else f"{what}, which cannot be served: {reason}"


def _read(bundle: Bundle) -> tuple[TunedSettings, Mapping[str, Any]]:
    part = _mapping(bundle, bundle.parts[PART], PART)
    machine = _mapping(bundle, part.get("machine"), f"{PART}.machine")
    settings = _mapping(bundle, part.get("settings"), f"{PART}.settings")
    runtime, variant = settings.get("runtime"), settings.get("variant")
    if runtime not in RUNTIMES or runtime == "auto":
        raise _malformed(bundle, f"{PART}.settings.runtime", f"one of {', '.join(RUNTIMES[1:])}", runtime)
    if not isinstance(variant, str):
        raise _malformed(bundle, f"{PART}.settings.variant", "a name", variant)
    device = settings.get("device", part.get("device", "auto"))
    if device not in DEVICES:
        raise _malformed(bundle, f"{PART}.settings.device", f"one of {', '.join(DEVICES)}", device)
    executors, threads, batch = (_count(bundle, settings, name) for name in ("executors", "threads", "batch"))
    tuned = TunedSettings(
        runtime=cast("Runtime", runtime),
        variant=variant,
        executors=executors,
        threads=threads,
        batch=batch,
        max_delay_ms=_number(bundle, settings, f"{PART}.settings", "max_delay_ms"),
        p99_ms=_number(bundle, part, PART, "p99_ms"),
        rate=_number(bundle, part, PART, "rate"),
        device=cast("Device", device),
    )
    return tuned, machine


def _mapping(bundle: Bundle, value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _malformed(bundle, where, "an object", value)
    return value


def _count(bundle: Bundle, settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _malformed(bundle, f"{PART}.settings.{name}", "a whole number, 1 or more", value)
    return value


def _number(bundle: Bundle, part: Mapping[str, Any], where: str, name: str) -> float:
    value = part.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise _malformed(bundle, f"{where}.{name}", "a number, 0 or more", value)
    return float(value)


def _malformed(bundle: Bundle, where: str, allowed: str, value: Any) -> BundleError:
    return BundleError(
        f"{bundle.path}: {where} in bundle.json must be {allowed}, got {value!r:.80}: run `regnet-deploy tune "
        f"{bundle.path}` again"
    )


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
