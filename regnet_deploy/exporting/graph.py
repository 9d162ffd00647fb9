"""Writes a network as ONNX, node by node: batch norm folded, names as in the model, the same bytes every time.

torch.onnx is not used: it takes many times as long, writes the exporting machine's paths into the file, and its bytes
change from version to version. Opset 18: later ones change nothing that this graph needs, and fewer runtimes run them.

Input ``images``, output ``logits`` ``(batch, classes)`` float32; the batch is dynamic, height and width are fixed.
Nodes, and the tensors they put out, are called as the modules of the model are: ``s1.b1.f.a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from regnet_deploy import __version__
from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocess import Preprocessing, scale_and_shift
from regnet_deploy.models.anynet import BN_EPS
from regnet_deploy.space.network import Network

OPSET = 18
IR_VERSION = 8  # the one that came with opset 18
INPUT, OUTPUT = "images", "logits"

#: A protobuf message, and so an ONNX file without external data, cannot be larger.
_MAX_BYTES = 2**31 - 1

Array = NDArray[Any]
Weights = Mapping[str, Array]


def build_onnx(
    network: Network,
    weights: Weights,
    preprocessing: Preprocessing,
    *,
    pixels: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX file.

    Args:
        network: the stages.
        weights: arrays by the names of the model's state dict.
        preprocessing: its crop is the height and width; its mean and std go into the graph with ``pixels``.
        pixels: take pixels ``(batch, h, w, 3)`` uint8 and normalise them, instead of ``(batch, 3, h, w)`` float32.
        metadata: texts for the file's ``metadata_props``.

    Raises:
        UsageError: the network is too large for one file.
    """
    size = sum(array.nbytes for array in weights.values())
    if size > _MAX_BYTES:
        raise UsageError(f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file, which holds 2 GiB at most")
    graph = _Graph(weights)
    x = _normalised(graph, preprocessing) if pixels else INPUT
    x = graph.relu(graph.convolution(x, "stem.conv", "stem.bn", stride=network.stem_stride), "stem.af")
    for i, (depth, inner, group) in enumerate(
        zip(network.depths, network.bottleneck_widths, network.group_widths, strict=True), start=1
    ):
        for j in range(1, depth + 1):
            x = _block(graph, x, f"s{i}.b{j}", network.block, stride=2 if j == 1 else 1, groups=inner // group)
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "head.avg_pool")], "head.flatten", axis=1)
    linear = [graph.constant("head.fc.weight"), graph.constant("head.fc.bias")]
    graph.node("Gemm", [x, *linear], "head.fc", output=OUTPUT, transB=1)
    side, classes = preprocessing.crop, len(weights["head.fc.bias"])
    kind, shape = (TensorProto.UINT8, (side, side, 3)) if pixels else (TensorProto.FLOAT, (3, side, side))
    return graph.serialise(
        helper.make_tensor_value_info(INPUT, kind, ["batch", *shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes]),
        metadata or {},
    )


def fold(weights: Weights, convolution: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight ``(out, in / groups, k, k)`` and bias ``(out,)`` of a convolution and the batch norm behind it.

    Folded in double precision and rounded once.
    """
    gamma, beta, mean, variance = (
        weights[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BN_EPS)
    weight = weights[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight.astype(np.float32), (beta - mean * scale).astype(np.float32)


class _Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of what it puts out."""
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: Array | None = None) -> str:
        """Add a constant, by default the weight of that name."""
        array = np.ascontiguousarray(self.weights[name] if value is None else value)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        self.constants.append(helper.make_tensor(name, kind, array.shape, little_endian.tobytes(), raw=True))
        return name

    def convolution(self, x: str, name: str, norm: str | None, stride: int = 1, groups: int = 1) -> str:
        """Add a convolution with the batch norm ``norm`` folded in, or with its own bias."""
        if norm is None:
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        else:
            weight, bias = fold(self.weights, name, norm)
        kernel = weight.shape[2]
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        return self.node("Relu", [x], name)

    def serialise(self, images: Any, logits: Any, metadata: Mapping[str, str]) -> bytes:
        """Return the file."""
        graph = helper.make_graph(self.nodes, "regnet", [images], [logits], self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="regnet-deploy",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def _normalised(graph: _Graph, preprocessing: Preprocessing) -> str:
    scale, shift = (value.reshape(1, 3, 1, 1) for value in scale_and_shift(preprocessing))
    x = graph.node("Cast", [INPUT], "normalise.float", to=TensorProto.FLOAT)
    x = graph.node("Transpose", [x], "normalise.planes", perm=[0, 3, 1, 2])
    x = graph.node("Mul", [x, graph.constant("normalise.scale", scale)], "normalise.scaled")
    return graph.node("Add", [x, graph.constant("normalise.shift", shift)], "normalise.shifted")


def _block(graph: _Graph, x: str, name: str, kind: str, stride: int, groups: int) -> str:
    """Add a block of one of the kinds of ``space.network.BLOCKS``, as those of ``models.anynet``."""
    if kind == "v":
        return graph.relu(graph.convolution(x, f"{name}.a", f"{name}.a_bn", stride=stride), f"{name}.a_af")
    shortcut = x
    if f"{name}.proj.weight" in graph.weights:
        shortcut = graph.convolution(x, f"{name}.proj", f"{name}.bn", stride=stride)
    if kind == "vr":
        f = graph.convolution(x, f"{name}.f.a", f"{name}.f.a_bn", stride=stride)
    else:
        f = _bottleneck(graph, x, f"{name}.f", stride, groups)
    return graph.relu(graph.node("Add", [shortcut, f], f"{name}.add"), f"{name}.af")


def _bottleneck(graph: _Graph, x: str, name: str, stride: int, groups: int) -> str:
    """Add 1x1, grouped 3x3, SE where there are weights of it, 1x1, as ``models.anynet.BottleneckTransform``."""
    f = graph.relu(graph.convolution(x, f"{name}.a", f"{name}.a_bn"), f"{name}.a_af")
    f = graph.convolution(f, f"{name}.b", f"{name}.b_bn", stride=stride, groups=groups)
    f = graph.relu(f, f"{name}.b_af")
    if f"{name}.se.f_ex.0.weight" in graph.weights:
        f = _squeeze_excitation(graph, f, f"{name}.se")
    return graph.convolution(f, f"{name}.c", f"{name}.c_bn")


def _squeeze_excitation(graph: _Graph, x: str, name: str) -> str:
    """Add x * sigmoid(W_2 relu(W_1 mean(x))), as ``models.anynet.SqueezeExcitation``."""
    gate = graph.node("GlobalAveragePool", [x], f"{name}.mean")
    gate = graph.relu(graph.convolution(gate, f"{name}.f_ex.0", None), f"{name}.f_ex.1")
    gate = graph.node("Sigmoid", [graph.convolution(gate, f"{name}.f_ex.2", None)], f"{name}.f_ex.3")
    return graph.node("Mul", [x, gate], f"{name}.weighed")
