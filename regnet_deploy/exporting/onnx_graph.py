"""Writes a network as ONNX, node by node: batch norm folded, names as in the model, the same bytes every time.

torch.onnx is not used: it takes many times as long, writes the exporting machine's paths into the file, and its bytes
change from version to version; nor is a tool that converts a file to another precision, for here every operator's type
is known before it is written.

Input ``images``, output ``logits`` ``(batch, classes)``, both float32 in every precision; the batch is dynamic, height
and width are fixed. Nodes, and the tensors they put out, are called as the modules of the model are: ``s1.b1.f.a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.precision import PRECISIONS, Kind, Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.exporting.typed_graph import TypedGraph
from regnet_deploy.images.preprocessing import Preprocessing, scale_and_shift
from regnet_deploy.models.anynet import BN_EPS
from regnet_deploy.space.network import Network

INPUT, OUTPUT = "images", "logits"

#: A protobuf message, and so an ONNX file without external data, cannot be larger.
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
    reduced: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX file.

    Args:
        network: the stages.
        weights: arrays by the names of the model's state dict.
        preprocessing: its crop is the height and width; its mean and std go into the graph with ``pixels``.
        precision: what it computes in.
        ranges: of the tensors of :func:`tensors_between`, where the precision quantises.
        pixels: take pixels ``(batch, h, w, 3)`` uint8 and normalise them, instead of ``(batch, 3, h, w)`` float32.
        reduced: weights of 7 bits instead of 8, for CPUs that would saturate.
        metadata: texts for the file's ``metadata_props``.

    Raises:
        UsageError: the network is too large for one file.
    """
    size = sum(array.nbytes for array in weights.values())
    if size > _MAX_BYTES:
        raise UsageError(f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX file, which holds 2 GiB at most")
    graph = TypedGraph(weights, precision, ranges or {}, reduced=reduced)
    _add_network(graph, network, _normalised(graph, preprocessing) if pixels else INPUT)
    side, classes = preprocessing.crop, len(weights["head.fc.bias"])
    kind, shape = (TensorProto.UINT8, (side, side, 3)) if pixels else (TensorProto.FLOAT, (3, side, side))
    return graph.serialise(
        helper.make_tensor_value_info(INPUT, kind, ["batch", *shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes]),
        metadata or {},
    )


def tensors_between(network: Network, weights: Weights) -> list[str]:
    """Return the names of the tensors whose ranges the quantised precisions want, in the order of the graph."""
    return _plain(network, weights).between


def convolution_precisions(network: Network, weights: Weights, precision: Precision) -> dict[str, str]:
    """Return in which type each convolution of a precision computes, by the name of its node."""
    return {name: precision.type_of(kind) for name, kind in _plain(network, weights).kinds.items()}


def fold(weights: Weights, convolution: str, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight ``(out, in / groups, k, k)`` and bias ``(out,)`` of a convolution and the batch norm behind it.

    In double precision, so that what is stored is rounded once.
    """
    gamma, beta, mean, variance = (
        weights[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BN_EPS)
    weight: NDArray[np.float64] = weights[f"{convolution}.weight"].astype(np.float64) * scale[:, None, None, None]
    return weight, beta - mean * scale


def _plain(network: Network, weights: Weights) -> TypedGraph:
    graph = TypedGraph(weights, PRECISIONS["fp32"], {}, reduced=False)
    _add_network(graph, network, INPUT)
    return graph


def _add_network(graph: TypedGraph, network: Network, images: str) -> None:
    x = _convolution(graph, graph.enter(images), "stem.conv", "stem", "stem.bn", stride=network.stem_stride)
    x = graph.relu(x, "stem.af")
    for i, (depth, inner, group) in enumerate(
        zip(network.depths, network.bottleneck_widths, network.group_widths, strict=True), start=1
    ):
        for j in range(1, depth + 1):
            x = _block(graph, x, f"s{i}.b{j}", network.block, stride=2 if j == 1 else 1, groups=inner // group)
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "head.avg_pool")], "head.flatten", axis=1)
    graph.leave(graph.stored(x), "head.fc", OUTPUT)


def _convolution(
    graph: TypedGraph, x: str, name: str, kind: Kind, norm: str | None, stride: int = 1, groups: int = 1
) -> str:
    """Add a convolution with the batch norm ``norm`` folded in, or with its own bias."""
    if norm is None:
        weight, bias = graph.weights[f"{name}.weight"], graph.weights[f"{name}.bias"]
    else:
        weight, bias = fold(graph.weights, name, norm)
    return graph.convolution(x, name, kind, weight, bias, stride, groups)


def _normalised(graph: TypedGraph, preprocessing: Preprocessing) -> str:
    scale, shift = (value.reshape(1, 3, 1, 1) for value in scale_and_shift(preprocessing))
    x = graph.node("Cast", [INPUT], "normalise.float", to=TensorProto.FLOAT)
    x = graph.node("Transpose", [x], "normalise.planes", perm=[0, 3, 1, 2])
    x = graph.node("Mul", [x, graph.constant("normalise.scale", scale)], "normalise.scaled")
    return graph.node("Add", [x, graph.constant("normalise.shift", shift)], "normalise.shifted")


def _block(graph: TypedGraph, x: str, name: str, kind: str, stride: int, groups: int) -> str:
    """Add a block of one of the kinds of ``space.network.BLOCKS``, as those of ``models.anynet``."""
    if kind == "v":
        return graph.relu(_convolution(graph, x, f"{name}.a", "3x3", f"{name}.a_bn", stride=stride), f"{name}.a_af")
    shortcut = x
    if f"{name}.proj.weight" in graph.weights:
        shortcut = graph.stored(_convolution(graph, x, f"{name}.proj", "1x1", f"{name}.bn", stride=stride))
    if kind == "vr":
        f = _convolution(graph, x, f"{name}.f.a", "3x3", f"{name}.f.a_bn", stride=stride)
    else:
        f = _bottleneck(graph, x, f"{name}.f", stride, groups)
    return graph.relu(graph.node("Add", [shortcut, graph.stored(f)], f"{name}.add"), f"{name}.af")


def _bottleneck(graph: TypedGraph, x: str, name: str, stride: int, groups: int) -> str:
    """Add 1x1, grouped 3x3, SE where there are weights of it, 1x1, as ``models.anynet.BottleneckTransform``."""
    f = graph.relu(_convolution(graph, x, f"{name}.a", "1x1", f"{name}.a_bn"), f"{name}.a_af")
    f = _convolution(graph, f, f"{name}.b", "3x3", f"{name}.b_bn", stride=stride, groups=groups)
    f = graph.relu(f, f"{name}.b_af")
    if f"{name}.se.f_ex.0.weight" in graph.weights:
        f = _squeeze_excitation(graph, f, f"{name}.se")
    return _convolution(graph, f, f"{name}.c", "1x1", f"{name}.c_bn")


def _squeeze_excitation(graph: TypedGraph, x: str, name: str) -> str:
    """Add x * sigmoid(W_2 relu(W_1 mean(x))), as ``models.anynet.SqueezeExcitation``."""
    gate = graph.stored(graph.node("GlobalAveragePool", [x], f"{name}.mean"))
    gate = graph.relu(_convolution(graph, gate, f"{name}.f_ex.0", "gate", None), f"{name}.f_ex.1")
    gate = graph.stored(_convolution(graph, gate, f"{name}.f_ex.2", "gate", None))
    gate = graph.stored(graph.node("Sigmoid", [gate], f"{name}.f_ex.3"))
    return graph.stored(graph.node("Mul", [x, gate], f"{name}.weighed"))
