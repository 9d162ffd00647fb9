"""Reads ONNX files without the ``onnx`` package, which a serving environment does not have.

A tensor of an ONNX file can be stored in another file, named by a path, and ONNX Runtime follows the path even out of
the folder. An exported network is one file, so external data is refused before ONNX Runtime reads the bytes. This
module reads the protobuf wire format of the messages that contain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from regnet_deploy.errors import BundleError
from regnet_deploy.protobuf.wire_format import WireError, read_varint, split

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
#: Maximum size of a varint, bytes. Protobuf reads a tag from 5 bytes and drops the bits beyond 32, so a longer tag
#: would be another field to protobuf than to this module; varints with padding are refused.
_TAG_BYTES, _VALUE_BYTES = 5, 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: Field numbers: the metadata of a model, and key and value of an entry.
_METADATA, _KEY, _VALUE = 14, 1, 2
#: Field numbers: of a model, of a graph, of a tensor (its element type), of an input, and of a dimension of fixed size.
_GRAPH = 7
_INITIALIZER, _INPUT = 5, 11
_TENSOR_TYPE = 2
_NAME, _TYPE = 1, 2
_SIZE = 1
#: Field numbers from the type of an input to its dimensions: tensor, shape, dimension.
_DIMENSIONS = (1, 2, 1)

#: ONNX's numbers of element types.
FLOAT16, BFLOAT16, INT8 = 10, 16, 3


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
    return BundleError(f"{name} is not an ONNX file: export it again")


def _external(name: str) -> BundleError:
    return BundleError(f"{name} keeps tensors in other files (external data), which is refused: export it as one file")


@dataclass(frozen=True)
class OnnxSignature:
    """The input of an ONNX file and the types of its weights.

    Attributes:
        name: of the input.
        image: its dimensions after the batch.
        types: ONNX's numbers of the element types of the weights.
    """

    name: str
    image: tuple[int, ...]
    types: frozenset[int]


def read_onnx_signature(data: bytes) -> OnnxSignature:
    """Read the signature of an ONNX file that :func:`refuse_external_data` has checked.

    Raises:
        BundleError: it does not have exactly one input, with a fixed size after the batch.
    """
    graphs = list(_submessages(memoryview(data), _GRAPH))
    inputs = [entry for graph in graphs for entry in _submessages(graph, _INPUT)]
    types = {
        value
        for graph in graphs
        for tensor in _submessages(graph, _INITIALIZER)
        for field, value in fields_of(tensor)
        if field == _TENSOR_TYPE and isinstance(value, int)
    }
    if len(inputs) != 1:
        raise BundleError(f"the network has {len(inputs)} inputs, one batch of images was expected")
    name = b"".join(bytes(part) for part in _submessages(inputs[0], _NAME)).decode("utf-8", "replace")
    level = list(_submessages(inputs[0], _TYPE))
    for field in _DIMENSIONS:
        level = [inner for message in level for inner in _submessages(message, field)]
    sizes = [[value for field, value in fields_of(dimension) if field == _SIZE] for dimension in level]
    image = tuple(size[0] for size in sizes[1:] if size and isinstance(size[0], int))
    if len(image) != 3:
        raise BundleError(f"the input {name} of the network has no fixed size: TensorRT needs height and width")
    return OnnxSignature(name, image, frozenset(types))


def _submessages(message: memoryview, field: int) -> Iterator[memoryview]:
    return (value for number, value in fields_of(message) if number == field and isinstance(value, memoryview))


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return an ONNX file with these entries of ``metadata_props`` at its end; every other byte stays as it was.

    Args:
        data: a file that :func:`refuse_external_data` has checked.
        metadata: key -> text. An entry of the file that has one of these keys is replaced.
    """
    rest, entries = split(data, _METADATA)
    kept = [entry for entry in entries if _key(entry) not in metadata]
    added = [_text(_KEY, key) + _text(_VALUE, value) for key, value in metadata.items()]
    return b"".join([rest, *(_field(_METADATA, bytes(entry)) for entry in (*kept, *added))])


def _key(entry: memoryview) -> str:
    return b"".join(bytes(part) for part in _submessages(entry, _KEY)).decode("utf-8", "replace")


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a message with a length: tag, length and content."""
    length, coded = len(content), bytearray([number << 3 | _BYTES])
    while length > 127:
        coded.append(length & 127 | 128)
        length >>= 7
    coded.append(length)
    return bytes(coded) + content
