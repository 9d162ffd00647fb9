"""Builds an ONNX graph in which each node and constant has the type of the precision.

Quantized operators are written as Q/DQ pairs: an activation passes through QuantizeLinear and DequantizeLinear, a
weight is stored quantized in front of a DequantizeLinear, and the runtime fuses these with the operator into a kernel.
TensorRT's parser accepts only zero points of 0, no INT32 biases, one scale per activation tensor and one per weight
channel: ``int8`` and ``fp8`` are written for it. ONNX Runtime on a CPU is fast where every tensor between two operators
is quantized, and biases too: ``uint8`` is written for it. A tensor has one Q/DQ pair for all operators that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from regnet_deploy import __version__
from regnet_deploy.exporting.float_range import check_finite, convert_constant
from regnet_deploy.exporting.precision import ConvolutionKind, Precision
from regnet_deploy.exporting.quantization import (
    TensorRange,
    affine_scale,
    least_weight_scale,
    quantize_weights,
    symmetric_scale,
)

#: Opset -> version of the file format that was released with it.
_IR_VERSIONS = {18: 8, 19: 9, 22: 10}
_FLOATS: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}

Array = NDArray[Any]


class TypedGraph:
    """Nodes and constants in the order in which they are added.

    Attributes:
        weights: name in the model's state dict -> array.
        precision: the types of the graph.
        ranges: name of a tensor to quantize -> its range.
        activations: names of the tensors that are quantized, or would be in another precision.
        convolution_kinds: name of each convolution -> its kind.
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        precision: Precision,
        ranges: Mapping[str, TensorRange],
        *,
        reduce_range: bool,
    ) -> None:
        self.weights, self.precision, self.ranges = weights, precision, ranges
        self.activations: list[str] = []
        self.convolution_kinds: dict[str, ConvolutionKind] = {}
        self._reduce_range = reduce_range
        self._float = np.dtype(_FLOATS[precision.float_type])
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._quantized: dict[str, str] = {}  # name of a tensor -> name of the output of its DequantizeLinear
        self._input = ""

    def node(self, operator: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self._nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: Array) -> str:
        """Add a constant in its own type."""
        # A scalar must stay a scalar: with scales of shape (1,) TensorRT-RTX has no INT8 kernels and ONNX Runtime no
        # QLinearAdd.
        array = np.asarray(value, order="C")
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = little_endian.tobytes()
        self._constants[name] = helper.make_tensor(name, kind, array.shape, data, raw=True)
        return name

    def float_constant(self, name: str, value: Array) -> str:
        """Add a constant in the float type of the precision; raise ProofError where it is beyond its range."""
        return self.constant(name, convert_constant(name, value, self._float, self.precision.name))

    def cast(self, x: str, name: str, to: Any, output: str | None = None) -> str:
        """Add a cast, or nothing where the float type is FP32."""
        if self._float == np.float32 and output is None:
            return x
        return self.node("Cast", [x], name, output, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    def add_input(self, x: str) -> str:
        """Cast normalized FP32 images to the float type. Their range is that of the tensor ``images``."""
        self._input = self.cast(x, f"{x}.{self.precision.float_type}", self._float)
        return self.activation(self._input)

    def add_classifier(self, x: str, name: str, output: str) -> str:
        """Add the linear layer with this name in the state dict and cast its result to FP32."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        inputs = [x, *self._parameters(name, weight, bias, x, quantized=self.precision.quantized_type == "uint8")]
        if self._float == np.float32:
            return self.node("Gemm", inputs, name, output, transB=1)
        return self.cast(self.node("Gemm", inputs, name, transB=1), f"{output}.fp32", np.float32, output)

    def convolution(
        self, x: str, name: str, kind: ConvolutionKind, weight: Array, bias: Array, stride: int = 1, groups: int = 1
    ) -> str:
        """Add a convolution with its bias."""
        self.convolution_kinds[name] = kind
        quantized = self.precision.convolution_type(kind) in ("int8", "fp8")
        if quantized:
            x = self._quantize(x)
        kernel = weight.shape[2]
        return self.node(
            "Conv",
            [x, *self._parameters(name, weight, bias, x, quantized=quantized)],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        return self.activation(self.node("Relu", [x], name))

    def activation(self, x: str) -> str:
        """Return the tensor that the next operator reads: the quantized one where all activations are quantized."""
        self.activations.append(x)
        return self._quantize(x) if self.precision.quantized_type == "uint8" else x

    def serialize(self, images: Any, logits: Any, metadata: Mapping[str, str]) -> bytes:
        """Return the bytes of the ONNX file."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, "regnet", [images], [logits], constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.precision.opset)],
            ir_version=_IR_VERSIONS[self.precision.opset],
            producer_name="regnet-deploy",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _quantize(self, x: str) -> str:
        """Return the tensor behind the Q/DQ pair of ``x``; the pair is added once."""
        if x in self._quantized.values():
            return x
        if x not in self._quantized:
            kind = self.precision.quantized_type
            zero: Array
            bounds = self._range_of(x)
            if kind == "uint8":
                scale, point = affine_scale(bounds)
                zero = np.asarray(point, np.uint8)
            elif kind == "fp8":
                scale, zero = symmetric_scale(bounds, "fp8"), np.zeros((), ml_dtypes.float8_e4m3fn)
            else:
                scale, zero = symmetric_scale(bounds, "int8"), np.zeros((), np.int8)
            terms = [self.float_constant(f"{x}.scale", np.asarray(scale)), self.constant(f"{x}.zero", zero)]
            q = self.node("QuantizeLinear", [x, *terms], f"{x}.q")
            self._quantized[x] = self.node("DequantizeLinear", [q, *terms], f"{x}.dq")
        return self._quantized[x]

    def _range_of(self, x: str) -> TensorRange:
        return self.ranges["images" if x == self._input else x]

    def _parameters(self, name: str, weight: Array, bias: Array, x: str, *, quantized: bool) -> list[str]:
        """Add weight and bias of an operator that reads ``x``, and return their names."""
        if not quantized:
            return [self.float_constant(f"{name}.weight", weight), self.float_constant(f"{name}.bias", bias)]
        kind = "fp8" if self.precision.quantized_type == "fp8" else "int8"
        least: Array | float = 0.0
        if self.precision.quantized_type == "int8":
            least = least_weight_scale(bias, symmetric_scale(self._range_of(x.removesuffix(".dq")), kind))
        tensor = quantize_weights(weight, kind, self._float, reduce_range=self._reduce_range, least_scale=least)
        check_finite(f"the scale of {name}.weight", tensor.scale, self.precision.name)
        scale = self.constant(f"{name}.weight.scale", tensor.scale)
        zero = self.constant(f"{name}.weight.zero", np.zeros(len(weight), tensor.values.dtype))
        values = self.constant(f"{name}.weight", tensor.values)
        inputs = [self.node("DequantizeLinear", [values, scale, zero], f"{name}.weight.dq", axis=0)]
        if self.precision.quantized_type != "uint8":
            return [*inputs, self.float_constant(f"{name}.bias", bias)]
        # ONNX Runtime requires that the scale of the bias is the scale of the input times that of the weight.
        exact_scale = affine_scale(self._range_of(x.removesuffix(".dq")))[0] * tensor.scale.astype(np.float64)
        bias_scale = exact_scale.astype(np.float32)
        bias_values = np.clip(np.rint(bias / bias_scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        scale = self.constant(f"{name}.bias.scale", bias_scale)
        zero = self.constant(f"{name}.bias.zero", np.zeros(len(bias), np.int32))
        terms = [self.constant(f"{name}.bias", bias_values), scale, zero]
        return [*inputs, self.node("DequantizeLinear", terms, f"{name}.bias.dq", axis=0)]
