"""Gates: the limits of each precision on the golden set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle.variants import Gate, Proof
from regnet_deploy.errors import BundleError, UsageError, did_you_mean

#: Figure -> lowest and highest limit that a user may set.
_ALLOWED = {
    "atol": (0, math.inf),
    "rtol": (0, math.inf),
    "mean": (0, math.inf),
    "worst": (0, math.inf),
    "cosine": (-1, 1),
    "top1": (0, 1),
}

_QUANTIZED = Gate(mean=0.15, worst=0.5, top1=0.9)
_EARLIER_QUANTIZED = Gate(mean=0.15, cosine=0.95, top1=0.9)

#: Precision -> its gate. The limits are several times the error of trained networks, so that they find wrong files; the
#: loss of accuracy by a precision is measured on validation images. The limits of FP16 and BF16 also admit untrained
#: networks, whose logits hardly vary. Errors are shares of the spread, whatever the number of classes:
#: ``benchmarks/golden_gate.py`` measures how often the gate of INT8 refuses good files and misses broken ones.
GATES = {
    "fp32": Gate(atol=1e-4, rtol=1e-3, top1=1.0),
    "fp16": Gate(mean=0.01, worst=0.05, top1=0.98),
    "bf16": Gate(mean=0.08, worst=0.25, top1=0.95),
    "int8-1x1": _QUANTIZED,
    "int8": _QUANTIZED,
    "int8-cpu": _QUANTIZED,
    "fp8-1x1": _QUANTIZED,
}

#: The gates of earlier versions, which had the cosine of the worst image in place of its error. A proof by one of these
#: counts as standard. No precision is added here.
_EARLIER_GATES = {
    "fp32": Gate(atol=1e-4, rtol=1e-3, cosine=0.9999, top1=1.0),
    "fp16": Gate(mean=0.01, cosine=0.999, top1=0.98),
    "bf16": Gate(mean=0.08, cosine=0.998, top1=0.95),
    "int8-1x1": _EARLIER_QUANTIZED,
    "int8": _EARLIER_QUANTIZED,
    "int8-cpu": _EARLIER_QUANTIZED,
    "fp8-1x1": _EARLIER_QUANTIZED,
}

#: Maximum absolute error as a share of the spread of the logits, and the share of the largest logit that is always
#: allowed. Logits of untrained networks differ by about 0.002 between images, so 1e-4 would pass a wrong network.
#: Another order of summation in FP32 changes logits by at most 3e-5 of the spread and 1e-6 of the largest logit,
#: measured on untrained networks of 0.4 and 4 GMACs and on trained ones.
_OF_SPREAD, _OF_LARGEST = 1e-2, 1e-5


def gate_of(precision: str) -> Gate:
    """Return the gate of a precision.

    Raises:
        BundleError: the precision is not known to this version.
    """
    if precision not in GATES:
        raise BundleError(unknown_precision(precision))
    return GATES[precision]


def unknown_precision(precision: str) -> str:
    """Return the message for a precision that has no gate."""
    return f"precision {precision!r} is not known to this version: pip install --upgrade regnet-deploy"


def logit_spread(reference: NDArray[Any]) -> float:
    """Return the spread of logits ``(n, classes)``: the standard deviation over the images, averaged over the classes.

    If all images have the same logits, for example a single image: the standard deviation over the classes.
    """
    logits = reference.astype(np.float64)
    alike = not np.ptp(logits, axis=0).any()
    return float(logits.std(axis=1 if alike else 0).mean())


def scaled_gate(gate: Gate, reference: NDArray[np.float32]) -> Gate:
    """Return a gate for these reference logits: with a smaller atol if they hardly vary.

    Args:
        gate: the gate of the precision or of the user.
        reference: logits, ``(n, classes)``; a single image has no spread.
    """
    if gate.atol is None or len(reference) < 2 or not np.isfinite(reference).all():
        return gate
    most = max(_OF_SPREAD * logit_spread(reference), _OF_LARGEST * float(np.abs(reference.astype(np.float64)).max()))
    return gate.replace(atol=min(gate.atol, most))


def is_standard(proof: Proof | None, precision: str) -> bool:
    """Tell whether a proof applied the gate of this precision, that of an earlier version, or a tighter one.

    The first versions recorded no gate; theirs was looser.

    Raises:
        BundleError: the precision is not known to this version.
    """
    standards = [gate_of(precision), _EARLIER_GATES.get(precision, gate_of(precision))]
    return proof is not None and proof.gate is not None and any(proof.gate.within(one) for one in standards)


def gate_to_serve(precision: str, proof: Proof | None) -> Gate:
    """Return the gate that a variant has to pass when it is served: the looser of its precision's and its proof's.

    It is that of its precision where the proof is standard, by whichever version.

    Raises:
        BundleError: the precision is not known to this version.
    """
    standard = gate_of(precision)
    if proof is None or proof.gate is None or is_standard(proof, precision):
        return standard
    return standard.looser(proof.gate)


def parse_gate_limit(text: str) -> tuple[str, str, float]:
    """Read ``precision:figure=limit``, such as ``int8:worst=0.3``.

    Raises:
        UsageError: another form, an unknown precision or figure, or a limit outside of its range.
    """
    precision, colon, rest = text.strip().partition(":")
    figure, equals, number = (part.strip() for part in rest.partition("="))
    if not colon or not equals:
        raise UsageError(f"gate {text!r} is not of the form precision:figure=limit, such as int8:worst=0.3")
    precision = precision.strip()
    for what, word, known in (("precision", precision, GATES), ("figure", figure, _ALLOWED)):
        if word not in known:
            raise UsageError(
                f"gate {text!r}: no {what} {word!r}{did_you_mean(word, known)}; there are {', '.join(known)}"
            )
    low, high = _ALLOWED[figure]
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not (low <= limit <= high and math.isfinite(limit)):
        allowed = f"a number from {low} to {high}" if math.isfinite(high) else "a finite number, 0 or more"
        raise UsageError(f"gate {text!r}: {figure} must be {allowed}, got {number!r}")
    return precision, figure, limit


def gates_with_overrides(
    overrides: Iterable[tuple[str, str, float]], gates: Mapping[str, Gate] = GATES
) -> dict[str, Gate]:
    """Return gates by precision with other limits, from :func:`parse_gate_limit`; the last one of a figure wins.

    Raises:
        UsageError: an rtol without an atol.
    """
    changed = dict(gates)
    for precision, figure, limit in overrides:
        changed[precision] = changed[precision].replace(**{figure: limit})
    for precision, gate in changed.items():
        if gate.rtol and gate.atol is None:
            raise UsageError(
                f"gate of {precision}: rtol counts together with atol, which {precision} does not have: give "
                f"--gate {precision}:atol=... too"
            )
    return changed
