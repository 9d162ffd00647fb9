"""Which of a bundle's exported variants is run when the user does not say."""

from __future__ import annotations

import math

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.serving.golden import is_standard
from regnet_deploy.serving.runtime import find_variant, why_not_runnable


def choose_variant(bundle: Bundle, wanted: str | None = None) -> str:
    """Return ``wanted`` where it can be run, or the fastest that can: proved and, where ``profile`` measured, quickest.

    Raises:
        MissingPart: nothing has been exported.
        UsageError: the one wanted, or every one, is unproved or cannot be run here; one that was proved with a looser
            tolerance than its precision's counts as unproved unless it is the one wanted.
    """
    if wanted is not None:
        reason = why_not_served(bundle, wanted)
        if reason:
            raise UsageError(f"variant {wanted} of {bundle.path} cannot be served: {reason}")
        return wanted
    names: list[str] = list(bundle.parts.get("variants") or {})
    if not names:
        raise MissingPart(
            f"{bundle.path} has no exported variants yet: run `regnet-deploy export --onnx {bundle.path}`"
        )
    reasons = {name: why_not_served(bundle, name) or _why_not_unasked(bundle, name) for name in names}
    runnable = [name for name in names if reasons[name] is None]
    if not runnable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UsageError(f"no variant of {bundle.path} can be served - {listed}")
    latencies = _latencies_ms(bundle)
    return min(runnable, key=lambda name: latencies.get(name, math.inf))  # the first of equals


def why_not_served(bundle: Bundle, name: str) -> str | None:
    """Return why a variant is not fit to answer requests on this machine, or None where it is."""
    variant = find_variant(bundle, name)
    if not (variant.get("proof") or {}).get("passed"):
        return "it is not proved to agree with the trained model, run `regnet-deploy export --onnx` again"
    return why_not_runnable(variant)


def _why_not_unasked(bundle: Bundle, name: str) -> str | None:
    variant = find_variant(bundle, name)
    if is_standard(variant["proof"], variant["precision"]):
        return None
    return f"it was proved with a looser tolerance than {variant['precision']} has, name it with --variant {name}"


def _latencies_ms(bundle: Bundle) -> dict[str, float]:
    """Return the measured median latency of one image, by variant; ``profile`` may have measured none."""
    measured = (bundle.parts.get("profile") or {}).get("latency") or []
    smallest = min((row["batch"] for row in measured), default=1)
    return {row["variant"]: row["p50_ms"] for row in measured if row["variant"] and row["batch"] == smallest}
