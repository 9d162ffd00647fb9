"""Checklist 17: requests that hypothesis makes, over HTTP and gRPC, and the one after them."""

import contextlib
import http.client
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INFER = "/v2/models/regnet/infer"


GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"


#: Statuses of refusals; 503 is for verbs that the protocol has and this server has not.
REFUSALS = {400, 401, 404, 405, 408, 411, 413, 415, 431}


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


texts = st.text(max_size=20) | st.sampled_from(["images", "logits", "FP32", "UINT8", "BYTES", "", "\x00", "\ud800"])


numbers = st.sampled_from([0, 1, -1, 3, 24, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, 1.5, -0.0, 1e300])


values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


names = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "classification", "priority", "timeout", "binary_data_output", "triton_x"]),
    values,
    max_size=3,
)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Draw a request of which nearly everything is right, or nothing."""
    one = {"name": "images", "shape": [1, 3, 24, 24], "datatype": "FP32", "data": [0] * 1728}
    whole: dict[str, Any] = {"inputs": [one]}
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 5)):
            case 0:
                one[draw(names)] = draw(values)
            case 1:
                one.pop(draw(names), None)
            case 2:
                whole[draw(st.sampled_from(["inputs", "outputs", "id", "parameters"]))] = draw(values)
            case 3:
                one["parameters"] = draw(parameters)
            case 4:
                whole["parameters"] = draw(parameters)
            case 5:
                whole["outputs"] = [{"name": "logits", "parameters": draw(parameters)}]
    return whole


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a request over HTTP."""
    path = draw(
        st.sampled_from(
            [INFER, "/classify", "/v2/models/regnet", "/", "/v2/models/regnet/versions/1/infer", "/classify?k="]
        )
        | st.binary(max_size=30).map(lambda raw: "/" + raw.decode("latin-1"))
    )
    method = draw(st.sampled_from(["POST"] * 6 + ["GET", "PUT", "HEAD", "OPTIONS", "TRACE", "G T", ""]))
    body = draw(documents().map(encoded) | st.binary(max_size=200) | values.map(encoded))
    fields = draw(
        st.lists(
            st.sampled_from(
                [
                    "Content-Type: multipart/form-data; boundary=x",
                    "Content-Type: multipart/form-data",
                    "Content-Type: \xff",
                    "Content-Encoding: gzip",
                    "Content-Encoding: deflate",
                    "Content-Encoding: nothing",
                    "Accept-Encoding: gzip;q=x,,;",
                    "Expect: 100-continue",
                    "Connection: upgrade",
                    "Upgrade: websocket",
                    "Transfer-Encoding: chunked",
                    "Inference-Header-Content-Length: -1",
                    "Inference-Header-Content-Length: \xb2",
                    "Inference-Header-Content-Length: 10",
                    "Inference-Header-Content-Length: 0",
                    "Inference-Header-Content-Length: 99999999999999999999",
                    "X-Request-Id: a b\tc",
                    "traceparent: 00-zz-\xff",
                    "Host: [",
                    "no colon",
                    ": no name",
                    "A: \x00",
                ]
            ),
            max_size=3,
        )
    )
    length = draw(st.sampled_from([len(body)] * 8 + ["", -1, "1e3", "0x10", len(body) // 2]))
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {length}", *fields, "", ""])
    return head.encode("latin-1") + body


@settings(FUZZ, max_examples=250)
@given(data=requests())
def test_17a_every_malformed_request_is_a_4xx_with_an_error(server: Any, data: bytes):
    with server.connect() as connection:
        connection.settimeout(30)
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            connection.sendall(data)
        connection.shutdown(1)
        answer = http.client.HTTPResponse(connection, method=data.split(b" ", 1)[0].decode("latin-1"))
        try:
            answer.begin()
        except (http.client.RemoteDisconnected, ConnectionError):  # cut off in the midst of a body
            return
        with answer:
            body = answer.read()
    assert answer.status in {200} | REFUSALS, body
    if answer.status != 200 and not data.startswith(b"HEAD"):
        assert list(json.loads(body)) == ["error"]


def test_17b_and_the_next_request_is_fine(server: Any):
    server.answers()
    assert "a request failed" not in server.log


@settings(FUZZ, max_examples=80)
@given(document=documents(), raw=st.none() | st.binary(max_size=20))
def test_17c_documents_with_one_thing_wrong(server: Any, document: Any, raw: bytes | None):
    body, headers = encoded(document), {}
    if raw is not None:
        headers["Inference_Header_Content_Length"] = str(len(body))
        body += raw
    reply = server.infer(body, **headers)
    assert reply.status in {200} | REFUSALS, reply
    assert reply.status == 200 or reply.error


@settings(FUZZ, max_examples=100)
@given(
    data=st.binary(max_size=200),
    method=st.sampled_from(["ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "None"]),
)
def test_17d_bytes_that_are_no_message_of_grpc(server: Any, channel: Any, tools: Any, data: bytes, method: str):
    tools.grpc_call(channel, f"/inference.GRPCInferenceService/{method}", data)


@settings(FUZZ, max_examples=100)
@given(changes=st.data())
def test_17e_messages_of_grpc_with_one_thing_wrong(server: Any, channel: Any, tools: Any, changes: st.DataObject):
    from tritonclient.grpc import service_pb2 as pb

    draw = changes.draw
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
    tensor = pb.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, 3, 24, 24])
    request = pb.ModelInferRequest(model_name="regnet")
    match draw(st.integers(0, 6)):
        case 0:
            del tensor.shape[:]
            tensor.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)))
        case 1:
            tensor.datatype = draw(words)
        case 2:
            tensor.name = draw(words)
        case 3:
            request.model_name, request.model_version = draw(words), draw(words)
        case 4:
            key = draw(st.sampled_from(["priority", "timeout", "classification", "binary_data_size"]))
            request.parameters[key].string_param = draw(words)
        case 5:
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=5)))
        case 6:
            tensor.contents.bytes_contents.append(draw(st.binary(max_size=9)))
    request.inputs.extend([tensor] * draw(st.sampled_from([1, 1, 1, 0, 2])))
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        request.raw_input_contents.append(bytes(draw(st.sampled_from([6912, 6912, 6911, 0, 6913]))))
    tools.grpc_call(channel, GRPC_INFER, request.SerializeToString())
    tools.grpc_call(channel, GRPC_INFER, request.SerializeToString()[: draw(st.integers(0, 200))])


def test_17f_and_the_next_one_is_fine(server: Any, channel: Any):
    assert channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=30)
    server.answers()
    assert "a request failed" not in server.log
