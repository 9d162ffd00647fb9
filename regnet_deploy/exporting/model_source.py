"""The trained network that every exported file is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import UsageError
from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx, convolution_types
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.models.weights import load_model
from regnet_deploy.space.network import Network


@dataclass(frozen=True, eq=False)
class ModelSource:
    """The network, its weights and what is written into every file.

    Attributes:
        model: PyTorch module in evaluation mode.
        network: its stages.
        weights: name in the state dict -> array.
        preprocessing: of the bundle.
        metadata: written into each ONNX file, so that it can be understood without its bundle.
    """

    model: nn.Module
    network: Network
    weights: Mapping[str, NDArray[Any]]
    preprocessing: Preprocessing
    metadata: Mapping[str, str]

    def onnx(
        self,
        precision: Precision,
        ranges: Mapping[str, TensorRange] | None = None,
        *,
        pixels: bool = False,
        reduce_range: bool = False,
    ) -> bytes:
        """Return the ONNX file of a precision; see :func:`regnet_deploy.exporting.onnx_graph.build_onnx`."""
        return build_onnx(
            self.network,
            self.weights,
            self.preprocessing,
            precision,
            ranges,
            pixels=pixels,
            reduce_range=reduce_range,
            metadata=self.metadata,
        )

    def activation_names(self) -> list[str]:
        """Return the names of the activations whose ranges quantized precisions need."""
        return activation_names(self.network, self.weights)

    def convolution_types(self, precision: Precision) -> dict[str, str]:
        """Return the type in which each convolution computes, by name."""
        return convolution_types(self.network, self.weights, precision)

    def check_has_effect(self, precision: Precision) -> None:
        """Check that no more precise precision computes this network in the same types.

        Raises:
            UsageError: one does, for example where ``int8-1x1`` finds no 1x1 convolution.
        """
        if precision.quantized_type in (None, "uint8"):  # these differ in operators that every network has
            return
        types = self.convolution_types(precision)
        if precision.quantized_type in types.values():
            return
        same = next(
            one.name
            for one in PRECISIONS.values()
            if one.quantized_type is None and one.float_type == precision.float_type
        )
        kinds = ", ".join(sorted(precision.quantized_kinds))
        raise UsageError(
            f"precision {precision.name} would quantize nothing in this network, which has no {kinds} convolution: it "
            f"would be {same} under another name; give --precision {same}, or int8, which quantizes the 3x3 "
            "convolutions too"
        )


def load_model_source(bundle: Bundle) -> ModelSource:
    """Read the network and the weights of a bundle.

    Raises:
        MissingPart: the bundle has no architecture or no preprocessing.
        BundleError: the weights are damaged or belong to another network.
    """
    model = load_model(bundle)
    parts = {name: bundle.parts[name] for name in ("architecture", "preprocessing", "labels") if name in bundle.parts}
    return ModelSource(
        model=model,
        network=bundle.architecture.network,
        weights={name: value.numpy() for name, value in model.state_dict().items()},
        preprocessing=bundle.preprocessing,
        metadata={name: json.dumps(value, sort_keys=True) for name, value in parts.items()},
    )
