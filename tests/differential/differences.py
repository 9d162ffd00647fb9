"""The intended differences between our server and a real Triton 2.51, from which docs/compatibility.md is generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import differential_examples as examples

#: What two answers are told apart by: their statuses, or what ``answers.same_tensors`` says.
Applies = Callable[[Any, Any, Any], bool]


@dataclass(frozen=True)
class Difference:
    """A difference that is meant.

    Attributes:
        name: of it, for the tests.
        request: what is asked, in words.
        ours: what our server answers.
        triton: what Triton answers.
        why: ours is right.
        applies: of the request and both answers; tells that this is the difference.
        example: makes a request that shows it, which the test asks for it each time.
    """

    name: str
    request: str
    ours: str
    triton: str
    why: str
    applies: Applies
    example: Callable[[], Any]


def _tagged(tags: str, ours: set[int], triton: set[int]) -> Applies:
    """Requests with one of these tags (of a family, where it ends with ``*``) and these statuses."""

    def applies(case: Any, one: Any, other: Any) -> bool:
        found = any(
            tag.startswith(wanted[:-1]) if wanted.endswith("*") else tag == wanted
            for tag in case.tags
            for wanted in tags.split()
        )
        return found and one.status in ours and other.status in triton

    return applies


def _client_error_as_server_error(case: Any, ours: Any, triton: Any) -> bool:
    return ours.status in (400, 404, 413, 415) and triton.status == 500 and triton.error() is not None


def _null(case: Any, ours: Any, triton: Any) -> bool:
    return ours.status == 200 and triton.status == 500 and b"null" in case.body and "non-" in (triton.error() or "")


def _head(case: Any, ours: Any, triton: Any) -> bool:
    return case.method == "HEAD" and triton.status in (404, 405) and ours.status != triton.status


def _all_binary(case: Any, ours: Any, triton: Any) -> bool:
    if ours.status != 200 or triton.status != 200 or b'"binary_data_output": true' not in case.body:
        return False
    return b'"outputs"' in case.body and "inference-header-content-length" not in triton.headers


def _path(case: Any, *parts: str) -> bool:
    return any(part in case.path for part in parts)


def _same_json_but(key: str, ours: Any, triton: Any) -> bool:
    def without(answer: Any) -> Any:
        return [{name: value for name, value in one.items() if name != key} for one in json.loads(answer.body)]

    return bool(without(ours) == without(triton))


_BROKEN = "packed-checksum packed-cut packed-trailing packed-wrong packed-members packed-raw-deflate"

JUSTIFIED = (
    Difference(
        "client errors",
        "invalid JSON, fields that are missing or have a wrong type, data with a wrong number of elements",
        "400",
        "500",
        "It is the client's error: a 5xx would be retried by client libraries and counted as a server error.",
        _client_error_as_server_error,
        lambda: examples.infer("json-cut", text=b'{"inputs": ['),
    ),
    Difference(
        "null",
        "`id`, `outputs` or `parameters` that are `null`",
        "200, treated as absent",
        "500",
        "Many JSON writers send `null` for absent values.",
        _null,
        lambda: examples.infer("id-kind", top={"id": None}),
    ),
    Difference(
        "not finite",
        "`NaN`, `Infinity`, or a number beyond the range of FP32 in JSON",
        "400",
        "200, with NaN in the answer",
        "Not JSON (RFC 8259); other parsers cannot read the response. Binary tensors may have such values.",
        _tagged("data-NaN data-Infinity data-1e39 data-1e400 data-large-int", {400}, {200}),
        lambda: examples.data("data-NaN", lambda values: [float("nan"), *values[1:]]),
    ),
    Difference(
        "nesting",
        "data whose nesting differs from the shape, with the right number of elements",
        "400",
        "200, flattened",
        "It is an error of the client; flattened, it would be the wrong image.",
        _tagged("data-ragged data-flat-rows", {400}, {200}),
        lambda: examples.data("data-ragged", lambda values: [values[:5], values[5:]]),
    ),
    Difference(
        "duplicate keys",
        "an object with the same name twice",
        "400",
        "200, the first counts",
        "A proxy in front may have checked the other one.",
        lambda case, ours, triton: (
            ours.status == 400 and triton.status == 200 and "same name twice" in (ours.error() or "")
        ),
        lambda: examples.with_text("json-duplicate", b'{"id":"a","id":"b",'),
    ),
    Difference(
        "depth",
        "JSON nested more than 100 levels deep in an unknown field",
        "400",
        "200",
        "A tensor has five levels; deeper nesting only uses stack.",
        _tagged("json-deep", {400}, {200}),
        lambda: examples.with_text("json-deep", b'{"x":' + b"[" * 150 + b"]" * 150 + b","),
    ),
    Difference(
        "utf-8",
        "JSON that is not UTF-8, or has a lone surrogate",
        "400",
        "200, the bytes are returned in `id`",
        "RFC 8259: the response would not be JSON either.",
        _tagged("json-utf-8", {400}, {200}),
        lambda: examples.with_text("json-utf-8", b'{"id":"\xff\xfe",'),
    ),
    Difference(
        "length",
        "`Inference-Header-Content-Length` that only starts with a number: `163.0`, `163x`, `+163`",
        "400",
        "200, the start counts",
        "The end of the JSON must not be ambiguous.",
        _tagged("header-length", {400}, {200}),
        lambda: examples.infer("header-length", length="+" + str(len(examples.plain(binary=False).json()))),
    ),
    Difference(
        "behind the JSON",
        "a NUL byte after the JSON, or in one of its strings",
        "400; the string is returned whole",
        "200, the string ends there",
        "Bytes after the JSON are not JSON, and a string may contain NUL.",
        lambda case, ours, triton: (
            triton.status == 200
            and (
                ("json-garbage" in case.tags and ours.status == 400 and b"\0" in case.body)
                or ("\\u0000" in case.body.decode("latin-1") and ours.status == 200)
            )
        ),
        lambda: examples.with_text("json-nul", b'{"id":"a\\u0000b",'),
    ),
    Difference(
        "surrogates",
        "`id` with the escape of a lone surrogate",
        "200, returned as sent",
        "500",
        "The grammar of RFC 8259 allows it, and `id` is opaque.",
        lambda case, ours, triton: ours.status == 200 and triton.status == 500 and b"\\ud800" in case.body,
        lambda: examples.with_text("json-surrogate", b'{"id":"\\ud800",'),
    ),
    Difference(
        "outputs twice",
        "the one output requested twice",
        "400",
        "200, once in the response",
        "The two may have contradicting `parameters`.",
        _tagged("outputs-twice", {400}, {200}),
        lambda: examples.infer("outputs-twice", top={"outputs": [{"name": "logits"}, {"name": "logits"}]}),
    ),
    Difference(
        "binary_data_output",
        "`binary_data_output` with a list of `outputs` without `binary_data`",
        "200, binary",
        "200, JSON",
        "By the extension's text it is the default of all outputs. Clients read the response's header.",
        _all_binary,
        lambda: examples.infer(
            "outputs-right", top={"outputs": [{"name": "logits"}], "parameters": {"binary_data_output": True}}
        ),
    ),
    Difference(
        "input parameters",
        "`parameters` of an input or output that are not an object",
        "400",
        "200, ignored",
        "Nothing that a client requests is ignored silently.",
        _tagged("junk-parameters outputs-parameters parameters-kind", {400}, {200}),
        lambda: examples.tensor("junk-parameters", parameters=[1]),
    ),
    Difference(
        "custom parameters",
        "a custom parameter of a request that is `null`",
        "200",
        "400",
        "As `null` elsewhere.",
        _tagged("parameters-custom parameters-headers parameters-sequence_id", {200}, {400}),
        lambda: examples.infer("parameters-custom", top={"parameters": {"custom": None}}),
    ),
    Difference(
        "shared memory",
        "tensors in shared memory",
        "400",
        "400 or 404, unless the region is registered",
        "Not supported: `/v2` does not list the extension.",
        _tagged("outputs-shared-memory input-parameters-shared_memory_region", {400}, {200, 404}),
        lambda: examples.infer(
            "outputs-shared-memory",
            top={"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "here"}}]},
        ),
    ),
    Difference(
        "broken compression",
        "gzip or deflate data that is cut off, has a wrong checksum or trailing bytes, or is declared as the other",
        "400",
        "200, with the part that could be decompressed",
        "A damaged tensor would get a wrong answer.",
        _tagged(_BROKEN, {400}, {200, 500}),
        lambda: examples.packed("checksum"),
    ),
    Difference(
        "x-gzip",
        "`Content-Encoding: x-gzip`, or empty",
        "200",
        "501",
        "RFC 9110: x-gzip is gzip, and empty is none.",
        _tagged("packed-x-gzip packed-none packed-identity packed-upper", {200, 400}, {501}),
        lambda: examples.packed("x-gzip"),
    ),
    Difference(
        "unknown compression",
        "another Content-Encoding",
        "415",
        "501",
        "RFC 9110 defines 415 for it; 501 is for methods.",
        _tagged("packed-*", {415}, {501}),
        lambda: examples.packed("unknown"),
    ),
    Difference(
        "version spelt otherwise",
        "version `01`",
        "404",
        "200",
        "A version has one name in URLs, metrics and logs.",
        lambda case, ours, triton: (
            _path(case, "/versions/01") and ours.status in (400, 404) and triton.status in (200, 405, 500)
        ),
        lambda: examples.ask("GET", "/v2/models/regnet/versions/01"),
    ),
    Difference(
        "unknown version",
        "an unknown model or version, or a version that is not a number",
        "404; 400 for `/ready`; 405 with the wrong method",
        "400 or 404, by endpoint",
        "One status for one error; for `/ready`, that of Triton.",
        lambda case, ours, triton: (
            _path(case, "/versions/", "/other/")
            and ours.status in (400, 404, 405)
            and triton.status in (400, 404)
            and ours.error() is not None
        ),
        lambda: examples.ask("GET", "/v2/models/regnet/versions/2/stats"),
    ),
    Difference(
        "escaped paths",
        "a path with escapes, such as `/v2/models/regn%65t`",
        "as the decoded path",
        "404",
        "RFC 3986: both are the same path.",
        lambda case, ours, triton: "%" in case.path and triton.status in (400, 404, 405) and ours.status < 500,
        lambda: examples.infer("path", path="/v2/models/regn%65t/infer"),
    ),
    Difference(
        "HEAD",
        "HEAD where there is GET",
        "as GET, without a body",
        "405",
        "RFC 9110 requires it; probes send it.",
        _head,
        lambda: examples.ask("HEAD", "/v2/models/regnet", b"", "method"),
    ),
    Difference(
        "/v2/",
        "`/v2/`",
        "as `/v2`",
        "404",
        "The protocol's OpenAPI file has the slash, its text does not.",
        lambda case, ours, triton: case.path == "/v2/" and ours.status in (200, 405) and triton.status == 404,
        lambda: examples.ask("GET", "/v2/"),
    ),
    Difference(
        "unknown method",
        "a method that HTTP does not define",
        "400",
        "405, or the connection is closed",
        "The HTTP parser knows methods by name; no client of the protocol sends others.",
        lambda case, ours, triton: (
            case.method in ("NOPE", "get") and ours.status == 400 and triton.status in (0, 404, 405)
        ),
        lambda: examples.infer("method", method="NOPE"),
    ),
    Difference(
        "settings of the server",
        "`/v2/logging`, `/v2/trace/setting` and `/v2/models/.../trace/setting`",
        "404",
        "200, the settings; 405 with the wrong method",
        "Not supported: `/v2` does not list the extensions. `serve --log-requests` and `--trace` set what they would.",
        lambda case, ours, triton: _path(case, "/v2/logging", "/trace/setting") and ours.status == 404,
        lambda: examples.ask("GET", "/v2/logging"),
    ),
    Difference(
        "regions of shared memory",
        "`/v2/systemsharedmemory/...` and `/v2/cudasharedmemory/...`: status, register, unregister",
        "404",
        "200, or 400 and 500 for a region that is not there",
        "Not supported: `/v2` does not list the extensions.",
        lambda case, ours, triton: _path(case, "/v2/systemsharedmemory", "/v2/cudasharedmemory") and ours.status == 404,
        lambda: examples.ask("GET", "/v2/systemsharedmemory/status"),
    ),
    Difference(
        "own endpoints",
        "`/`, `/card`, `/classify` and `/metrics`",
        "as [serving.md](serving.md) describes them",
        "404; metrics are on a port of their own, as with `--metrics-port`",
        "They are not of the protocol.",
        lambda case, ours, triton: case.path in ("/", "/card", "/classify", "/metrics") and triton.status == 404,
        lambda: examples.ask("GET", "/card"),
    ),
    Difference(
        "headers twice",
        "a header of which there is one (`Authorization`, `Host`, `Content-Type`, ...) twice, with two values",
        "400",
        "200, one of them counts",
        "A proxy in front may have checked the other one.",
        _tagged("headers-twice", {400}, {200}),
        lambda: examples.infer("headers-twice", headers={"Content-Type": "text/plain", "content-type": "image/png"}),
    ),
    Difference(
        "generate",
        "`/v2/models/.../generate`",
        "404",
        "as the extension for language models has it",
        "Not supported: `/v2` does not list the extension.",
        lambda case, ours, triton: case.path.endswith("/generate") and ours.status == 404,
        lambda: examples.infer("path", path="/v2/models/regnet/generate"),
    ),
    Difference(
        "who it is",
        "`/v2`",
        "its own name, version and extensions",
        "those of Triton",
        "It is not Triton; it has the extensions that it lists.",
        lambda case, ours, triton: case.path == "/v2" and ours.status == triton.status == 200,
        lambda: examples.ask("GET", "/v2"),
    ),
    Difference(
        "health",
        "`/v2/health/...` and `/v2/models/.../ready`",
        "200 and JSON",
        "200 and an empty body",
        "The protocol defines a body; clients read the status.",
        lambda case, ours, triton: (
            (_path(case, "/v2/health/") or case.path.endswith("/ready"))
            and ours.status == triton.status == 200
            and triton.body == b""
        ),
        lambda: examples.ask("GET", "/v2/health/ready"),
    ),
    Difference(
        "reasons",
        "`POST /v2/repository/index`",
        "each entry with `reason`",
        "without it, if empty",
        "All entries have the same fields; clients accept both.",
        lambda case, ours, triton: (
            case.path == "/v2/repository/index"
            and ours.status == triton.status == 200
            and _same_json_but("reason", ours, triton)
        ),
        lambda: examples.ask("POST", "/v2/repository/index"),
    ),
    Difference(
        "index of what",
        "`POST /v2/repository/index` with a body that is not an object",
        "400",
        "200, ignored",
        "Nothing that a client requests is ignored silently.",
        lambda case, ours, triton: case.path == "/v2/repository/index" and ours.status == 400 and triton.status == 200,
        lambda: examples.ask("POST", "/v2/repository/index", b"[]", "body"),
    ),
    Difference(
        "control",
        "load and unload, with a body that is not JSON",
        "503, as with any body",
        "500",
        "The body of a request that is not allowed is not read.",
        lambda case, ours, triton: (
            _path(case, "/load", "/unload") and ours.status == 503 and triton.status in (400, 500)
        ),
        lambda: examples.ask("POST", "/v2/repository/models/regnet/load", b"x", "body"),
    ),
)

#: Calls of gRPC that Triton has and this server has not: it answers UNIMPLEMENTED.
UNSUPPORTED_CALLS = (
    "ModelStreamInfer",
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
)


def explained(case: Any, ours: Any, triton: Any) -> Difference | None:
    """Return the entry that accounts for a difference, None where there is none."""
    return next((entry for entry in JUSTIFIED if entry.applies(case, ours, triton)), None)
