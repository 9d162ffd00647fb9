"""Chooses the variant to package, with everything that the configuration of a server needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.measurements import Serving
from regnet_deploy.bundle.variants import EngineVariant, OnnxVariant, OpenvinoVariant
from regnet_deploy.engines.bundle_engines import StoredEngine, fits
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.images.preprocessing import image_shape
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.onnx_file import fields_of, refuse_external_data
from regnet_deploy.runtimes.predictions import labels_of
from regnet_deploy.runtimes.runtime import Device, find_variant
from regnet_deploy.runtimes.tuned_settings import tuned_settings

_GRAPH = 7  # field of a model
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # fields of a graph
_VALUE_NAME, _TENSOR_NAME = 1, 8


@dataclass(frozen=True, eq=False)
class PackagedVariant:
    """A proved variant, with everything that the configuration of a server needs.

    Attributes:
        bundle: has the variant.
        variant: its name.
        onnx: logical name of its ONNX file, or of the one from which its engines were built.
        exact: whether ONNX Runtime must run the file without graph optimizations; False for engines.
        weight_bits: of the weights, where their number depends on the CPU; else None.
        input_name: name of the input tensor.
        output_name: name of the output tensor.
        dtype: ``float32`` for normalized images ``(n, channels, h, w)``, ``uint8`` for pixels ``(n, h, w, channels)``.
        labels: of the outputs.
        preprocessing: of images.
        engines: proved engines of the bundle's weights; empty for an ONNX variant.
        tuned: the result of ``tune`` for it on this machine, or None.
    """

    bundle: Bundle
    variant: str
    onnx: str
    exact: bool
    weight_bits: int | None
    input_name: str
    output_name: str
    dtype: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    engines: tuple[StoredEngine, ...]
    tuned: Serving | None

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of one image in the input tensor."""
        return image_shape(self.preprocessing, pixels=self.dtype == "uint8")


def choose_packaged_variant(bundle: Bundle, requested: str | None, *, gpu: bool) -> PackagedVariant:
    """Return the variant to package: the requested or tuned one, else the fastest proved one for a CPU or a GPU.

    A requested variant of engines needs no GPU here, because its engines may be for other machines.

    Raises:
        MissingPart: nothing has been exported; the message names the command.
        UsageError: the variant is unknown or not proved, or none can be run.
        BundleError: its file is damaged.
    """
    engines: tuple[StoredEngine, ...] = ()
    device: Device = "cuda" if gpu else "cpu"
    found = tuned_settings(bundle, variant=requested, device=device)
    # Triton and the containers use ONNX Runtime, so settings for OpenVINO are not valid there.
    tuned = found if isinstance(found, Serving) and found.settings.runtime != "openvino" else None
    if requested is not None and isinstance(find_variant(bundle, requested), EngineVariant):
        if not gpu:
            raise UsageError(f"variant {requested} is one of engines, which run on a GPU: add --gpu")
        name, engines = requested, _proved_engines(bundle, requested)
    elif requested is not None and isinstance(named := find_variant(bundle, requested), OpenvinoVariant):
        raise UsageError(
            f"variant {requested} runs in OpenVINO, and Triton and the containers use ONNX Runtime: choose --variant "
            f"{named.source}"
        )
    else:
        name = default_variant(
            _without_openvino(bundle), requested or (tuned.settings.variant if tuned else None), device
        )
        if isinstance(find_variant(bundle, name), EngineVariant):
            engines = _proved_engines(bundle, name)
    variant = find_variant(bundle, name)
    source = find_variant(bundle, variant.source) if isinstance(variant, EngineVariant) else variant
    assert isinstance(source, OnnxVariant)  # proved engines are built from one
    input_name, output_name = _tensor_names(bundle.read(source.file), name)
    return PackagedVariant(
        bundle=bundle,
        variant=name,
        onnx=source.file,
        exact=isinstance(variant, OnnxVariant) and variant.exact,
        weight_bits=variant.weight_bits if isinstance(variant, OnnxVariant) else None,
        input_name=input_name,
        output_name=output_name,
        dtype=variant.input,
        labels=labels_of(bundle),
        preprocessing=bundle.preprocessing,
        engines=engines,
        tuned=tuned if tuned and tuned.settings.variant == name else None,
    )


def _without_openvino(bundle: Bundle) -> Bundle:
    variants = {name: one for name, one in bundle.manifest.variants.items() if not isinstance(one, OpenvinoVariant)}
    return replace(bundle, manifest=bundle.manifest.replace(variants=variants))


def _proved_engines(bundle: Bundle, name: str) -> tuple[StoredEngine, ...]:
    """Return the proved engines of the bundle's ONNX file, for any machine."""
    elsewhere = (
        "the machine that will run it is another one"  # the reason of every engine that belongs to the ONNX file
    )
    stored = fits(bundle, name, elsewhere, None)
    found = tuple(engine for engine in stored if engine.is_proved and engine.unsupported_reason == elsewhere)
    if not found:
        reasons = dict.fromkeys(
            "its engine is not proved" if engine.unsupported_reason == elsewhere else str(engine.unsupported_reason)
            for engine in stored
        )
        raise UsageError(
            f"variant {name} of {bundle.path} cannot be packaged: {'; '.join(reasons) or 'it has no engine'}; run "
            f"`regnet-deploy export --trt{bundle.argument}` on the machine that will run it"
        )
    return found


def _tensor_names(data: bytes, variant: str) -> tuple[str, str]:
    """Return the names of an ONNX file's input and output.

    Raises:
        BundleError: it does not have one of each, or has external data.
    """
    refuse_external_data(data)
    graphs = list(_inside(memoryview(data), _GRAPH))
    weights = {
        name for graph in graphs for tensor in _inside(graph, _INITIALIZER) for name in _name(tensor, _TENSOR_NAME)
    }
    inputs = [name for graph in graphs for value in _inside(graph, _INPUT) for name in _name(value, _VALUE_NAME)]
    outputs = [name for graph in graphs for value in _inside(graph, _OUTPUT) for name in _name(value, _VALUE_NAME)]
    inputs = [name for name in inputs if name not in weights]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BundleError(
            f"the network of {variant} has {len(inputs)} inputs and {len(outputs)} outputs, one batch of images and "
            "one of logits were expected"
        )
    return inputs[0], outputs[0]


def _name(message: memoryview, field: int) -> list[str]:
    return [bytes(part).decode("utf-8", "replace") for part in _inside(message, field)]


def _inside(message: memoryview, field: int) -> Iterator[memoryview]:
    return (value for number, value in fields_of(message) if number == field and isinstance(value, memoryview))
