"""The same calls of gRPC to our server and to a real Triton. Marked `triton`; see test_http.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.triton, pytest.mark.timeout(1800)]

#: What of a call is answered otherwise on purpose: its tag (empty for any), both codes, why.
JUSTIFIED: tuple[tuple[str, str, str, str], ...] = (
    ("model", "NOT_FOUND", "INVALID_ARGUMENT", "a version that is no number is not there, as over HTTP"),
    ("", "INVALID_ARGUMENT", "INTERNAL", "the client's mistake, as over HTTP"),
    ("raw", "INVALID_ARGUMENT", "OK", "more raw tensors than inputs: which of them is the input's is not said"),
    ("outputs", "INVALID_ARGUMENT", "OK", "the output named twice, as over HTTP"),
    ("classes", "OK", "INVALID_ARGUMENT", "0 classes are none asked for, as over HTTP in both"),
)


def explained(tags: frozenset[str], ours: str, triton: str) -> bool:
    return any((not tag or tag in tags) and (ours, triton) == (one, other) for tag, one, other, _ in JUSTIFIED)


@pytest.fixture
def stubs(both: Any) -> Iterator[tuple[Any, Any]]:
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    channels = [grpc.insecure_channel(address) for address in (both.ours_grpc, both.triton_grpc)]
    yield tuple(service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels)
    for channel in channels:
        channel.close()


@settings(
    max_examples=int(os.environ.get("DIFFERENTIAL_EXAMPLES", "400")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_calls_to_infer_are_answered_as_by_triton(stubs: Any, grpc_cases: Any, data: Any):
    call = data.draw(grpc_cases.infer_calls())
    ours, theirs = (grpc_cases.ask(stub, "ModelInfer", call.request) for stub in stubs)
    differs = grpc_cases.difference(ours, theirs)
    assert differs is None or explained(call.tags, ours.code, theirs.code), f"{differs}: {call!r}"


def questions() -> list[tuple[str, Callable[[Any], Any]]]:
    return [
        ("ServerLive", lambda made: made.ServerLiveRequest()),
        ("ServerReady", lambda made: made.ServerReadyRequest()),
        ("ModelReady", lambda made: made.ModelReadyRequest(name="regnet")),
        ("ModelReady", lambda made: made.ModelReadyRequest(name="other")),
        ("ModelReady", lambda made: made.ModelReadyRequest(name="regnet", version="2")),
        ("ServerMetadata", lambda made: made.ServerMetadataRequest()),
        ("ModelMetadata", lambda made: made.ModelMetadataRequest(name="regnet")),
        ("ModelMetadata", lambda made: made.ModelMetadataRequest(name="other")),
        ("ModelMetadata", lambda made: made.ModelMetadataRequest(name="regnet", version="2")),
        ("ModelConfig", lambda made: made.ModelConfigRequest(name="regnet", version="1")),
        ("ModelConfig", lambda made: made.ModelConfigRequest(name="other")),
        ("ModelStatistics", lambda made: made.ModelStatisticsRequest()),
        ("ModelStatistics", lambda made: made.ModelStatisticsRequest(name="regnet", version="1")),
        ("RepositoryIndex", lambda made: made.RepositoryIndexRequest(ready=True)),
        ("RepositoryModelLoad", lambda made: made.RepositoryModelLoadRequest(model_name="regnet")),
        ("RepositoryModelUnload", lambda made: made.RepositoryModelUnloadRequest(model_name="regnet")),
    ]


@pytest.mark.parametrize(("call", "make"), questions())
def test_questions_get_the_codes_of_triton(stubs: Any, grpc_cases: Any, call: str, make: Callable[[Any], Any]):
    from tritonclient.grpc import service_pb2

    ours, theirs = (grpc_cases.ask(stub, call, make(service_pb2)) for stub in stubs)
    assert ours.code == theirs.code


def test_calls_that_are_listed_are_those_of_triton_alone(stubs: Any, differences: Any):
    import grpc
    from tritonclient.grpc import service_pb2

    for name in differences.UNSUPPORTED_CALLS:
        codes = []
        for stub in stubs:
            is_stream = name == "ModelStreamInfer"
            request = service_pb2.ModelInferRequest() if is_stream else getattr(service_pb2, f"{name}Request")()
            try:
                answer = getattr(stub, name)(iter([request]) if is_stream else request, timeout=5)
                codes.append("OK" if not is_stream or list(answer) else "")
            except grpc.RpcError as error:
                codes.append(error.code().name)
        assert codes[0] == "UNIMPLEMENTED" != codes[1], (name, codes)


def test_tritons_client_reads_the_same_from_both(both: Any):
    import tritonclient.grpc as triton

    images = np.random.default_rng(1).normal(size=(2, 3, 24, 24)).astype(np.float32)
    seen = []
    for address in (both.ours_grpc, both.triton_grpc):
        with triton.InferenceServerClient(address) as client:
            tensor = triton.InferInput("images", images.shape, "FP32")
            tensor.set_data_from_numpy(images)
            wanted = triton.InferRequestedOutput("logits", class_count=2)
            logits = client.infer("regnet", [tensor], request_id="x").as_numpy("logits")
            classes = client.infer("regnet", [tensor], outputs=[wanted]).as_numpy("logits")
            metadata = client.get_model_metadata("regnet", as_json=True)
            config = client.get_model_config("regnet", as_json=True)["config"]
            index = client.get_model_repository_index(as_json=True)["models"]
            names = [line.decode().split(":", 1)[1] for line in classes.ravel()]
            seen.append(
                (
                    logits,
                    names,
                    metadata["inputs"],
                    metadata["outputs"],
                    config["max_batch_size"],
                    config["input"],
                    index,
                )
            )
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-3, atol=1e-3)
    assert seen[0][1:] == seen[1][1:]
