"""Reads the type in which each convolution of an engine computes, and compares it with the type that is required.

TensorRT gives no warning if an ONNX file has wider types than its user expects, or if the builder does not fuse the
nodes around a quantized convolution, so that it converts the integers back and multiplies in FP16. The engine inspector
reports the types. Its JSON differs between versions 10 (``Bindings``, ``Format/Datatype``) and 11 (``I/O Tensors``,
``DataType``). A layer can compute many nodes of the file, which are in its ``Metadata`` or ``Name``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regnet_deploy.engines.library import Library
from regnet_deploy.errors import ProofError

#: Names of types in reports, in the order of the search, because "bfloat16" contains "float16".
_TYPES = (
    ("fp8", re.compile(r"fp8|float8|e4m3", re.I)),
    ("bf16", re.compile(r"bf16|bfloat16", re.I)),
    ("int8", re.compile(r"int8", re.I)),
    ("fp16", re.compile(r"half|fp16|float16", re.I)),
    ("fp32", re.compile(r"float|fp32|tf32", re.I)),
)
#: Types from the narrowest to the widest.
_WIDTH = ("fp8", "int8", "bf16", "fp16", "tf32", "fp32")
#: The name of a kernel has the types of its two factors: ``..._f16f16_...``, ``..._i8i8_...``, ``..._tf32f32_...``.
_KERNEL = re.compile(r"(?<![a-z0-9])(e4m3|bf16|i8|f16|tf32|f32)(?:e4m3|bf16|i8|f16|tf32|f32)(?![a-z0-9])", re.I)
_KERNEL_TYPES = {"e4m3": "fp8", "bf16": "bf16", "i8": "int8", "f16": "fp16", "tf32": "tf32", "f32": "fp32"}
#: The two convolutions of a squeeze-and-excitation, on one pixel and few channels; builders may turn them into other
#: operators.
_GATE = re.compile(r"\.se\.f_ex\.[02]$")
#: Kinds of layers that compute a convolution, alone or fused with other nodes.
_MULTIPLIES = re.compile(r"conv|correlation|gemm|matmul|matrix|\bfc\b|runtime_fusion", re.I)
#: Kinds of layers that only move or convert data.
_MOVES = re.compile(r"reformat|copy|noop|constant|shuffle|signal|wait", re.I)
#: Kernels that the compiler generates: most only do what comes before or after a convolution, some compute it.
_GENERATED = re.compile(r"kgen", re.I)
#: The name of a generated kernel has an abbreviation of each of its operators, such as ``__myl_CastMulSum_0x3f12``;
#: ``Conc`` is a concatenation.
_GENERATED_MULTIPLIES = re.compile(r"Conv|Corr|Dot|Fc|Mul|[Gg]emm")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_LOGGED = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): "
)
_LOGGED_TENSOR = re.compile(r"Dimensions: \[(?P<dimensions>[^\]]*)\].*?Datatype: (?P<type>\w+)")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        names: of the nodes of the ONNX file that it computes, entirely or in part.
        kind: TensorRT's name of its kind, such as ``CaskConvolution``.
        input: type of its first input: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``; None if it is not reported.
            Of a generated kernel, whose inputs have no fixed order, the widest type of its factors.
        weights: type of its weights, or None.
        tactic: name of the kernel, or empty.
    """

    names: frozenset[str]
    kind: str
    input: str | None
    weights: str | None
    tactic: str

    @property
    def multiplies(self) -> bool:
        """Whether it computes a convolution, rather than moving data; not known of generated kernels."""
        if self.is_generated or _MOVES.search(self.kind):
            return False
        return bool(_MULTIPLIES.search(self.kind)) or self.weights is not None

    @property
    def is_generated(self) -> bool:
        """Whether the compiler generated its kernel."""
        return bool(_GENERATED.search(self.kind))

    @property
    def may_multiply(self) -> bool:
        """Whether it is a generated kernel that has a multiplication among its operators."""
        return self.is_generated and (self.weights is not None or bool(_GENERATED_MULTIPLIES.search(self.tactic)))

    @property
    def computes_in(self) -> str | None:
        """The type in which it computes: the wider one of its first input and its weights; None if it is not known.

        If the type of the input is not reported, it is taken from the name of the kernel. Quantized weights alone do
        not suffice, because they may be converted back before the multiplication.
        """
        kernel = _KERNEL.search(self.tactic)
        input_type = self.input or (_KERNEL_TYPES[kernel[1].lower()] if kernel else None)
        if input_type is None and self.weights in ("int8", "fp8"):
            return None
        types = [one for one in (input_type, self.weights) if one is not None]
        if not types:
            return None
        widest = max(types, key=_WIDTH.index)
        return "tf32" if widest == "fp32" and "tf32" in self.tactic.lower() else widest


@dataclass(frozen=True)
class TypeReport:
    """The result of a check of the types.

    Attributes:
        counts: type -> number of the required convolutions that compute in it.
        unaccounted: names of those that are in no layer of the report.
        wider: names of the squeeze-and-excitation convolutions that compute in a wider float than required.
    """

    counts: dict[str, int]
    unaccounted: tuple[str, ...]
    wider: tuple[str, ...] = ()


def report_of(library: Library, engine: Any, context: Any) -> str:
    """Return the inspector's report of a loaded engine, JSON.

    Args:
        library: that loaded it.
        engine: TensorRT's ``ICudaEngine``.
        context: one of its execution contexts with the shape of the input set; without it, the types of an engine with
            a dynamic batch size are not reported.

    Raises:
        ProofError: the runtime that loaded the engine has no inspector, such as the lean runtime.
    """
    inspector = engine.create_engine_inspector()
    if inspector is None:
        raise ProofError(
            f"in which types the engine computes is not known, because the runtime of {library} that loaded it has no "
            "engine inspector"
        )
    inspector.execution_context = context
    return str(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def layers_of_report(report: str) -> tuple[Layer, ...]:
    """Return the layers of a report of TensorRT 10 or 11.

    Raises:
        ProofError: it is not such a report, or the engine was not built with detailed verbosity.
    """
    try:
        # Not strict, because names of nodes are separated by control characters.
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
    """Return the layers that a builder listed in its log, one per line."""
    layers = []
    for line in text.split("\n"):  # splitlines() would also split at \x1e, which separates names of nodes
        found = _LOGGED.match(line)
        if found:
            inputs = [
                {"Dimensions": tensor["dimensions"].split(","), "Datatype": tensor["type"]}
                for tensor in _LOGGED_TENSOR.finditer(found["inputs"])
            ]
            tactic = re.search(r", TacticName: ([^,]*),", line)
            metadata = line.rpartition(", Metadata: ")[2]
            layer = {"Name": found["name"], "LayerType": found["kind"], "Metadata": metadata, "Inputs": inputs}
            layers.append(_layer({**layer, "TacticName": tactic[1] if tactic else ""}))
    return tuple(layers)


def convolution_types(layers: Iterable[Layer], names: Iterable[str]) -> dict[str, str]:
    """Return the type in which each of these convolutions computes, by name, without those that are in no layer.

    Args:
        layers: of the engine.
        names: of the convolutions in the ONNX file. TensorRT may split a grouped convolution into several layers; it
            then has the widest of their types.
    """
    layers, required = tuple(layers), set(names)
    multiplied = frozenset[str]().union(*(layer.names for layer in layers if layer.multiplies))
    types: dict[str, str] = {}
    for layer in layers:
        # A generated kernel computes a convolution only if no other layer does.
        computed = layer.names if layer.multiplies else layer.names - multiplied if layer.may_multiply else frozenset()
        kind = layer.computes_in
        if kind is not None:
            for name in computed & required:
                types[name] = max(types.get(name, kind), kind, key=_WIDTH.index)
    return types


def is_squeeze_excitation(name: str) -> bool:
    """Tell whether a convolution is one of a squeeze-and-excitation, whose type hardly changes the latency."""
    return bool(_GATE.search(name))


def check_types(
    required: Mapping[str, str], layers: Iterable[Layer], *, tf32: bool = False, accept_unaccounted: bool = False
) -> TypeReport:
    """Compare the types in which an engine computes with those that are required.

    A convolution of a squeeze-and-excitation may compute in a wider float or be unaccounted.

    Args:
        required: convolution -> ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        layers: of the engine.
        tf32: accept FP32 with factors rounded to TF32.
        accept_unaccounted: accept convolutions that are in no layer of the report.

    Raises:
        ProofError: a convolution computes in another type, or is in no layer.
    """
    found = convolution_types(layers, required)
    if required and not found:
        raise ProofError(
            f"in which types the engine computes is not known: its report has none of the {len(required)} convolutions"
        )
    others = {
        name: kind
        for name, kind in found.items()
        if kind != required[name] and not (tf32 and (required[name], kind) == ("fp32", "tf32"))
    }
    wider = tuple(
        name for name, kind in others.items() if is_squeeze_excitation(name) and _is_wider_float(kind, required[name])
    )
    wrong = {name: kind for name, kind in others.items() if name not in wider}
    if wrong:
        shown = ", ".join(f"{name} ({required[name]} required, {wrong[name]} built)" for name in list(wrong)[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ProofError(
            f"{len(wrong)} of {len(required)} convolutions do not compute in the type required: {shown}{more}"
        )
    unaccounted = tuple(name for name in required if name not in found)
    silent = [name for name in unaccounted if not is_squeeze_excitation(name)]
    if silent and not accept_unaccounted:
        more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
        raise ProofError(
            f"in which type {len(silent)} of {len(required)} convolutions compute is not known, because the engine's "
            f"report does not name them: {', '.join(silent[:3])}{more}; export with --accept-unaccounted to accept this"
        )
    return TypeReport(dict(Counter(found.values())), unaccounted, wider)


def _is_wider_float(kind: str, required: str) -> bool:
    return kind == "fp32" or (kind == "tf32" and required != "fp32")


def _layer(data: Mapping[str, Any]) -> Layer:
    metadata = str(data.get("Metadata") or "")
    parts = re.split(r" \+ | \|\| |[\x1e\x1f]", str(data["Name"]))
    names = [re.sub(r"^PWN\((.*)\)$", r"\1", part.strip()) for part in parts]
    inputs, weights = data.get("Inputs") or [], data.get("Weights")
    words = " ".join(str(data.get(key) or "") for key in ("LayerType", "ParameterType"))
    generated = bool(_GENERATED.search(words))
    return Layer(
        names=frozenset([*_ONNX_LAYER.findall(metadata), *names]),
        kind=words.strip(),
        input=_widest_factor(inputs) if generated else _type(_datatype(inputs[0])) if inputs else None,
        weights=_type(str(weights.get("Type"))) if isinstance(weights, Mapping) else None,
        tactic=str(data.get("TacticName") or ""),
    )


def _widest_factor(inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the widest type of the inputs of a generated kernel, without scales and biases: scalars and vectors."""
    factors = [one for one in inputs if sum(str(size) != "1" for size in one.get("Dimensions") or []) > 1]
    types = [_type(_datatype(one)) for one in factors or inputs]
    known = [one for one in types if one is not None]
    return max(known, key=_WIDTH.index) if known and len(known) == len(types) else None


def _datatype(tensor: Mapping[str, Any]) -> str:
    """Return a tensor's type in a report: ``Format/Datatype`` in version 10, ``DataType`` in version 11."""
    return next((str(value) for key, value in tensor.items() if key.lower().endswith("datatype")), "")


def _type(words: str) -> str | None:
    return next((name for name, pattern in _TYPES if pattern.search(words)), None)
