"""Proof that an exported file computes what the model computes: on the golden set, alone and in batches."""

from __future__ import annotations

from typing import Any

from regnet_deploy.errors import ProofError
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.runtimes.gates import Gate, is_standard
from regnet_deploy.runtimes.golden_set import GoldenSet, replay
from regnet_deploy.runtimes.runtime import Session


def prove(
    name: str,
    session: Session,
    golden: GoldenSet,
    preprocessing: Preprocessing,
    gate: Gate,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Replay the golden set, in batches and one by one, and return the figures as JSON data.

    Beside those of the agreement: ``standard``, whether the gate was this precision's or a tighter one; and where it
    was proved, ``runtime`` and ``device``.

    Args:
        name: of the variant, for errors.
        session: the exported bytes, opened by the runtime that will serve them.
        golden: images and reference logits.
        preprocessing: of the bundle.
        gate: what the logits are held to; its atol is tightened where the reference hardly varies.
        precision: of the variant.

    Raises:
        ProofError: a figure is beyond its limit; the message says which and has the others.
    """
    agreement = replay(session, golden, preprocessing, gate)
    if not agreement.passed:
        raise ProofError(f"{name} does not agree with the model: {agreement}, on {session.runtime}")
    figures = agreement.to_json()
    standard = is_standard(figures, precision)
    return {**figures, "standard": standard, "runtime": session.runtime, "device": session.device}
