"""Rewrites files that ONNX Runtime does not compute on a CPU in the types that they are written in.

BF16: ONNX Runtime has no BF16 convolution on a CPU. The graph is rewritten in FP32, and each tensor that is BF16 in the
file is rounded to BF16. A BF16 kernel multiplies BF16 numbers, sums in FP32 and rounds the sum; the rewritten graph
does the same, operator by operator. Kernels that fuse operators round less often, so a file that passes its gate here
is at least as accurate there. Open the rewritten file with ``exact``, because optimizations would remove the casts.

INT8 quantized from FP16: releases that truncate FP16 when they quantize it round FP32, so it is cast to FP32 first.

onnx is imported when it is needed: :func:`runs_as_typed` works without it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from regnet_deploy.errors import require
from regnet_deploy.exporting.precision import Precision
from regnet_deploy.runtimes.runtime import installed_onnxruntime

if TYPE_CHECKING:
    import onnx

#: First release that rounds where a file quantizes FP16 to INT8. Earlier ones truncate, which no other runtime does:
#: github.com/microsoft/onnxruntime/issues/18576.
_FIRST_ROUNDING_RELEASE = (1, 30)
#: Numbers of the types in ``onnx.TensorProto``.
_FP32, _FP16, _BF16 = 1, 10, 16
#: Opset and version of the file format of a file without BF16 convolutions, which more releases can read.
_OPSET, _IR_VERSION = 18, 8


def truncates_fp16_to_int8(version: str) -> bool:
    """Tell whether this release of ONNX Runtime truncates FP16 on a CPU where a file quantizes it to INT8."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < _FIRST_ROUNDING_RELEASE


def runs_as_typed(precision: Precision) -> bool:
    """Tell whether the installed ONNX Runtime computes files of a precision on a CPU in their types.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        UsageError: it is installed twice.
    """
    if precision.float_type == "bf16":
        return False
    quantizes_fp16 = precision.float_type == "fp16" and precision.quantized_type == "int8"
    return not (quantizes_fp16 and truncates_fp16_to_int8(installed_onnxruntime()[1]))


def emulate(data: bytes, precision: Precision) -> bytes:
    """Return a file that the installed ONNX Runtime computes on a CPU in the types of ``data``; often ``data`` itself.

    Raises:
        MissingExtra: the file must be rewritten and onnx is not installed.
    """
    if runs_as_typed(precision):
        return data
    require("onnx", "export")
    return emulate_bf16(data) if precision.float_type == "bf16" else emulate_fp16_quantization(data)


def emulate_fp16_quantization(data: bytes) -> bytes:
    """Return a file whose FP16 tensors are cast to FP32 before they are quantized with the same scales.

    Args:
        data: a file from :func:`regnet_deploy.exporting.onnx_graph.build_onnx`.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    scales = {constant.name: constant for constant in graph.initializer if constant.data_type == _FP16}
    nodes: list[onnx.NodeProto] = []
    fp32_scales: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in scales:
            tensor, scale = node.input[0], node.input[1]
            value = numpy_helper.to_array(scales[scale]).astype(np.float32)
            fp32_scales[scale] = numpy_helper.from_array(value, f"{scale}.fp32")
            name = f"{node.output[0]}.fp32"
            nodes.append(helper.make_node("Cast", [tensor], [name], name=name, to=_FP32))
            node.input[0], node.input[1] = name, fp32_scales[scale].name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(fp32_scales.values())
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def emulate_bf16(data: bytes) -> bytes:
    """Return a file of FP32 operators whose logits are those of a BF16 file.

    Args:
        data: a file from :func:`regnet_deploy.exporting.onnx_graph.build_onnx` in BF16.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    bf16 = {constant.name for constant in graph.initializer if constant.data_type == _BF16}
    for constant in graph.initializer:
        if constant.name in bf16:
            value = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(value, constant.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        target = next((one.i for one in node.attribute if one.name == "to"), None) if node.op_type == "Cast" else None
        casts_to_bf16 = target == _BF16
        if casts_to_bf16 or (target is None and bf16.intersection(node.input)):
            bf16.add(node.output[0])
            nodes += _round_output(node, is_cast=casts_to_bf16)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", _OPSET))
    model.ir_version = _IR_VERSION
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _round_output(node: onnx.NodeProto, *, is_cast: bool) -> list[onnx.NodeProto]:
    """Return a node whose FP32 output is rounded to BF16; a cast to BF16 rounds already."""
    import onnx
    from onnx import helper

    name = node.output[0]
    exact, rounded = f"{name}.exact", f"{name}.rounded"
    back = helper.make_node("Cast", [rounded], [name], name=f"{name}.back", to=_FP32)
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.output[0] = rounded if is_cast else exact
    if is_cast:
        return [changed, back]
    return [changed, helper.make_node("Cast", [exact], [rounded], name=f"{name}.round", to=_BF16), back]
