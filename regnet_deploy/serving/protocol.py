"""The Open Inference Protocol v2 in bytes: an infer request to images, logits to an infer response. No I/O.

Version 2 of the protocol with extensions as Triton has them: github.com/kserve/open-inference-protocol and
github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_interface import ModelInterface
from regnet_deploy.serving.request_body import Body
from regnet_deploy.serving.request_parameters import check_custom, read_flag, read_parameters, read_schedule, shorten
from regnet_deploy.serving.tensors import TensorError, from_bytes, from_json

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)

#: Header that carries the length of the JSON part of a body with binary tensors behind it.
HEADER_LENGTH = "Inference-Header-Content-Length"

#: What the JSON of a request may hold beside the numbers of its tensor: bytes and commas.
_JSON_BYTES, _JSON_COMMAS = 64 * 2**10, 4096
#: Numbers of a tensor as JSON. While they become Python's objects nothing else in the process runs, not even what tells
#: that it lives. One image may always be sent.
_JSON_NUMBERS = 400_000
#: Bytes of a number in JSON, with all its digits, its comma and white space.
_NUMBER_BYTES = 32
#: Limit of nested lists and objects; a tensor has five.
_JSON_DEPTH = 100


class InferRequest(NamedTuple):
    """Images to run and the form in which the answer is wanted.

    Attributes:
        images: ``(n, *interface.image)`` of ``interface.dtype``.
        id: to be given back, or None.
        binary: the output is wanted as bytes behind the JSON.
        top: classes wanted per image as ``value:index:label`` strings; 0 asks for the logits.
        priority: 1, 2 or 3, 1 before the others; 0 is the server's default.
        timeout_s: seconds in which the client wants its inference to have begun; None where it did not say.
    """

    images: NDArray[Any]
    id: str | None
    binary: bool
    top: int
    priority: int = 0
    timeout_s: float | None = None


class HeaderCache:
    """The JSON of requests and answers with binary tensors, which is the same again and again: read and written once.

    For one interface. Of no more than 64 kinds each, for what is kept is chosen by clients.

    Attributes:
        asked: JSON of a request without id -> the request without images, and the images' shape.
        answered: shape of the logits -> JSON of the answer, and its headers.
    """

    def __init__(self) -> None:
        self.asked: dict[bytes, tuple[InferRequest, tuple[int, ...]]] = {}
        self.answered: dict[tuple[int, ...], tuple[bytes, list[tuple[bytes, bytes]]]] = {}


_NO_IMAGES = np.empty(0)
_KINDS = 64
#: Bytes of JSON up to which it is kept.
_KEPT_BYTES = 1024


def parse_infer(
    body: Body, header_length: str | None, interface: ModelInterface, header_cache: HeaderCache | None = None
) -> InferRequest:
    """Read an infer request.

    Args:
        body: after decompression.
        header_length: value of the header ``Inference-Header-Content-Length``, None where there is none.
        interface: what the network takes.
        header_cache: JSON that was parsed before; None: nothing is kept.

    Raises:
        RequestError: anything that the client did wrong, status 400; more JSON than the largest batch takes, 413.
    """
    view = memoryview(body)
    split = len(view) if header_length is None else _header_length(header_length, len(view))
    try:
        if header_length is not None and split == 0:  # nothing but the tensor of one image
            return InferRequest(from_bytes(view, (1, *interface.image), interface.dtype), None, True, 0)
        head = (
            bytes(view[:split])
            if header_cache is not None and header_length is not None and split <= _KEPT_BYTES
            else None
        )
        if header_cache is not None and head in header_cache.asked:
            known, shape = header_cache.asked[head]
            images = from_bytes(view[split:], shape, interface.dtype)
            return InferRequest(images, None, known.binary, known.top, known.priority, known.timeout_s)
    except TensorError as error:
        raise RequestError(f"input {interface.input}: {error}") from None
    request = read_document(_document(view[:split], interface), view[split:], interface)
    if header_cache is not None and head is not None and request.id is None and split < len(view):
        if len(header_cache.asked) >= _KINDS:
            header_cache.asked.clear()
        header_cache.asked[head] = (request._replace(images=_NO_IMAGES), request.images.shape)
    return request


def read_document(document: Mapping[str, Any], rest: memoryview, interface: ModelInterface) -> InferRequest:
    """Read an infer request whose JSON is read.

    Args:
        document: the JSON object.
        rest: bytes of the tensors behind it, of which each input's ``binary_data_size`` tells its share.
        interface: what the network takes.

    Raises:
        RequestError: anything that the client did wrong, status 400.
    """
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestError("id must be a string")
    parameters = read_parameters(document, "the request")
    priority, timeout_s = read_schedule(parameters)
    binary, top = _wanted(document, parameters, interface)
    check_custom(parameters)
    try:
        images = _images(document, rest, interface)
    except TensorError as error:
        raise RequestError(f"input {interface.input}: {error}") from None
    return InferRequest(images, identity, binary, top, priority, timeout_s)


@dataclass(frozen=True)
class InferResponse:
    """An infer response: its JSON but for the numbers or texts of the output, and those.

    Attributes:
        document: with one output.
        raw: the output's bytes, little-endian, as behind the JSON.
        data: the output as JSON's numbers or texts.
    """

    document: dict[str, Any]
    raw: bytes
    data: list[Any] | None


JSON_HEADERS = [(b"content-type", b"application/json")]


def infer_response(
    request: InferRequest,
    logits: NDArray[np.float32],
    interface: ModelInterface,
    header_cache: HeaderCache | None = None,
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the body of an infer response and its headers.

    Raises:
        RequestError: JSON is asked for and the logits are not finite, which absurd inputs lead to.
    """
    plain = request.binary and not request.top and request.id is None
    if plain and header_cache is not None and logits.shape in header_cache.answered:
        head, headers = header_cache.answered[logits.shape]
        return head + np.ascontiguousarray(logits, dtype="<f4").tobytes(), headers
    response = respond(request, logits, interface)
    output = response.document["outputs"][0]
    if not request.binary:
        output["data"] = response.data
        return dumps(response.document), JSON_HEADERS
    output["parameters"] = {"binary_data_size": len(response.raw)}
    head = dumps(response.document)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH.lower().encode("ascii"), b"%d" % len(head)),
    ]
    if plain and header_cache is not None and len(header_cache.answered) < _KINDS:
        header_cache.answered[logits.shape] = (head, headers)
    return head + response.raw, headers


def respond(request: InferRequest, logits: NDArray[np.float32], interface: ModelInterface) -> InferResponse:
    """Return an infer response in parts; ``raw`` where ``request.binary``, else ``data``.

    Raises:
        RequestError: JSON is asked for and the logits are not finite, which absurd inputs lead to.
    """
    if not request.binary and not np.isfinite(logits).all():
        raise RequestError("the logits are not finite and JSON cannot represent them: request binary output")
    raw = b""
    data: list[Any] | None = None
    if request.top:
        rows = _classified(logits, request.top, interface.labels)
        output: dict[str, Any] = {"name": interface.output, "datatype": "BYTES", "shape": [len(rows), request.top]}
        texts = [text for row in rows for text in row]
        if request.binary:
            encoded = [text.encode("utf-8", "replace") for text in texts]
            raw = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
        else:
            data = texts
    else:
        output = {"name": interface.output, "datatype": "FP32", "shape": list(logits.shape)}
        if request.binary:
            raw = np.ascontiguousarray(logits, dtype="<f4").tobytes()
        else:
            data = logits.ravel().tolist()
    document: dict[str, Any] = {"model_name": interface.model, "model_version": interface.version}
    if request.id is not None:
        document["id"] = request.id
    return InferResponse({**document, "outputs": [output]}, raw, data)


def dumps(data: Any) -> bytes:
    """Serialise JSON; escapes what is not ASCII, so that no text of a client can make it fail."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")


def _header_length(text: str, available: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) > available:
        raise RequestError(f"{HEADER_LENGTH} must be a number from 0 to the {available} bytes of the body")
    return int(text)


def _document(data: memoryview, interface: ModelInterface) -> dict[str, Any]:
    try:
        text = str(data, "utf-8").removeprefix("\ufeff")
        # Each number becomes an object of many times its size: they are counted first.
        an_image = math.prod(interface.image)
        images = max(1, min(interface.max_batch, _JSON_NUMBERS // an_image))
        numbers = images * an_image
        if len(data) > _JSON_BYTES + _NUMBER_BYTES * numbers or text.count(",") > _JSON_COMMAS + numbers:
            raise RequestError(
                f"the JSON is larger than {images} images need, the limit for JSON: send binary tensors", 413
            )
        if _deeper(text, _JSON_DEPTH):
            raise RequestError(f"the JSON has more than {_JSON_DEPTH} nested lists and objects")
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}") from None
    except (ValueError, RecursionError):
        raise RequestError("the request is not JSON: not UTF-8, nested too deep, or with absurd numbers") from None
    if not isinstance(document, dict):
        raise RequestError("the request must be a JSON object")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of two values of one name a proxy in front may have looked at the other one."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise RequestError("the JSON has an object with the same name twice")
    return made


def _deeper(text: str, most: int) -> bool:
    """Tell whether JSON is nested more deeply than ``most``; brackets in strings count as well."""
    if text.count("[") + text.count("{") <= most:
        return False
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > most


def _refuse_constant(name: str) -> float:
    raise RequestError(f"{name} is not JSON")


def _wanted(document: Mapping[str, Any], parameters: Mapping[str, Any], interface: ModelInterface) -> tuple[bool, int]:
    """Return whether the output is wanted as bytes, and how many classes (0: logits)."""
    binary = read_flag(parameters, "binary_data_output", False)
    outputs = document.get("outputs")
    outputs = [] if outputs is None else outputs
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise RequestError("outputs must be a list of objects")
    if len(outputs) > 1:
        raise RequestError(f"{len(outputs)} outputs are asked for, the model has one: {interface.output}")
    if not outputs:
        return binary, 0
    name = outputs[0].get("name")
    if name != interface.output:
        raise RequestError(f"unknown output {shorten(name)}; the model has {interface.output}")
    parameters = read_parameters(outputs[0], f"output {interface.output}")
    top = parameters.get("classification", 0)
    if type(top) is not int or top < 0:
        raise RequestError(f"classification must be a whole number, 0 or more, not {shorten(top)}")
    return read_flag(parameters, "binary_data", binary), min(top, len(interface.labels))


def _images(document: Mapping[str, Any], rest: memoryview, interface: ModelInterface) -> NDArray[Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(f"inputs must be a list of one object, the tensor {interface.input}")
    tensor = inputs[0]
    if tensor.get("name") != interface.input:
        raise RequestError(f"unknown input {shorten(tensor.get('name'))}; the model has {interface.input}")
    if tensor.get("datatype") != interface.datatype:
        raise RequestError(f"input {interface.input} is {interface.datatype}, not {shorten(tensor.get('datatype'))}")
    shape = _shape(tensor.get("shape"), interface)
    size = read_parameters(tensor, f"input {interface.input}").get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise RequestError(f"input {interface.input} has neither data nor binary_data_size")
        if len(rest):
            raise RequestError(f"{len(rest)} bytes follow the JSON that no input accounts for")
        return from_json(tensor["data"], shape, interface.dtype)
    if "data" in tensor:
        raise RequestError(f"input {interface.input} has both data and binary_data_size")
    if type(size) is not int or size != len(rest):
        raise RequestError(f"binary_data_size is {shorten(size)}, but {len(rest)} bytes follow the JSON")
    return from_bytes(rest, shape, interface.dtype)


def _shape(shape: Any, interface: ModelInterface) -> tuple[int, ...]:
    whole = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not whole or tuple(shape[1:]) != interface.image:
        shown = shorten(shape) if not whole or len(shape) > 8 else f"[{', '.join(shorten(side) for side in shape)}]"
        raise RequestError(f"shape must be [n, {', '.join(map(str, interface.image))}], not {shown}")
    if not 1 <= shape[0] <= interface.max_batch:
        raise RequestError(f"a request may have 1 to {interface.max_batch} images, not {shorten(shape[0])}")
    return tuple(shape)


def _classified(logits: NDArray[np.float32], top: int, labels: Sequence[str]) -> list[list[str]]:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [[f"{row[i]:f}:{i}:{labels[i]}" for i in best] for row, best in zip(logits, order, strict=True)]
