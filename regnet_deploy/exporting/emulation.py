"""Files that ONNX Runtime does not run on a CPU as they are typed, written so that it does.

BF16: the graph in FP32, each tensor rounded to BF16 where the file has it so. ONNX Runtime has no BF16 convolution.
What a BF16 kernel does is multiply BF16 numbers, sum in FP32 and round the sum, which is what this does, operator by
operator; kernels that join operators round less often, so that a file that passes here is at least as good there. The
casts must stay: open the result with ``exact``.

INT8 from FP16: quantised in FP32, where releases that truncate FP16 round.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regnet_deploy.exporting.cpu_kernels import runs_as_typed
from regnet_deploy.exporting.precision import Precision

_BF16, _FP16, _FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT
#: Opset and version of the file format: without BF16 convolutions an older one will do, which more releases know.
_OPSET, _IR_VERSION = 18, 8


def emulate(data: bytes, precision: Precision) -> bytes:
    """Return a file that the installed ONNX Runtime runs on a CPU as this one is typed: mostly the file itself."""
    if runs_as_typed(precision):
        return data
    return emulate_bf16(data) if precision.rest == "bf16" else quantised_in_fp32(data)


def quantised_in_fp32(data: bytes) -> bytes:
    """Return a file whose FP16 tensors are cast to FP32 before they are quantised, by the same scales.

    Args:
        data: an ONNX file of :func:`regnet_deploy.exporting.onnx_graph.build_onnx`.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    scales = {constant.name: constant for constant in graph.initializer if constant.data_type == _FP16}
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in scales:
            tensor, scale = node.input[0], node.input[1]
            exact = numpy_helper.to_array(scales[scale]).astype(np.float32)
            wide[scale] = numpy_helper.from_array(exact, f"{scale}.fp32")
            name = f"{node.output[0]}.fp32"
            nodes.append(helper.make_node("Cast", [tensor], [name], name=name, to=_FP32))
            node.input[0], node.input[1] = name, wide[scale].name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(wide.values())
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def emulate_bf16(data: bytes) -> bytes:
    """Return a file of FP32 operators that gives the logits which a BF16 file stands for.

    Args:
        data: an ONNX file of :func:`regnet_deploy.exporting.onnx_graph.build_onnx` in BF16.
    """
    model = onnx.load_from_string(data)
    graph = model.graph
    small = {constant.name for constant in graph.initializer if constant.data_type == _BF16}
    for constant in graph.initializer:
        if constant.name in small:
            exact = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(exact, constant.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        target = next((one.i for one in node.attribute if one.name == "to"), None) if node.op_type == "Cast" else None
        into = target == _BF16
        if into or (target is None and small.intersection(node.input)):
            small.add(node.output[0])
            nodes += _rounded(node, into)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", _OPSET))
    model.ir_version = _IR_VERSION
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _rounded(node: onnx.NodeProto, cast: bool) -> list[onnx.NodeProto]:
    """Return a node with what it puts out rounded to BF16 and kept in FP32; a cast to BF16 rounds already."""
    name = node.output[0]
    exact, rounded = f"{name}.exact", f"{name}.rounded"
    back = helper.make_node("Cast", [rounded], [name], name=f"{name}.back", to=_FP32)
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    changed.output[0] = rounded if cast else exact
    if cast:
        return [changed, back]
    return [changed, helper.make_node("Cast", [exact], [rounded], name=f"{name}.round", to=_BF16), back]
