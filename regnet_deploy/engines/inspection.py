"""In which type each convolution of a built engine really computes, read back and held against what was asked.

TensorRT computes a network as its file is typed, and says nothing where a file asks for less than its user thinks. A
quantized convolution is only one where a builder fuses what surrounds it: where it does not, the small numbers are
converted back and multiplied in FP16, again without a word. The engine inspector tells. Its JSON differs between
versions 10 (``Bindings``, ``Format/Datatype``) and 11 (``I/O Tensors``, ``DataType``), and a layer is many nodes of the
file at once: its ``Metadata`` names them, or its ``Name``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from regnet_deploy.engines.builder_log import failure
from regnet_deploy.engines.deserialize import deserialize_engine
from regnet_deploy.engines.library import Library
from regnet_deploy.errors import ProofError

#: A type as reports call it, in the order in which to look: bfloat16 has float16 in its name.
_TYPES = (
    ("fp8", re.compile(r"fp8|float8|e4m3", re.I)),
    ("bf16", re.compile(r"bf16|bfloat16", re.I)),
    ("int8", re.compile(r"int8", re.I)),
    ("fp16", re.compile(r"half|fp16|float16", re.I)),
    ("fp32", re.compile(r"float|fp32|tf32", re.I)),
)
#: From the narrowest.
_WIDTH = ("fp8", "int8", "bf16", "fp16", "tf32", "fp32")
#: A kernel's name has the types of its two factors: ``..._f16f16_...``, ``..._i8i8_...``, ``..._tf32f32_...``.
_KERNEL = re.compile(r"(?<![a-z0-9])(e4m3|bf16|i8|f16|tf32|f32)(?:e4m3|bf16|i8|f16|tf32|f32)(?![a-z0-9])", re.I)
_KERNEL_TYPES = {"e4m3": "fp8", "bf16": "bf16", "i8": "int8", "f16": "fp16", "tf32": "tf32", "f32": "fp32"}
#: The two convolutions that make the gate of a squeeze-and-excitation, of one pixel and a few channels: what a builder
#: makes of them need not be a convolution any more.
_GATE = re.compile(r"\.se\.f_ex\.[02]$")
#: Layers that multiply: what a convolution becomes, whole or fused with its neighbors.
_MULTIPLIES = re.compile(r"conv|correlation|gemm|matmul|matrix|\bfc\b|runtime_fusion", re.I)
#: Layers that only move or convert, however they are called.
_MOVES = re.compile(r"reformat|copy|noop|constant|shuffle|signal|wait|kgen", re.I)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_LOGGED = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): "
)


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        names: of the nodes of the ONNX file that it computes, or has a part in.
        kind: TensorRT's word for what it is, such as ``CaskConvolution``.
        input: type of its first input: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``; None where it is not told.
        weights: type of its weights, or None.
        tactic: name of the kernel, empty where there is none.
    """

    names: frozenset[str]
    kind: str
    input: str | None
    weights: str | None
    tactic: str

    @property
    def multiplies(self) -> bool:
        """Whether it computes a convolution, rather than moving what one computes with."""
        if _MOVES.search(self.kind):
            return False
        return bool(_MULTIPLIES.search(self.kind)) or self.weights is not None

    @property
    def computes_in(self) -> str | None:
        """The type that it computes in: the widest of its first input and its weights; None where it is not told.

        Where the input's type is not told, the kernel's name tells it. Weights alone do not tell that small numbers are
        multiplied as such: they may be converted back before.
        """
        kernel = _KERNEL.search(self.tactic)
        entered = self.input or (_KERNEL_TYPES[kernel[1].lower()] if kernel else None)
        if entered is None and self.weights in ("int8", "fp8"):
            return None
        found = [kind for kind in (entered, self.weights) if kind is not None]
        if not found:
            return None
        widest = max(found, key=_WIDTH.index)
        return "tf32" if widest == "fp32" and "tf32" in self.tactic.lower() else widest


@dataclass(frozen=True)
class TypeReport:
    """What a check of the types found.

    Attributes:
        counts: type -> how many of the convolutions asked for compute in it.
        unaccounted: names of those that no layer owns up to.
        wider: names of the gates that compute in a wider float than asked.
    """

    counts: dict[str, int]
    unaccounted: tuple[str, ...]
    wider: tuple[str, ...] = ()


def inspect_engine(library: Library, plan: bytes) -> tuple[Layer, ...]:
    """Return the layers of a plan, read on this machine's GPU; it has to be built with detailed verbosity.

    Raises:
        RegnetDeployError: the plan does not load.
        ProofError: the report cannot be read.
    """
    loaded = deserialize_engine(library, plan)
    engine, trt = loaded.engine, library.module
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise failure(library, "does not start the engine", loaded.heard.errors)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            _, tuned, _ = engine.get_tensor_profile_shape(name, 0)
            context.set_input_shape(name, tuple(tuned))
    return layers_of_report(report_of(library, engine, context))


def report_of(library: Library, engine: Any, context: Any) -> str:
    """Return the inspector's report of a loaded engine, JSON.

    Args:
        library: that loaded it.
        engine: TensorRT's ``ICudaEngine``.
        context: one of its execution contexts, with the shape of the input set: of an engine whose batch may vary, no
            type is told without one.
    """
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def layers_of_report(report: str) -> tuple[Layer, ...]:
    """Return the layers of a report of TensorRT 10 or 11.

    Raises:
        ProofError: it is not such a report, or one of an engine that was not built with detailed verbosity.
    """
    try:
        # Not strict: names of nodes stand in it with the control characters that separate them.
        layers = json.loads(report, strict=False)["Layers"]
        if not all(isinstance(layer, dict) for layer in layers):
            raise ProofError("the engine lists the names of its layers without their types: build it again")
        return tuple(_layer(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProofError(
            "in which types the engine computes is not known, for the inspector's report cannot be read: "
            f"{type(error).__name__} {' '.join(str(error).split())[:100]}"
        ) from None


def layers_of_log(text: str) -> tuple[Layer, ...]:
    """Return the layers that a builder listed in its log, one a line."""
    layers = []
    for line in text.splitlines():
        found = _LOGGED.match(line)
        if found:
            kinds = re.findall(r"Datatype: (\w+)", found["inputs"])
            metadata = line.rpartition(", Metadata: ")[2]
            layer = {"Name": found["name"], "LayerType": found["kind"], "Metadata": metadata}
            layers.append(_layer({**layer, "Inputs": [{"Datatype": kind} for kind in kinds]}))
    return tuple(layers)


def convolution_types(layers: Iterable[Layer], names: Iterable[str]) -> dict[str, str]:
    """Return in which type each of these convolutions computes, by name; without those that no layer owns up to.

    Args:
        layers: of the engine.
        names: of the convolutions in the ONNX file. One that several layers compute, as TensorRT may split a grouped
            one, has the widest of their types.
    """
    wanted = set(names)
    types: dict[str, str] = {}
    for layer in layers:
        kind = layer.computes_in
        if layer.multiplies and kind is not None:
            for name in layer.names & wanted:
                types[name] = max(types.get(name, kind), kind, key=_WIDTH.index)
    return types


def is_squeeze_excitation(name: str) -> bool:
    """Tell whether a convolution is of a squeeze-and-excitation's gate: one whose type next to no time depends on."""
    return bool(_GATE.search(name))


def check_types(
    asked: Mapping[str, str], layers: Iterable[Layer], *, tf32: bool = False, accept_unaccounted: bool = False
) -> TypeReport:
    """Hold what an engine computes in against what was asked.

    A gate (:func:`is_gate`) may compute in a wider float than asked, or go unaccounted for.

    Args:
        asked: convolution -> ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        layers: of the engine.
        tf32: FP32 may be computed with factors rounded to TF32.
        accept_unaccounted: of some convolutions it need not be known.

    Raises:
        ProofError: a convolution computes in another type, or no layer owns up to one.
    """
    found = convolution_types(layers, asked)
    if asked and not found:
        raise ProofError(
            f"in which types the engine computes is not known: its report has none of the {len(asked)} convolutions"
        )
    others = {
        name: kind
        for name, kind in found.items()
        if kind != asked[name] and not (tf32 and (asked[name], kind) == ("fp32", "tf32"))
    }
    wider = tuple(
        name for name, kind in others.items() if is_squeeze_excitation(name) and _is_wider_float(kind, asked[name])
    )
    wrong = {name: kind for name, kind in others.items() if name not in wider}
    if wrong:
        shown = ", ".join(f"{name} ({asked[name]} asked, {wrong[name]} built)" for name in list(wrong)[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ProofError(f"{len(wrong)} of {len(asked)} convolutions do not compute in the type asked: {shown}{more}")
    unaccounted = tuple(name for name in asked if name not in found)
    silent = [name for name in unaccounted if not is_squeeze_excitation(name)]
    if silent and not accept_unaccounted:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        raise ProofError(
            f"in which type {len(silent)} of {len(asked)} convolutions compute is not known, for the engine's report "
            f"does not name them: {', '.join(silent[:3])}{more}; export with --accept-unaccounted to take it so"
        )
    return TypeReport(dict(Counter(found.values())), unaccounted, wider)


def _is_wider_float(kind: str, asked: str) -> bool:
    return kind == "fp32" or (kind == "tf32" and asked != "fp32")


def _layer(data: Mapping[str, Any]) -> Layer:
    metadata = str(data.get("Metadata") or "")
    parts = re.split(r" \+ | \|\| |[\x1e\x1f]", str(data["Name"]))
    names = [re.sub(r"^PWN\((.*)\)$", r"\1", part.strip()) for part in parts]
    inputs, weights = data.get("Inputs") or [], data.get("Weights")
    words = " ".join(str(data.get(key) or "") for key in ("LayerType", "ParameterType"))
    return Layer(
        names=frozenset([*_ONNX_LAYER.findall(metadata), *names]),
        kind=words.strip(),
        input=_type(_datatype(inputs[0])) if inputs else None,
        weights=_type(str(weights.get("Type"))) if isinstance(weights, Mapping) else None,
        tactic=str(data.get("TacticName") or ""),
    )


def _datatype(tensor: Mapping[str, Any]) -> str:
    """Return what a report says of a tensor's type: ``Format/Datatype`` of version 10, ``DataType`` of 11."""
    return next((str(value) for key, value in tensor.items() if key.lower().endswith("datatype")), "")


def _type(words: str) -> str | None:
    return next((name for name, pattern in _TYPES if pattern.search(words)), None)
