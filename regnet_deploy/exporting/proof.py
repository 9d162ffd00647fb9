"""Proof on the golden set: a variant's logits agree with the model's, for single images and in batches."""

from __future__ import annotations

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import Gate, Proof
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.emulation import emulate
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import GoldenSet, replay
from regnet_deploy.runtimes.runtime import Device, Session, open_onnx


def open_for_proof(data: bytes, precision: Precision, device: Device) -> Session:
    """Open an ONNX file as it will be served; a file for TensorRT is computed on the CPU in the types of the file."""
    if precision.tensorrt_only:
        return open_onnx(emulate(data, precision), device="cpu", exact=True)
    if precision.quantized_type == "uint8" and device == "auto":  # served on the CPU even where there is a GPU
        device = "cpu"
    return open_onnx(data, device=device)


def prove(
    name: str,
    session: Session,
    golden: GoldenSet,
    preprocessing: Preprocessing,
    gate: Gate,
    precision: str = "fp32",
) -> Proof:
    """Replay the golden set in batches and one by one, and return the figures.

    Args:
        name: of the variant, for errors.
        session: the exported file, opened in the runtime that will serve it.
        golden: images and reference logits.
        preprocessing: of the bundle.
        gate: limits of the figures; its atol is reduced where the reference logits vary little.
        precision: name of the variant's precision; decides whether the gate is standard.

    Raises:
        ProofError: a figure is beyond its limit; the message says which one and has the others.
    """
    agreement = replay(session, golden, preprocessing, gate)
    if not agreement.passed:
        raise ProofError(f"{name} does not agree with the model: {agreement}, on {session.runtime}")
    standard = agreement.gate.within(gate_of(precision))
    figures = agreement.to_json()
    return Proof.from_json({**figures, "standard": standard, "runtime": session.runtime, "device": session.device})
