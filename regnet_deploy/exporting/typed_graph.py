"""An ONNX graph under construction: nodes and constants, each in the type that the precision gives it.

Quantised operators are written as Q/DQ pairs: a tensor goes through QuantizeLinear and DequantizeLinear, a weight is
stored small behind DequantizeLinear, and the runtime fuses what surrounds an operator into its own small kernel.
TensorRT's parser takes zero points of 0 only, no INT32 biases, and scales per tensor for activations, per channel for
weights; ONNX Runtime's CPU is fast where every tensor between two operators is quantised, biases too. ``int8`` and
``fp8`` are written for the one, ``uint8`` for the other. A tensor has one pair however many operators read it.
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
from regnet_deploy.exporting.precision import Kind, Precision
from regnet_deploy.exporting.quantization import TensorRange, affine_scale, quantize_weights, symmetric_scale

#: Opset -> the version of the file format that came with it.
_IR_VERSIONS = {18: 8, 19: 9, 22: 10}
_FLOATS: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}

Array = NDArray[Any]


class TypedGraph:
    """Nodes and constants in the order in which they were added.

    Attributes:
        weights: arrays by the names of the model's state dict.
        precision: what the graph computes in.
        ranges: of the tensors to be quantised, by name.
        between: names of the tensors that are, or in another precision could be, quantised.
        kinds: of the convolutions by name.
    """

    def __init__(
        self, weights: Mapping[str, Array], precision: Precision, ranges: Mapping[str, TensorRange], *, reduced: bool
    ) -> None:
        self.weights, self.precision, self.ranges = weights, precision, ranges
        self.between: list[str] = []
        self.kinds: dict[str, Kind] = {}
        self._reduced = reduced
        self._float = np.dtype(_FLOATS[precision.rest])
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._small: dict[str, str] = {}
        self._entered = ""

    def node(self, operator: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of what it puts out."""
        self._nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: Array) -> str:
        """Add a constant in the type that it has."""
        # A scalar stays one: of scales of shape (1,) TensorRT-RTX makes no INT8 kernels and ONNX Runtime no QLinearAdd.
        array = np.asarray(value, order="C")
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = little_endian.tobytes()
        self._constants[name] = helper.make_tensor(name, kind, array.shape, data, raw=True)
        return name

    def rounded(self, name: str, value: Array) -> str:
        """Add a constant in the type of what is not quantised."""
        return self.constant(name, value.astype(self._float))

    def cast(self, x: str, name: str, to: Any, output: str | None = None) -> str:
        """Add a cast; none where the graph computes in FP32 anyhow."""
        if self._float == np.float32 and output is None:
            return x
        return self.node("Cast", [x], name, output, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    def enter(self, x: str) -> str:
        """Bring normalised images, FP32, into the graph's type. Their range is that of ``images``."""
        self._entered = self.cast(x, f"{x}.{self.precision.rest}", self._float)
        return self.stored(self._entered)

    def leave(self, x: str, bias_of: str, output: str) -> str:
        """Add the linear layer of these weights and bring its result out as FP32."""
        weight, bias = self.weights[f"{bias_of}.weight"], self.weights[f"{bias_of}.bias"]
        uses_small = self.precision.small == "uint8"
        inputs = [x, *self._parameters(bias_of, weight, bias, x, uses_small)]
        if self._float == np.float32:
            return self.node("Gemm", inputs, bias_of, output, transB=1)
        return self.cast(self.node("Gemm", inputs, bias_of, transB=1), f"{output}.fp32", np.float32, output)

    def convolution(
        self, x: str, name: str, kind: Kind, weight: Array, bias: Array, stride: int = 1, groups: int = 1
    ) -> str:
        """Add a convolution with its bias."""
        self.kinds[name] = kind
        uses_small = self.precision.type_of(kind) in ("int8", "fp8")
        if uses_small:
            x = self._quantised(x)
        kernel = weight.shape[2]
        return self.node(
            "Conv",
            [x, *self._parameters(name, weight, bias, x, uses_small)],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        return self.stored(self.node("Relu", [x], name))

    def stored(self, x: str) -> str:
        """Return a tensor as the next operator finds it: quantised where all of them are."""
        self.between.append(x)
        return self._quantised(x) if self.precision.small == "uint8" else x

    def serialise(self, images: Any, logits: Any, metadata: Mapping[str, str]) -> bytes:
        """Return the file."""
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

    def _quantised(self, x: str) -> str:
        """Return the tensor behind a pair of Q and DQ; the same one for everyone who asks."""
        if x in self._small.values():
            return x
        if x not in self._small:
            small = self.precision.small
            zero: Array
            bounds = self._range_of(x)
            if small == "uint8":
                scale, point = affine_scale(bounds)
                zero = np.asarray(point, np.uint8)
            elif small == "fp8":
                scale, zero = symmetric_scale(bounds, "fp8"), np.zeros((), ml_dtypes.float8_e4m3fn)
            else:
                scale, zero = symmetric_scale(bounds, "int8"), np.zeros((), np.int8)
            terms = [self.rounded(f"{x}.scale", np.asarray(scale)), self.constant(f"{x}.zero", zero)]
            q = self.node("QuantizeLinear", [x, *terms], f"{x}.q")
            self._small[x] = self.node("DequantizeLinear", [q, *terms], f"{x}.dq")
        return self._small[x]

    def _range_of(self, x: str) -> TensorRange:
        return self.ranges["images" if x == self._entered else x]

    def _parameters(self, name: str, weight: Array, bias: Array, x: str, uses_small: bool) -> list[str]:
        """Add weight and bias of an operator and return their names."""
        if not uses_small:
            return [self.rounded(f"{name}.weight", weight), self.rounded(f"{name}.bias", bias)]
        kind = "fp8" if self.precision.small == "fp8" else "int8"
        small = quantize_weights(weight, kind, self._float, reduced=self._reduced)
        scale = self.constant(f"{name}.weight.scale", small.scale)
        zero = self.constant(f"{name}.weight.zero", np.zeros(len(weight), small.values.dtype))
        values = self.constant(f"{name}.weight", small.values)
        inputs = [self.node("DequantizeLinear", [values, scale, zero], f"{name}.weight.dq", axis=0)]
        if self.precision.small != "uint8":
            return [*inputs, self.rounded(f"{name}.bias", bias)]
        # ONNX Runtime wants a bias in the units of the products: the scale of the input times that of the weight.
        units = affine_scale(self._range_of(x.removesuffix(".dq")))[0] * small.scale.astype(np.float64)
        units = units.astype(np.float32)
        whole = np.clip(np.rint(bias / units.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        unit = self.constant(f"{name}.bias.scale", units)
        none = self.constant(f"{name}.bias.zero", np.zeros(len(bias), np.int32))
        terms = [self.constant(f"{name}.bias", whole), unit, none]
        return [*inputs, self.node("DequantizeLinear", terms, f"{name}.bias.dq", axis=0)]
