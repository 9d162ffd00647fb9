"""Writes a network as an ONNX file, node by node, with batch norms folded; the same input gives the same bytes.

torch.onnx is not used: it takes many times as long, it writes paths of the exporting machine into the file, and its
output changes from version to version. A tool that converts a file to another precision is not needed, because the
type of every operator is known when it is written.

The input is ``images``, the output ``logits`` ``(batch, classes)``, both float32 in every precision. The batch size is
dynamic, height and width are fixed. Nodes and their outputs have the names of the model's modules, such as
``s1.b1.f.a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.precision import PRECISIONS, ConvolutionKind, Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.exporting.typed_graph import TypedGraph
from regnet_deploy.images.preprocessing import image_shape, scale_and_shift
from regnet_deploy.models.anynet import BN_EPS
from regnet_deploy.space.network import Network

INPUT, OUTPUT = "images", "logits"

#: Largest size of a protobuf message, and so of an ONNX file without external data.
_MAX_BYTES = 2**31 - 1

Array = NDArray[Any]
Weights = Mapping[str, Array]


def build_onnx(
    network: Network,
    weights: Weights,
    preprocessing: Preprocessing,
    precision: Precision = PRECISIONS["fp32"],
    ranges: Mapping[str, TensorRange] | None = None,
    *,
    pixels: bool = False,
    reduce_range: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX file.

    Args:
        network: the stages.
        weights: name in the model's state dict -> array.
        preprocessing: its crop is the height and width; with ``pixels`` its mean and std are part of the graph.
        precision: types of the operators.
        ranges: of the tensors of :func:`activation_names`; required where the precision quantizes.
        pixels: the input is uint8 pixels ``(batch, h, w, channels)``, which the graph normalizes, instead of normalized
            float32 images ``(batch, channels, h, w)``.
        reduce_range: quantize weights to 7 bits instead of 8, for CPUs whose 16-bit sums would saturate.
        metadata: entries of the file's ``metadata_props``.

    Raises:
        UsageError: the network is too large for one file.
    """
    size = sum(array.nbytes for array in weights.values())
    if size > _MAX_BYTES:
        raise UsageError(f"the weights have {size / 2**30:.1f} GiB, and one ONNX file can hold at most 2 GiB")
    graph = TypedGraph(weights, precision, ranges or {}, reduce_range=reduce_range)
    _add_network(graph, network, _normalize(graph, preprocessing) if pixels else INPUT)
    kind, classes = TensorProto.UINT8 if pixels else TensorProto.FLOAT, len(weights["head.fc.bias"])
    shape = image_shape(preprocessing, pixels=pixels)
    return graph.serialize(
        helper.make_tensor_value_info(INPUT, kind, ["batch", *shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes]),
        metadata or {},
    )


def activation_names(network: Network, weights: Weights) -> list[str]:
    """Return the names of the tensors whose ranges the quantized precisions need, in the order of the graph."""
    return _fp32_graph(network, weights).activations


def convolution_types(network: Network, weights: Weights, precision: Precision) -> dict[str, str]:
    """Return the type in which each convolution computes: name of its node -> type."""
    kinds = _fp32_graph(network, weights).convolution_kinds
    return {name: precision.convolution_type(kind) for name, kind in kinds.items()}


def fold(weights: Weights, convolution: str, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight ``(out, in / groups, k, k)`` and bias ``(out,)`` of a convolution followed by a batch norm.

    The result is in double precision, so that it is rounded only once, when it is stored.
    """
    gamma, beta, mean, variance = (
        weights[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BN_EPS)
    weight: NDArray[np.float64] = weights[f"{convolution}.weight"].astype(np.float64) * scale[:, None, None, None]
    return weight, beta - mean * scale


def _fp32_graph(network: Network, weights: Weights) -> TypedGraph:
    graph = TypedGraph(weights, PRECISIONS["fp32"], {}, reduce_range=False)
    _add_network(graph, network, INPUT)
    return graph


def _add_network(graph: TypedGraph, network: Network, images: str) -> None:
    x = _convolution(graph, graph.add_input(images), "stem.conv", "stem", "stem.bn", stride=network.stem_stride)
    x = graph.relu(x, "stem.af")
    for i, (depth, inner, group) in enumerate(
        zip(network.depths, network.bottleneck_widths, network.group_widths, strict=True), start=1
    ):
        for j in range(1, depth + 1):
            x = _block(graph, x, f"s{i}.b{j}", network.block, stride=2 if j == 1 else 1, groups=inner // group)
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "head.avg_pool")], "head.flatten", axis=1)
    graph.add_classifier(graph.activation(x), "head.fc", OUTPUT)


def _convolution(
    graph: TypedGraph, x: str, name: str, kind: ConvolutionKind, norm: str | None, stride: int = 1, groups: int = 1
) -> str:
    """Add a convolution: with the batch norm ``norm`` folded into it, or with its own bias where ``norm`` is None."""
    if norm is None:
        weight, bias = graph.weights[f"{name}.weight"], graph.weights[f"{name}.bias"]
    else:
        weight, bias = fold(graph.weights, name, norm)
    return graph.convolution(x, name, kind, weight, bias, stride, groups)


def _normalize(graph: TypedGraph, preprocessing: Preprocessing) -> str:
    scale, shift = (value.reshape(1, -1, 1, 1) for value in scale_and_shift(preprocessing))
    x = graph.node("Cast", [INPUT], "normalise.float", to=TensorProto.FLOAT)
    x = graph.node("Transpose", [x], "normalise.planes", perm=[0, 3, 1, 2])
    x = graph.node("Mul", [x, graph.constant("normalise.scale", scale)], "normalise.scaled")
    return graph.node("Add", [x, graph.constant("normalise.shift", shift)], "normalise.shifted")


def _block(graph: TypedGraph, x: str, name: str, kind: str, stride: int, groups: int) -> str:
    """Add a block of one of the kinds in ``space.network.BLOCKS``; see the blocks of ``models.anynet``."""
    if kind == "v":
        return graph.relu(_convolution(graph, x, f"{name}.a", "3x3", f"{name}.a_bn", stride=stride), f"{name}.a_af")
    shortcut = x
    if f"{name}.proj.weight" in graph.weights:
        shortcut = graph.activation(_convolution(graph, x, f"{name}.proj", "1x1", f"{name}.bn", stride=stride))
    if kind == "vr":
        f = _convolution(graph, x, f"{name}.f.a", "3x3", f"{name}.f.a_bn", stride=stride)
    else:
        f = _bottleneck(graph, x, f"{name}.f", stride, groups)
    return graph.relu(graph.node("Add", [shortcut, graph.activation(f)], f"{name}.add"), f"{name}.af")


def _bottleneck(graph: TypedGraph, x: str, name: str, stride: int, groups: int) -> str:
    """Add 1x1, grouped 3x3, SE if the weights contain it, 1x1: ``models.anynet.BottleneckTransform``."""
    f = graph.relu(_convolution(graph, x, f"{name}.a", "1x1", f"{name}.a_bn"), f"{name}.a_af")
    f = _convolution(graph, f, f"{name}.b", "3x3", f"{name}.b_bn", stride=stride, groups=groups)
    f = graph.relu(f, f"{name}.b_af")
    if f"{name}.se.f_ex.0.weight" in graph.weights:
        f = _squeeze_excitation(graph, f, f"{name}.se")
    return _convolution(graph, f, f"{name}.c", "1x1", f"{name}.c_bn")


def _squeeze_excitation(graph: TypedGraph, x: str, name: str) -> str:
    """Add x * sigmoid(W_2 relu(W_1 mean(x))): ``models.anynet.SqueezeExcitation``."""
    gate = graph.activation(graph.node("GlobalAveragePool", [x], f"{name}.mean"))
    gate = graph.relu(_convolution(graph, gate, f"{name}.f_ex.0", "gate", None), f"{name}.f_ex.1")
    gate = graph.activation(_convolution(graph, gate, f"{name}.f_ex.2", "gate", None))
    gate = graph.activation(graph.node("Sigmoid", [gate], f"{name}.f_ex.3"))
    return graph.activation(graph.node("Mul", [x, gate], f"{name}.weighed"))
