"""Requests as hypothesis makes them: a right one, and up to two things that are not as they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from differential_drafts import IMAGE, INFER, NUMBERS, PACKED, Case, Draft, images, plain
from hypothesis import strategies as st

Draw = Callable[[Any], Any]


# What may be wrong with a request: functions that take hypothesis's draw and the draft that they change.

_JUNK = [None, True, 0, 1, -1, 1.5, "x", "", [], [1], {}, {"a": 1}]


def drop_key(draw: Draw, draft: Draft) -> None:
    key = draw(st.sampled_from(["inputs", "name", "shape", "datatype", "data"]))
    holder = draft.document if key == "inputs" else draft.tensor
    if key == "data" and draft.binary:
        key = "parameters"
    holder.pop(key, None)
    draft.tags.add(f"no-{key}")


def junk_key(draw: Draw, draft: Draft) -> None:
    key = draw(st.sampled_from(["inputs", "name", "shape", "datatype", "parameters"]))
    (draft.document if key == "inputs" else draft.tensor)[key] = draw(st.sampled_from(_JUNK))
    draft.tags.add(f"junk-{key}")


def inputs(draw: Draw, draft: Draft) -> None:
    if "inputs" not in draft.document or not draft.tensor:
        return
    kind = draw(st.sampled_from(["unknown", "extra", "twice", "empty", "number"]))
    known = draft.document["inputs"]
    if kind == "unknown":
        draft.tensor["name"] = draw(st.sampled_from(["image", "Images", "images ", "logits"]))
    elif kind == "extra":
        known.append({"name": "more", "shape": [1, 1], "datatype": "FP32", "data": [1.0]})
    elif kind == "twice":
        known.append(dict(known[0]))
        draft.raw = draft.raw * 2
    else:
        draft.document["inputs"] = [] if kind == "empty" else [1]
    draft.tags.add(f"inputs-{kind}")


def datatype(draw: Draw, draft: Draft) -> None:
    draft.tensor["datatype"] = draw(
        st.sampled_from(
            ["fp32", "FP16", "FP64", "BF16", "INT8", "UINT8", "INT64", "BOOL", "BYTES", "XX", "", "TYPE_FP32"]
        )
    )
    draft.tags.add("datatype")


def shape(draw: Draw, draft: Draft) -> None:
    # Never large: a real Triton 2.51 ends with a dimension of 2^63-1, and takes memory for what a shape says.
    shapes = [
        [*IMAGE], [1, 1, *IMAGE], [1, 3, 24, 23], [1, 24, 24, 3], [1, NUMBERS], [0, *IMAGE], [-1, *IMAGE], [], [1],
        [33, *IMAGE], [40, *IMAGE], [2, *IMAGE], [1, 3, -24, -24], [-1, -3, 24, 24], [1, 3, 24, 0],
        [1.0, 3, 24, 24], [1.5, 3, 24, 24], ["1", 3, 24, 24], [True, 3, 24, 24], [None, 3, 24, 24], [[1], 3, 24, 24],
    ]  # fmt: skip
    draft.tensor["shape"] = draw(st.sampled_from(shapes))
    draft.tags.add("shape")


def data(draw: Draw, draft: Draft) -> None:
    values = draft.tensor.get("data")
    if not isinstance(values, list) or not values or not isinstance(values[0], float):
        return
    kinds = ["short", "long", "nested", "ragged", "flat-rows", "string", "null", "bool", "NaN", "Infinity", "1e39",
             "1e400", "large-int", "empty", "scalar", "object", "integers"]  # fmt: skip
    kind = draw(st.sampled_from(kinds))
    place = draw(st.sampled_from([0, 5, len(values) - 1]))
    one = {"string": "1.0", "null": None, "bool": True, "NaN": float("nan"), "Infinity": float("inf"), "1e39": 1e39}
    values = list(values)
    if kind in one:
        values[place] = one[kind]
    elif kind in ("1e400", "large-int"):
        values[place] = 123456789.125  # replaced in the text
    elif kind == "short":
        values = values[:-1]
    elif kind == "long":
        values = [*values, 1.0]
    elif kind == "nested":
        values = np.asarray(values).reshape(-1, *IMAGE).tolist()
    elif kind == "ragged":
        values = [values[:5], values[5:]]
    elif kind == "flat-rows":
        values = np.asarray(values).reshape(-1, NUMBERS).tolist()
    elif kind == "integers":
        values = [int(value) for value in values]
    else:
        values = {"empty": [], "scalar": 1.0, "object": {"a": values}}[kind]  # type: ignore[assignment]
    draft.tensor["data"] = values
    if kind in ("1e400", "large-int"):
        draft.text = draft.json().replace(b"123456789.125", b"1e400" if kind == "1e400" else b"9" * 40)
    draft.tags.add(f"data-{kind}")


def sizes(draw: Draw, draft: Draft) -> None:
    if not draft.binary or not isinstance(draft.tensor.get("parameters"), dict):
        return
    size = len(draft.raw)
    kind = draw(st.sampled_from(["said", "kind", "bytes", "both", "none"]))
    if kind == "said":
        draft.tensor["parameters"]["binary_data_size"] = size + draw(st.sampled_from([-4, -1, 1, 4, -size, 10**9]))
    elif kind == "kind":
        wrong = draw(st.sampled_from([str(size), float(size), -size, True, None, [size], 2**63]))
        draft.tensor["parameters"]["binary_data_size"] = wrong
    elif kind == "bytes":
        draft.raw = draw(st.sampled_from([draft.raw[:-1], draft.raw[:-4], draft.raw + b"1234", draft.raw[:4]]))
    elif kind == "both":
        draft.tensor["data"] = [1.0]
    else:
        del draft.tensor["parameters"]["binary_data_size"]
    draft.tags.add(f"sizes-{kind}")


def header_length(draw: Draw, draft: Draft) -> None:
    length = len(draft.json())
    total = length + len(draft.raw)
    draft.length = draw(
        st.sampled_from([str(total + 1), "-1", "abc", "", "0", f"+{length}", f" {length} ", f"{length}.0",
                         str(length - 1), str(length + 1), f"{length}x", str(2**64 + length), "none", str(total)])
    )  # fmt: skip
    draft.tags.add("header-length")


def nothing_but_tensor(draw: Draw, draft: Draft) -> None:
    """A raw binary request."""
    size = NUMBERS * 4
    count = draw(st.sampled_from([size, size, 2 * size, size - 4, size - 1, size + 4, 0, 4]))
    draft.text, draft.raw, draft.length = b"", images(2, draw(st.integers(0, 9))).tobytes()[:count], "0"
    draft.tags.add("raw" if count == size else "raw-size")


def identity(draw: Draw, draft: Draft) -> None:
    wrong = [1, 0, None, True, 1.5, ["x"], {}]
    value = draw(st.one_of(st.text(max_size=40), st.sampled_from(wrong)))
    draft.document["id"] = value
    draft.tags.add("id" if isinstance(value, str) else "id-kind")


def parameters(draw: Draw, draft: Draft) -> None:
    if not isinstance(draft.document.get("parameters", {}), dict):
        return
    key = draw(
        st.sampled_from(
            [
                "priority",
                "timeout",
                "binary_data_output",
                "custom",
                "sequence_id",
                "sequence_start",
                "none",
                "headers",
                "triton_enable_empty_final_response",
            ]
        )
    )
    if key == "none":
        draft.document["parameters"] = draw(st.sampled_from(_JUNK))
        draft.tags.add("parameters-kind")
        return
    values = {
        "priority": [0, 1, 2, 3, 4, 2**32, 2**63, -1, 1.5, "1", True, None, [1]],
        "timeout": [0, 10**7, 2**40, 2**63 - 1, 2**63, -1, 1.5, "x", True, None],
        "binary_data_output": [True, False, 1, 0, "true", None, []],
        "custom": ["x", 1, 2**70, 1.5, True, None, [1], {"a": 1}],
        "sequence_id": [0, 1, "a", 1.5, True, None, [1], -1, 2**64 - 1, 2**64],
        "sequence_start": [True, False, 1, "a", None],
        "headers": [1, "a"],
        "triton_enable_empty_final_response": [True],
    }[key]
    draft.document.setdefault("parameters", {})[key] = draw(st.sampled_from(values))
    draft.tags.add(f"parameters-{key}")


def tensor_parameters(draw: Draw, draft: Draft) -> None:
    holder = draft.tensor.get("parameters", {})
    if isinstance(holder, dict):
        key = draw(st.sampled_from(["custom", "classification", "binary_data", "shared_memory_region"]))
        draft.tensor["parameters"] = {**holder, key: draw(st.sampled_from(["x", 1, 1.5, True, None, [1], {"a": 1}]))}
        draft.tags.add(f"input-parameters-{key}")


def outputs(draw: Draw, draft: Draft) -> None:
    kind = draw(st.sampled_from(["right", "unknown", "twice", "empty", "junk", "nameless", "binary", "class", "both",
                                 "parameters", "shared-memory", "extra-key"]))  # fmt: skip
    output: dict[str, Any] = {"name": "logits"}
    made: Any = [output]
    if kind == "unknown":
        output["name"] = draw(st.sampled_from(["x", "", "images", "Logits", 1, None]))
    elif kind == "twice":
        made = [output, dict(output)]
    elif kind == "empty":
        made = []
    elif kind == "junk":
        made = draw(st.sampled_from([one for one in _JUNK if one != []] + [[None]]))
    elif kind == "nameless":
        made = [{}]
    elif kind == "binary":
        output["parameters"] = {"binary_data": draw(st.sampled_from([True, False, 1, 0, "true", None]))}
    elif kind == "class":
        output["parameters"] = {
            "classification": draw(st.sampled_from([0, 1, 3, 6, 7, 1000, -1, "1", 1.5, True, None, 2**40]))
        }
    elif kind == "both":
        output["parameters"] = {"classification": draw(st.integers(1, 7)), "binary_data": draw(st.booleans())}
    elif kind == "parameters":
        output["parameters"] = draw(st.sampled_from([*_JUNK, {"custom": 1}, {"custom": [1]}, {"custom": None}]))
    elif kind == "shared-memory":
        output["parameters"] = {"shared_memory_region": "here", "shared_memory_byte_size": 24}
    elif kind == "extra-key":
        output |= {"shape": [1, 6], "datatype": "FP32"}
    draft.document["outputs"] = made
    draft.tags.add(f"outputs-{kind}")


def keys(draw: Draw, draft: Draft) -> None:
    draft.document[draw(st.sampled_from(["model_name", "x", "", "Inputs"]))] = draw(st.sampled_from(_JUNK))
    draft.tags.add("unknown-key")


def spoilt_json(draw: Draw, draft: Draft) -> None:
    text = draft.json()
    kind = draw(st.sampled_from(["cut", "garbage", "comma", "quotes", "comment", "bom", "utf-8", "surrogate", "nul",
                                 "duplicate", "deep", "top", "space", "empty", "control"]))  # fmt: skip
    inside = text[1:-1]
    if kind == "cut":
        text = text[: draw(st.integers(1, max(1, len(text) - 1)))]
    elif kind == "garbage":
        text += draw(st.sampled_from([b"x", b"{}", b"]", b"\0", b",", b"1"]))
    elif kind == "comma":
        text = b"{" + inside + b",}"
    elif kind == "quotes":
        text = text.replace(b'"', b"'")
    elif kind == "comment":
        text = b"{/* so */" + inside + b"}"
    elif kind == "bom":
        text = b"\xef\xbb\xbf" + text
    elif kind == "utf-8":
        text = b'{"id":"\xff\xfe",' + inside + b"}"
    elif kind == "surrogate":
        text = b'{"id":"\\ud800",' + inside + b"}"
    elif kind == "nul":
        text = b'{"id":"a\\u0000b",' + inside + b"}"
    elif kind == "control":
        text = b'{"id":"a\tb",' + inside + b"}"
    elif kind == "duplicate":
        text = b'{"id":"a","id":"b",' + inside + b"}"
    elif kind == "deep":
        depth = draw(st.sampled_from([20, 99, 150, 3000]))
        text = b'{"x":' + b"[" * depth + b"]" * depth + b"," + inside + b"}"
    elif kind == "top":
        text = draw(st.sampled_from([b"[]", b"1", b'"x"', b"null", b"true", b"{}", b"[" + text + b"]"]))
    elif kind == "space":
        text = b" \r\n\t" + text + b" \n"
    else:
        text = b""
    draft.text = text
    draft.tags.add(f"json-{kind}")


def headers(draw: Draw, draft: Draft) -> None:
    kind = draw(st.sampled_from(["type", "accept", "accept-encoding", "expect", "id", "many"]))
    if kind == "type":
        kinds = ["application/json", "application/octet-stream", "text/plain", "x", "multipart/form-data; boundary=x"]
        draft.headers["Content-Type"] = draw(st.sampled_from(kinds))
    elif kind == "accept":
        draft.headers["Accept"] = draw(st.sampled_from(["application/json", "text/html", "image/png"]))
    elif kind == "accept-encoding":
        wanted = ["gzip", "deflate", "br", "identity", "gzip;q=0", "*", "gzip, deflate", "deflate;q=0.5, gzip", "x"]
        draft.headers["Accept-Encoding"] = draw(st.sampled_from(wanted))
    elif kind == "id":
        draft.headers["X-Request-Id"] = "some-id"
    elif kind == "many":
        draft.headers |= {f"X-{i}": "x" * 50 for i in range(20)}
    else:
        draft.headers["Expect"] = "100-continue"
    draft.tags.add(f"header-{kind}")


def compression(draw: Draw, draft: Draft) -> None:
    kind = draw(st.sampled_from(sorted(PACKED)))
    draft.headers["Content-Encoding"], draft.pack = PACKED[kind]
    draft.tags.add(f"packed-{kind}")


def route(draw: Draw, draft: Draft) -> None:
    paths = [
        f"/v2/models/regnet/versions/{version}/infer"
        for version in ("1", "2", "01", "0", "-1", "abc", "1.0", "", "%31", "99999999999999999999", "1 ")
    ]
    paths += [
        "/v2/models/other/infer", "/v2/models/REGNET/infer", "/v2/models/regn%65t/infer", "/v2/models//infer",
        INFER + "/", INFER + "?x=1", "//v2/models/regnet/infer", "/v2/models/regnet/Infer", "/v1/models/regnet:predict",
        "/v2/models/regnet/generate", "/v2/models/a%2Fb/infer", "/v2/models/%ff/infer",
        "/v2/models/regnet/versions/infer",
    ]  # fmt: skip
    draft.path = draw(st.sampled_from(paths)).replace(" ", "%20")
    draft.tags.add("path")


def method(draw: Draw, draft: Draft) -> None:
    draft.method = draw(st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "get", "NOPE"]))
    draft.tags.add("method")


def chunks(draw: Draw, draft: Draft) -> None:
    draft.chunked = True
    draft.tags.add("chunked")


MUTATIONS = (
    drop_key, junk_key, inputs, datatype, shape, data, sizes, header_length, nothing_but_tensor, identity, parameters,
    tensor_parameters, outputs, keys, spoilt_json, headers, compression, route, method, chunks,
)  # fmt: skip


@st.composite
def infer_requests(draw: Draw) -> Case:
    """Requests to infer; a third of them right."""
    count = draw(st.sampled_from([1, 1, 1, 2, 3, 32, 33]))
    binary = True if count > 3 else draw(st.booleans())
    draft = plain(count, draw(st.integers(0, 99)), binary)
    if count == 33:
        draft.tags.add("batch")
    if draw(st.booleans()):
        draft.document["parameters"] = {"binary_data_output": draw(st.booleans())}
    if draw(st.booleans()):
        draft.document["id"] = draw(st.sampled_from(["a", "1", "ä", "x" * 300]))
    spoilt = draw(st.lists(st.sampled_from(MUTATIONS), max_size=2, unique=True))
    for mutation in sorted(spoilt, key=MUTATIONS.index):  # what changes the object before what changes its text
        mutation(draw, draft)
    return draft.done()


_MODEL = ["/v2/models/regnet", "/v2/models/regnet/versions/1"]
_UNKNOWN = ["/v2/models/other", *(f"/v2/models/regnet/versions/{one}" for one in ("2", "abc", "0", "01", "-1"))]
_ENDS = ["", "/ready", "/config", "/stats", "/", "/nothing"]


@st.composite
def questions(draw: Draw) -> Case:
    """Requests to the endpoints that carry no images."""
    paths = ["/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index",
             "/v2/repository/models/regnet/load", "/v2/repository/models/regnet/unload", "/v2/nothing", "/v1",
             "/v2/health", "/v2/models", "/v2/models/", "/v2/repository/models/other/load", "/v2/logging",
             "/v2/trace/setting", "/v2/models/regnet/trace/setting", "/v2/systemsharedmemory/status", "/", "/card",
             "/v2/cudasharedmemory/status", "/v2/systemsharedmemory/unregister", "/metrics", "/classify"]  # fmt: skip
    model = st.builds(str.__add__, st.sampled_from([*_MODEL, *_MODEL, *_UNKNOWN]), st.sampled_from(_ENDS))
    path = draw(st.one_of(st.sampled_from(paths), model))
    wanted = "POST" if "/repository/" in path else "GET"
    verb = draw(st.sampled_from([wanted, wanted, wanted, "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]))
    bodies = [b"", b"", b"{}", b'{"ready":true}', b'{"ready":false}', b'{"ready":1}', b"x", b"[]"]
    body = draw(st.sampled_from(bodies)) if verb == "POST" else b""
    tags = {"question"} | ({"method"} if verb != wanted else set()) | ({"body"} if body else set())
    return Case(verb, path, (), body, frozenset(tags))
