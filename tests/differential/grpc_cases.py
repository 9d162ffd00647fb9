"""Requests of gRPC as hypothesis makes them, and what two servers say to them made comparable."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

IMAGE = (3, 24, 24)


class Call(NamedTuple):
    """A ModelInferRequest, and the names of what of it is not as it should be."""

    request: Any
    tags: frozenset[str]

    def __repr__(self) -> str:
        shown = type(self.request)()
        shown.CopyFrom(self.request)
        shown.raw_input_contents[:] = [data[:8] for data in self.request.raw_input_contents]
        for tensor in shown.inputs:
            del tensor.contents.fp32_contents[3:]
        sizes = [len(data) for data in self.request.raw_input_contents]
        return f"{sorted(self.tags)}, raw bytes {sizes}: {' '.join(str(shown).split())}"


class Said(NamedTuple):
    """Code of an answer, and what is read of it: empty where it is an error."""

    code: str
    content: dict[str, Any]


@st.composite
def infer_calls(draw: Any) -> Call:
    """A ModelInferRequest with up to two things that are not as they should be."""
    from tritonclient.grpc import service_pb2 as messages

    count = draw(st.sampled_from([1, 1, 2, 32, 33]))
    typed = count < 3 and draw(st.booleans())
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(count, *IMAGE)).astype(np.float32)
    request = messages.ModelInferRequest(model_name="regnet", id=draw(st.sampled_from(["", "a", "ä", "x" * 300])))
    tensor = request.inputs.add(name="images", datatype="FP32", shape=values.shape)
    if typed:
        tensor.contents.fp32_contents.extend(values.ravel().tolist())
    else:
        request.raw_input_contents.append(values.tobytes())
    spoilt = draw(st.lists(st.sampled_from(sorted(_SPOIL)), max_size=2, unique=True))
    for name in sorted(spoilt):
        _SPOIL[name](draw, request)
    return Call(request, frozenset(spoilt) | ({"batch"} if count == 33 else set()) | ({"typed"} if typed else set()))


def _shape(draw: Any, request: Any) -> None:
    # Never large: see cases.py.
    shapes = [[*IMAGE], [1, 24, 24, 3], [0, *IMAGE], [-1, *IMAGE], [], [2, *IMAGE], [1, 3, 24, 0], [1, 3, -24, -24]]
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(draw(st.sampled_from(shapes)))


def _raw(draw: Any, request: Any) -> None:
    kind = draw(st.sampled_from(["short", "long", "empty", "more", "none"]))
    if kind == "more" or not request.raw_input_contents:
        request.raw_input_contents.append(b"1234")
    elif kind == "none":
        del request.raw_input_contents[:]
    else:
        data = request.raw_input_contents[0]
        request.raw_input_contents[0] = {"short": data[:-4], "long": data + b"1234", "empty": b""}[kind]


def _contents(draw: Any, request: Any) -> None:
    kind = draw(st.sampled_from(["short", "long", "other", "bytes", "empty"]))
    contents = request.inputs[0].contents
    if kind == "short" and contents.fp32_contents:
        del contents.fp32_contents[-1]
    elif kind == "other":
        contents.fp64_contents.append(1.0)
    elif kind == "bytes":
        contents.bytes_contents.append(b"x")
    elif kind == "empty":
        contents.Clear()
    else:
        contents.fp32_contents.append(1.0)


def _outputs(draw: Any, request: Any) -> None:
    names = draw(st.sampled_from([["logits"], ["x"], [""], ["logits", "logits"], ["logits", "x"]]))
    for name in names:
        request.outputs.add(name=name)


def _classes(draw: Any, request: Any) -> None:
    output = request.outputs.add(name="logits")
    output.parameters["classification"].int64_param = draw(st.sampled_from([1, 3, 6, 7, 1000, 0]))


def _parameters(draw: Any, request: Any) -> None:
    kind = draw(st.sampled_from(["priority", "timeout", "custom", "sequence", "triton", "text", "double"]))
    if kind == "priority":
        request.parameters["priority"].uint64_param = draw(st.sampled_from([0, 1, 2, 3, 9]))
    elif kind == "timeout":
        request.parameters["timeout"].int64_param = draw(st.sampled_from([0, 10**7, 2**40]))
    elif kind == "sequence":
        request.parameters["sequence_start"].bool_param = True
        kind = draw(st.sampled_from(["string_param", "int64_param", "bool_param", "double_param"]))
        setattr(request.parameters["sequence_id"], kind, {"string_param": "a", "double_param": 1.5}.get(kind, 1))
    elif kind == "triton":
        request.parameters["triton_x"].bool_param = True
    elif kind == "text":
        request.parameters["priority"].string_param = "1"
    elif kind == "double":
        request.parameters["custom"].double_param = 1.5
    else:
        request.parameters["custom"].string_param = "x"


def _inputs(draw: Any, request: Any) -> None:
    kind = draw(st.sampled_from(["unknown", "extra", "none", "datatype"]))
    if kind == "unknown":
        request.inputs[0].name = "image"
    elif kind == "extra":
        request.inputs.add(name="more", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(1.0)
    elif kind == "none":
        del request.inputs[:]
        del request.raw_input_contents[:]
    else:
        request.inputs[0].datatype = draw(st.sampled_from(["fp32", "FP64", "INT32", "UINT8", "BYTES", "", "XX"]))


def _model(draw: Any, request: Any) -> None:
    request.model_name = draw(st.sampled_from(["regnet", "other", ""]))
    request.model_version = draw(st.sampled_from(["1", "2", "abc", "-1", "0"]))


def _shared_memory(draw: Any, request: Any) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "here"


#: ``inputs`` is last of those that need one.
_SPOIL = {
    "classes": _classes,
    "contents": _contents,
    "model": _model,
    "outputs": _outputs,
    "parameters": _parameters,
    "raw": _raw,
    "shape": _shape,
    "shared memory": _shared_memory,
    "zz inputs": _inputs,
}


def ask(stub: Any, call: str, request: Any) -> Said:
    """Call a server."""
    import grpc

    try:
        answer = getattr(stub, call)(request, timeout=5)
    except grpc.RpcError as error:
        return Said(error.code().name, {})
    return Said("OK", {"ModelInfer": _tensors}.get(call, lambda one: {})(answer))


def _tensors(answer: Any) -> dict[str, Any]:
    outputs = {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            from tritonclient.utils import deserialize_bytes_tensor

            texts = [one.decode() for one in deserialize_bytes_tensor(raw)]
            values = [float(text.split(":")[0]) for text in texts]
            names = [text.split(":", 1)[1] for text in texts]
        else:
            values, names = np.frombuffer(raw, "<f4").tolist(), []
        outputs[output.name] = (output.datatype, list(output.shape), names, values)
    return {"id": answer.id, "model": answer.model_name, "version": answer.model_version, "outputs": outputs}


def difference(ours: Said, theirs: Said) -> str | None:
    """Return in what two answers differ, None where in nothing."""
    if ours.code != theirs.code:
        return f"code {ours.code} and {theirs.code}"
    if not ours.content:
        return None
    for key in ("id", "model", "version"):
        if ours.content[key] != theirs.content[key]:
            return f"{key} {ours.content[key]!r} and {theirs.content[key]!r}"
    one, other = ours.content["outputs"], theirs.content["outputs"]
    if list(one) != list(other):
        return f"outputs {list(one)} and {list(other)}"
    for name in one:
        if one[name][:3] != other[name][:3] or not np.allclose(one[name][3], other[name][3], rtol=1e-3, atol=1e-3):
            return f"{name}: {one[name]} and {other[name]}"
    return None
