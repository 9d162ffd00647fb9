"""The variant to package: proved, with everything that the configuration of a server needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import EngineVariant, OnnxVariant
from regnet_deploy.engines.bundle_engines import StoredEngine, fits
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.onnx_file import fields_of, refuse_external_data
from regnet_deploy.runtimes.predictions import labels_of
from regnet_deploy.runtimes.runtime import Device, find_variant
from regnet_deploy.runtimes.tuned_settings import TunedSettings, tuned_settings

_GRAPH = 7  # field of a model
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # fields of a graph
_VALUE_NAME, _TENSOR_NAME = 1, 8


@dataclass(frozen=True, eq=False)
class PackagedVariant:
    """A proved variant, with everything that a configuration needs.

    Attributes:
        bundle: that it is of.
        variant: its name.
        onnx: logical name of its ONNX file; of engines, of the one they were built from.
        input_name: of the tensor of images.
        output_name: of the tensor of logits.
        dtype: ``float32`` for normalized images ``(n, 3, h, w)``, ``uint8`` for pixels ``(n, h, w, 3)``.
        labels: of the outputs.
        preprocessing: of images.
        engines: of a variant of engines, those that are proved and of the bundle's weights; else empty.
        tuned: what ``tune`` found for it on this machine, or None.
    """

    bundle: Bundle
    variant: str
    onnx: str
    input_name: str
    output_name: str
    dtype: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    engines: tuple[StoredEngine, ...]
    tuned: TunedSettings | None

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of one image as the network takes it."""
        side = self.preprocessing.crop
        return (side, side, 3) if self.dtype == "uint8" else (3, side, side)


def choose_packaged_variant(bundle: Bundle, wanted: str | None, *, gpu: bool) -> PackagedVariant:
    """Return the variant to package: the one wanted or tuned, or the fastest that is proved for a CPU or a GPU.

    A variant of engines that is named needs no GPU here: its engines are for other machines.

    Raises:
        MissingPart: nothing has been exported; the message names the command.
        UsageError: the variant is unknown or unproved, or none can be run.
        BundleError: its file is damaged.
    """
    engines: tuple[StoredEngine, ...] = ()
    device: Device = "cuda" if gpu else "cpu"
    found = tuned_settings(bundle, variant=wanted, device=device)
    # Triton and the containers run ONNX files by ONNX Runtime: what was found with OpenVINO says nothing of that.
    tuned = found if isinstance(found, TunedSettings) and found.runtime != "openvino" else None
    if wanted is not None and isinstance(find_variant(bundle, wanted), EngineVariant):
        if not gpu:
            raise UsageError(f"variant {wanted} is one of engines, which run on a GPU: add --gpu")
        name, engines = wanted, _proved_engines(bundle, wanted)
    else:
        name = default_variant(bundle, wanted or (tuned.variant if tuned else None), device)
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
        input_name=input_name,
        output_name=output_name,
        dtype=variant.input,
        labels=labels_of(bundle),
        preprocessing=bundle.preprocessing,
        engines=engines,
        tuned=tuned if tuned and tuned.variant == name else None,
    )


def _proved_engines(bundle: Bundle, name: str) -> tuple[StoredEngine, ...]:
    """Return the proved engines of what the bundle has now, whatever machine each is for."""
    elsewhere = "the machine that will run it is another one"  # a reason of every engine but the stale ones
    stored = fits(bundle, name, elsewhere, None)
    found = tuple(engine for engine in stored if engine.is_proved and engine.unsupported_reason == elsewhere)
    if not found:
        reasons = dict.fromkeys(
            "its engine is not proved" if engine.unsupported_reason == elsewhere else str(engine.unsupported_reason)
            for engine in stored
        )
        raise UsageError(
            f"variant {name} of {bundle.path} cannot be packaged: {'; '.join(reasons) or 'it has no engine'}; run "
            "`regnet-deploy export --trt` on the machine that will run it"
        )
    return found


def _tensor_names(data: bytes, variant: str) -> tuple[str, str]:
    """Return the names of an ONNX file's input and output.

    Raises:
        BundleError: it does not have one of each, or keeps tensors elsewhere.
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
