"""What TensorRT's provider must be told of an ONNX file before it opens it: its input, and the types of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regnet_deploy.errors import BundleError
from regnet_deploy.runtimes.onnx_file import fields_of

_GRAPH = 7  # of a model
_INITIALIZER, _INPUT = 5, 11  # of a graph
_TENSOR_TYPE = 2  # of a tensor: an element of ONNX's enumeration
_NAME, _TYPE = 1, 2  # of an input
_DIMENSIONS = (1, 2, 1)  # fields from an input's type down to its dimensions: tensor, shape, dimension
_SIZE = 1  # of a dimension, where it is fixed

#: ONNX's numbers of element types.
FLOAT16, BFLOAT16, INT8 = 10, 16, 3


@dataclass(frozen=True)
class OnnxSignature:
    """What a file says at its top.

    Attributes:
        name: of the input.
        image: its dimensions after the batch.
        types: ONNX's numbers of the types that weights have.
    """

    name: str
    image: tuple[int, ...]
    types: frozenset[int]


def read_onnx_signature(data: bytes) -> OnnxSignature:
    """Read the head of an ONNX file that ``refuse_external_data`` let through.

    Raises:
        BundleError: it has not one input of a fixed size behind the batch.
    """
    graphs = list(_inside(memoryview(data), _GRAPH))
    inputs = [entry for graph in graphs for entry in _inside(graph, _INPUT)]
    types = {
        value
        for graph in graphs
        for tensor in _inside(graph, _INITIALIZER)
        for field, value in fields_of(tensor)
        if field == _TENSOR_TYPE and isinstance(value, int)
    }
    if len(inputs) != 1:
        raise BundleError(f"the network has {len(inputs)} inputs, one batch of images was expected")
    name = b"".join(bytes(part) for part in _inside(inputs[0], _NAME)).decode("utf-8", "replace")
    level = list(_inside(inputs[0], _TYPE))
    for field in _DIMENSIONS:
        level = [inner for message in level for inner in _inside(message, field)]
    sizes = [[value for field, value in fields_of(dimension) if field == _SIZE] for dimension in level]
    image = tuple(size[0] for size in sizes[1:] if size and isinstance(size[0], int))
    if len(image) != 3:
        raise BundleError(f"the input {name} of the network has no fixed size: TensorRT needs height and width")
    return OnnxSignature(name, image, frozenset(types))


def _inside(message: memoryview, field: int) -> Iterator[memoryview]:
    return (value for number, value in fields_of(message) if number == field and isinstance(value, memoryview))
