"""Evaluates the ONNX files of an export in OpenVINO: in FP32, in BF16 where the CPU has it, and the one in INT8."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from regnet_deploy.bundle.variants import OpenvinoVariant
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import MissingExtra, RegnetDeployError
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.state import ExportContext, ExportedOnnx, ExportedOpenvino, ExportState
from regnet_deploy.runtimes.openvino_session import (
    Compute,
    bf16_unsupported_reason,
    installed_openvino,
    open_by_openvino,
)

#: Precision of an ONNX file -> precisions of its variants in OpenVINO, and the type in which each computes FP32.
_WAYS: dict[str, dict[str, Compute]] = {"fp32": {"fp32": "fp32", "bf16": "bf16"}, "int8-cpu": {"int8-cpu": "fp32"}}


def makes_openvino_variants(context: ExportContext, state: ExportState) -> bool:
    """Tell whether variants of OpenVINO are requested, or ``auto`` can measure them on this CPU."""
    options = context.options
    if options.openvino:
        return True
    if not options.auto or state.onnx["onnx-fp32"].session.device != "cpu":
        return False
    try:
        installed_openvino()
    except MissingExtra:
        context.progress.message(
            "OpenVINO, which is often faster on CPUs, is no candidate: pip install 'regnet-deploy[openvino]'"
        )
        return False
    return True


def make_openvino_variants(context: ExportContext, state: ExportState) -> ExportState:
    """Return the state with variants of OpenVINO: each ONNX file for CPUs, as far as this CPU computes its types.

    Their accuracy is measured if they are requested; ``auto`` measures that of the fastest ones.
    """
    options, progress = context.options, context.progress
    without_bf16 = bf16_unsupported_reason()
    if without_bf16 and options.openvino:
        progress.message(f"openvino-bf16 is not made: {without_bf16}")
    made: dict[str, ExportedOpenvino] = {}
    rejected = dict(state.rejected)
    for onnx in state.onnx.values():
        for precision, compute in _WAYS.get(onnx.variant.precision, {}).items():
            if compute == "bf16" and without_bf16:
                continue
            name = f"openvino-{precision}{onnx.name.removeprefix(f'onnx-{onnx.variant.precision}')}"
            try:
                made[name] = _evaluated(context, onnx, name, precision, compute)
            except RegnetDeployError as error:
                rejected[name] = error
    return replace(state, openvino=made, rejected=rejected)


def _evaluated(
    context: ExportContext, onnx: ExportedOnnx, name: str, precision: str, compute: Compute
) -> ExportedOpenvino:
    context.progress.step(f"{name}: evaluating")
    session = open_by_openvino(onnx.data, threads=available_cores(), compute=compute)
    validate = context.options.openvino or not context.options.auto
    evaluation = context.gate.evaluate(name, session, PRECISIONS[precision], context.progress, validate=validate)
    variant = OpenvinoVariant(
        precision=precision,
        input=onnx.variant.input,
        opset=onnx.variant.opset,
        source=onnx.name,
        onnx_sha256=hashlib.sha256(onnx.data).hexdigest(),
        compute=compute,
        proof=evaluation.proof,
        accuracy=evaluation.accuracy,
    )
    return ExportedOpenvino(name, variant, session)
