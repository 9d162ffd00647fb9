"""Rejects ONNX files that refer to external data.

A tensor of an ONNX file can be stored in another file, named by a path, and ONNX Runtime follows the path even out of
the folder. An exported network is one file, so external data is refused before ONNX Runtime reads the bytes. A serving
environment has no ``onnx`` package; therefore this module reads the protobuf wire format of the messages that contain
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from regnet_deploy.errors import BundleError
from regnet_deploy.protobuf.wire_format import WireError, read_varint

#: Message type -> field number -> type of the message in that field, for the fields that lead to tensors.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
_MAX_DEPTH = 64
#: Largest size of a number, bytes. Protobuf reads a tag from 5 bytes and drops the bits beyond 32, so a longer tag
#: would be a different field to protobuf than to this module: numbers with padding are refused.
_TAG_BYTES, _VALUE_BYTES = 5, 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def refuse_external_data(data: bytes, name: str = "the ONNX file") -> None:
    """Check that every tensor of an ONNX file is stored in the file itself.

    Raises:
        BundleError: a tensor is stored elsewhere, or the bytes are not a protobuf message.
    """
    _walk(memoryview(data), "model", name, 0)


def fields_of(message: memoryview, name: str = "the ONNX file") -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a message: bytes for a field with a length, else an integer.

    Raises:
        BundleError: the bytes are not a protobuf message.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at, name, _TAG_BYTES)
        field, wire = tag >> 3, tag & 7
        if tag > 0xFFFFFFFF or field == 0:
            raise _broken(name)
        if wire == _VARINT:
            value, at = _varint(message, at, name, _VALUE_BYTES)
            yield field, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at, name, _TAG_BYTES)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise _broken(name)
        if at + length > end:
            raise _broken(name)
        content = message[at : at + length]
        yield field, content if wire == _BYTES else int.from_bytes(content, "little")
        at += length


def _walk(message: memoryview, kind: str, name: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BundleError(f"{name} nests its graphs more than {_MAX_DEPTH} deep: not a file that export writes")
    for field, value in fields_of(message, name):
        if kind == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value)):
            raise _external(name)
        inner = _FIELDS[kind].get(field)
        if inner is not None:
            if isinstance(value, int):
                raise _broken(name)
            _walk(value, inner, name, depth + 1)


def _varint(message: memoryview, at: int, name: str, max_bytes: int) -> tuple[int, int]:
    try:
        return read_varint(message, at, max_bytes, canonical=True)
    except WireError:
        raise _broken(name) from None


def _broken(name: str) -> BundleError:
    return BundleError(f"{name} is not an ONNX file: run `regnet-deploy export --onnx` again")


def _external(name: str) -> BundleError:
    return BundleError(
        f"{name} keeps tensors in other files (external data), which is refused: export it as one file with "
        "`regnet-deploy export --onnx`"
    )
