"""Converts gRPC messages to the documents of the protocol's JSON, and back. No I/O.

Tensors of a request become raw bytes, as behind the JSON over HTTP, so that both protocols share the rest. Tensors of
a response are always raw: clients read nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regnet_deploy.errors import require
from regnet_deploy.protobuf import messages
from regnet_deploy.protobuf.wire_format import Shape, WireError, overhead, split
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_interface import ModelInterface

#: Limit of a request's bytes without its tensors: names, shapes, parameters.
HEAD_BYTES = 64 * 2**10
#: Limit of a request's inputs and of its outputs; that a network has one of each is checked later.
_TENSORS = 64

# Of ModelInferRequest: inputs (5), their contents (5), and in these packed numbers (proto3).
_RAW = 7  # raw_input_contents
_CONTENTS = Shape(data=frozenset(range(1, 8)))
_REQUEST = Shape({5: Shape({5: _CONTENTS})}, frozenset({_RAW}))

#: Datatype -> field of InferTensorContents, and NumPy type of the raw bytes.
_TYPED: dict[str, tuple[str, np.dtype[Any]]] = {
    "FP32": ("fp32_contents", np.dtype("<f4")),
    "UINT8": ("uint_contents", np.dtype("u1")),
}


def read_message(data: bytes) -> tuple[Any, list[memoryview]]:
    """Parse a ModelInferRequest; return it without its raw tensors, and these, not copied.

    Raises:
        RequestError: the bytes are not such a message (400), or it has too many bytes beside its tensors (413).
    """
    try:
        if overhead(data, _REQUEST, HEAD_BYTES) > HEAD_BYTES:
            raise RequestError(f"the request has more than {HEAD_BYTES} bytes besides its raw tensors", 413)
        head, raw = split(data, _RAW)
    except WireError as error:
        raise RequestError(f"the request is not an inference.ModelInferRequest: {error}") from None
    return parse(head, "inference.ModelInferRequest"), raw


def parse(data: bytes, name: str) -> Any:
    """Parse a message of type ``name``.

    Raises:
        RequestError: the bytes are not such a message.
    """
    try:
        return messages.message_class(name).FromString(data)
    except (require("google.protobuf.message", messages.EXTRA).DecodeError, UnicodeDecodeError):
        raise RequestError(f"the request is not a {name}") from None


def read_request(
    request: Any, raw: Sequence[memoryview], interface: ModelInterface
) -> tuple[dict[str, Any], memoryview]:
    """Return a ModelInferRequest as the protocol's JSON document, and the bytes of its tensors.

    Args:
        request: without its raw tensors.
        raw: its raw tensors.
        interface: of the model.

    Raises:
        RequestError: raw and typed tensors are mixed, one is missing, or numbers do not fit their type.
    """
    inputs = request.inputs
    if len(inputs) > _TENSORS or len(request.outputs) > _TENSORS:
        raise RequestError(f"{max(len(inputs), len(request.outputs))} tensors are more than the model has")
    if raw and any(tensor.HasField("contents") for tensor in inputs):
        raise RequestError("raw_input_contents and contents may not be mixed")
    if raw and len(raw) != len(inputs):
        raise RequestError(f"there are {len(raw)} raw_input_contents for {len(inputs)} inputs")
    parts = raw or [_typed(tensor, interface) for tensor in inputs]
    rest = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_parameters(tensor.parameters), "binary_data_size": len(part)},
            }
            for tensor, part in zip(inputs, parts, strict=True)
        ],
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
    }
    if len(request.outputs):
        document["outputs"] = [
            {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": True}}
            for output in request.outputs
        ]
    if request.id:
        document["id"] = request.id
    return document, rest


def write_response(document: Mapping[str, Any], raw: Sequence[bytes]) -> bytes:
    """Return a ModelInferResponse, serialized, with the content of the JSON document ``document``.

    Args:
        document: as over HTTP; ``data`` and ``binary_data_size`` of its outputs are ignored.
        raw: the outputs' tensors.
    """
    response = messages.message_class("inference.ModelInferResponse")(
        model_name=document["model_name"],
        model_version=document.get("model_version", ""),
        id=document.get("id", ""),
        raw_output_contents=raw,
    )
    _set_parameters(response.parameters, document.get("parameters", {}))
    for described in document["outputs"]:
        output = response.outputs.add(name=described["name"], datatype=described["datatype"], shape=described["shape"])
        _set_parameters(output.parameters, described.get("parameters", {}))
    data: bytes = response.SerializeToString()
    return data


def _parameters(given: Any) -> dict[str, Any]:
    """Return an InferParameter map as plain values."""
    plain: dict[str, Any] = {}
    for key, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise RequestError(f"parameter {key[:60]!r} has no value")
        if key.startswith("shared_memory_"):
            raise RequestError(f"shared memory is not offered: {key[:60]}")
        plain[key] = getattr(parameter, choice)
    return plain


def _set_parameters(target: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key == "binary_data_size":
            continue
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int):
            target[key].int64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        else:
            target[key].string_param = str(value)


def _typed(tensor: Any, interface: ModelInterface) -> memoryview:
    """Return the typed contents of an input as raw bytes; none for a datatype that no network takes."""
    if tensor.datatype not in _TYPED:
        return memoryview(b"")
    field, dtype = _TYPED[tensor.datatype]
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled and filled != [field]:
        others = ", ".join(name for name in filled if name != field)
        raise RequestError(f"input {tensor.name[:60]!r} is {tensor.datatype}, which takes {field}, not {others}")
    values = getattr(tensor.contents, field)
    most = interface.max_batch * math.prod(interface.image)
    if len(values) > most:  # before an array is made of them
        raise RequestError(f"{len(values)} numbers are more than {interface.max_batch} images have")
    if dtype.kind == "f":
        return memoryview(np.fromiter(values, dtype, len(values)).tobytes())
    wide = np.fromiter(values, np.uint32, len(values))
    if len(wide) and wide.max() > 255:
        raise RequestError(f"input {tensor.name[:60]!r}: the data must be whole numbers from 0 to 255")
    return memoryview(wide.astype(dtype).tobytes())
