"""gRPC, with tritonclient as it is and with bytes that no client would send."""

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from regnet_deploy import __version__
from regnet_deploy.bundle import open_bundle
from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.protobuf import messages
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.grpc_server import start_grpc
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_version import ServeOptions, load_version
from regnet_deploy.serving.service import Service

CLASSES = 6
SHAPE = (3, 24, 24)


class Server:
    """A server on a loop in a thread of its own."""

    def __init__(self, served, limits, options):
        self.finished = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.served = served
        self.service = self.do(self._service(limits))
        try:
            self.grpc = self.do(start_grpc(self.service, "127.0.0.1", 0, **options))
        except BaseException:
            self.end()
            raise
        self.url = self.grpc.url

    async def _service(self, limits):
        models = ModelRegistry()
        for one in self.served:
            one.start()
            models.put(one)
        admission = Admission(limits.max_in_flight, ServerState.READY, limits.max_bodies_bytes)
        return Service(models, admission, limits, None, self.finished.append)

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def wait_for(self, count):
        """Return what the observers were told once there are ``count``: the last word goes out behind the answer."""
        for _ in range(1000):
            if len(self.finished) >= count:
                break
            time.sleep(0.01)
        assert len(self.finished) == count
        return self.finished

    def end(self):
        self.do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()

    async def _close(self):
        if hasattr(self, "grpc"):
            await self.grpc.stop(0.0)
        self.service.close()


class Gated:
    """A session that waits, once it runs, until it may go on."""

    def __init__(self, session):
        self._session = session
        self.entered, self.gate = threading.Event(), threading.Event()

    def run(self, images):
        self.entered.set()
        assert self.gate.wait(30)
        return self._session.run(images)

    def __getattr__(self, name):
        return getattr(self._session, name)


class Broken(Gated):
    def run(self, images):
        raise RuntimeError("secret of /the/machine")


@pytest.fixture(scope="module")
def bundle(_exported):
    return open_bundle(_exported)


def load(bundle, variant="onnx-fp32", limits=None, **options):
    return load_version(bundle, ServeOptions(variant=variant), limits=limits or Limits(), **options)


@contextlib.contextmanager
def running(*served, limits=None, **options):
    server = Server(served, limits or Limits(), options)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def shared(bundle):
    with running(load(bundle, version="3"), load(bundle, "onnx-fp32-uint8", model="bytes")) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.finished.clear()
    return shared


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url) as client:
        yield client


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.url) as channel:
        yield channel


def images(count=2, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def tensor(values, name="images", datatype="FP32"):
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return [made]


def request(**changes):
    """A request of one black image, with raw contents."""
    values = {
        "model_name": "regnet",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [1, *SHAPE]}],
    }
    made = messages.message("inference.ModelInferRequest", {**values, **changes})
    if "inputs" not in changes:
        made.raw_input_contents.append(bytes(4 * 3 * 24 * 24))
    return made


def call(channel, data, method="inference.GRPCInferenceService/ModelInfer", **options):
    data = data if isinstance(data, bytes) else data.SerializeToString()
    return channel.unary_unary(f"/{method}")(data, timeout=options.pop("timeout", 20), **options)


def infer(channel, data, **options):
    return messages.message_class("inference.ModelInferResponse").FromString(call(channel, data, **options))


def refusal(channel, data, **options):
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, data, **options)
    return refused.value.code().name, refused.value.details()


def check(channel, service=""):
    question = messages.message("grpc.health.v1.HealthCheckRequest", {"service": service})
    data = call(channel, question, "grpc.health.v1.Health/Check")
    return messages.to_dict(messages.message_class("grpc.health.v1.HealthCheckResponse").FromString(data))["status"]


# What there is


def test_the_server_and_its_models_are_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("regnet")
    assert client.is_model_ready("regnet", "3")


def test_a_model_that_is_unknown_is_not_ready(client):
    assert not client.is_model_ready("regent")
    assert not client.is_model_ready("regnet", "1")
    assert not client.is_model_ready("regnet", "abc")


def test_the_server_says_what_it_is(client):
    metadata = client.get_server_metadata()
    assert (metadata.name, metadata.version) == ("regnet-deploy", __version__)
    assert {"binary_tensor_data", "classification", "statistics"} <= set(metadata.extensions)


def test_metadata_tell_names_types_and_shapes(client):
    metadata = client.get_model_metadata("regnet", as_json=True)
    assert (metadata["name"], metadata["versions"]) == ("regnet", ["3"])
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": ["-1", "3", "24", "24"]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "6"]}]


def test_the_configuration_is_triton_s_message(client):
    config = client.get_model_config("regnet").config
    assert (config.name, config.max_batch_size, config.input[0].dims) == ("regnet", 32, [3, 24, 24])
    assert config.HasField("dynamic_batching")


def test_statistics_count_images_and_executions(client, server):
    before = client.get_inference_statistics("regnet", "3").model_stats[0]
    client.infer("regnet", tensor(images(4)))
    server.wait_for(1)
    (after,) = client.get_inference_statistics("regnet").model_stats
    assert (after.name, after.version) == ("regnet", "3")
    assert after.inference_count - before.inference_count == 4
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.queue.count > before.inference_stats.queue.count
    assert {one.name for one in client.get_inference_statistics().model_stats} == {"regnet", "bytes"}


def test_the_index_lists_every_version(client):
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {(entry["name"], entry["version"], entry["state"]) for entry in index} == {
        ("regnet", "3", "READY"),
        ("bytes", "1", "READY"),
    }


def test_a_model_that_cannot_be_opened_is_listed_and_not_serving_beside_the_others(client, channel, server):
    models = server.service.models
    models.set_unusable({("half", "1"): "has no bundle.json", ("a b", None): "is not a valid name"})
    try:
        index = {entry.name: entry for entry in client.get_model_repository_index().models}
        assert (index["half"].version, index["half"].state) == ("1", "UNAVAILABLE")
        assert (index["a b"].version, index["a b"].reason) == ("", "is not a valid name")
        assert not client.is_model_ready("half")
        assert client.is_model_ready("regnet")
        assert client.is_server_ready()
        answers = [check(channel, service) for service in ("half", "regnet", "")]
        assert answers == ["NOT_SERVING", "SERVING", "SERVING"]
        with pytest.raises(InferenceServerException, match="no version of model half is ready") as refused:
            client.infer("half", tensor(images()))
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
    finally:
        models.set_unusable({})


@pytest.mark.parametrize("verb", ["load_model", "unload_model"])
def test_checklist_04_clients_load_and_unload_nothing(client, verb):
    with pytest.raises(InferenceServerException, match="not allowed") as refused:
        getattr(client, verb)("regnet")
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    assert client.is_model_ready("regnet")


def test_the_health_check_answers_for_the_server_and_each_model(channel):
    assert [check(channel, service) for service in ("", "inference.GRPCInferenceService", "regnet", "bytes")] == [
        "SERVING"
    ] * 4
    data = messages.message("grpc.health.v1.HealthCheckRequest", {"service": "regent"})
    assert refusal(channel, data, method="grpc.health.v1.Health/Check")[0] == "NOT_FOUND"


def test_readiness_goes_first_when_the_server_drains(client, channel, server):
    server.service.admission.state = ServerState.DRAINING
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("regnet")
        assert check(channel) == check(channel, "regnet") == "NOT_SERVING"
        assert refusal(channel, request())[0] == "UNAVAILABLE"
    finally:
        server.service.admission.state = ServerState.READY
    assert server.wait_for(1)[0].status == 503


# Inference


def test_numbers_go_in_and_logits_come_out(client, server):
    values = images(3)
    answer = client.infer("regnet", tensor(values), request_id="seven")
    np.testing.assert_allclose(answer.as_numpy("logits"), server.served[0].session.run(values), atol=1e-5)
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("regnet", "3", "seven")
    assert answer.get_output("logits").datatype == "FP32"


def test_pixels_go_in_and_logits_come_out(client, server):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    answer = client.infer("bytes", tensor(pixels, datatype="UINT8"))
    np.testing.assert_allclose(answer.as_numpy("logits"), server.served[1].session.run(pixels), atol=1e-5)


def test_classes_are_strings_of_value_index_and_label(client, server):
    values = images(2)
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    rows = client.infer("regnet", tensor(values), outputs=wanted).as_numpy("logits")
    logits = server.served[0].session.run(values)
    assert rows.shape == (2, 2)
    for row, line in zip(rows, logits, strict=True):
        assert [int(text.split(b":")[1]) for text in row] == list(np.argsort(-line)[:2])
        assert row[0].split(b":")[2].decode() in server.served[0].interface.labels


def test_more_classes_than_there_are_are_all(client):
    wanted = [triton.InferRequestedOutput("logits", class_count=100)]
    assert client.infer("regnet", tensor(images(1)), outputs=wanted).as_numpy("logits").shape == (1, CLASSES)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_options_of_the_client_are_taken(client, compression):
    answer = client.infer(
        "regnet",
        tensor(images(1)),
        model_version="3",
        outputs=[triton.InferRequestedOutput("logits")],
        priority=1,
        timeout=10_000_000,
        client_timeout=20,
        parameters={"mine": 1, "yours": "two", "his": True, "hers": 0.5},
        compression_algorithm=compression,
    )
    assert answer.as_numpy("logits").shape == (1, CLASSES)


def test_the_asynchronous_client_is_answered_too(server):
    async def ask():
        async with triton_aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("regnet")).name == "regnet"
            answers = await asyncio.gather(*(client.infer("regnet", tensor(images(1, i))) for i in range(8)))
            return [answer.as_numpy("logits") for answer in answers]

    for i, logits in enumerate(asyncio.run(ask())):
        np.testing.assert_allclose(logits, server.served[0].session.run(images(1, i)), atol=1e-5)


def test_typed_contents_are_answered_in_raw_bytes(channel, server):
    values = images(1)
    described = {"name": "images", "datatype": "FP32", "shape": [1, *SHAPE]}
    answer = infer(channel, request(inputs=[described | {"contents": {"fp32_contents": values.ravel().tolist()}}]))
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, CLASSES)
    np.testing.assert_allclose(logits, server.served[0].session.run(values), atol=1e-5)
    assert not answer.outputs[0].HasField("contents")


def test_typed_pixels_are_answered(channel, server):
    pixels = np.random.default_rng(3).integers(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    described = {"name": "images", "datatype": "UINT8", "shape": [1, 24, 24, 3]}
    described["contents"] = {"uint_contents": pixels.ravel().tolist()}
    answer = infer(channel, request(model_name="bytes", inputs=[described]))
    logits = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, CLASSES)
    np.testing.assert_allclose(logits, server.served[1].session.run(pixels), atol=1e-5)


def test_values_that_are_not_finite_spoil_their_own_image_alone(channel, server):
    values = images(2)
    values[0, 0, 0, 0] = np.nan
    described = {"name": "images", "datatype": "FP32", "shape": [2, *SHAPE]}
    made = request(inputs=[described])
    made.raw_input_contents.append(values.tobytes())
    logits = np.frombuffer(infer(channel, made).raw_output_contents[0], "<f4").reshape(2, CLASSES)
    np.testing.assert_allclose(logits[1:], server.served[0].session.run(values[1:]), atol=1e-5)


def test_observers_are_told_once_of_each_inference(channel, server):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    infer(channel, request(), metadata=(("x-request-id", "mine"), ("traceparent", parent)))
    refusal(channel, request(model_name="regent"))
    done, refused = server.wait_for(2)
    assert (done.model, done.version, done.protocol, done.operation) == ("regnet", "3", "grpc", "infer")
    assert (done.status, done.images, done.error) == (200, 1, None)
    assert (done.request_id, done.trace_parent) == ("mine", parent)
    assert done.batch >= 1
    assert 0 < done.read_s < done.total_s
    assert (refused.model, refused.status) == ("", 404)
    assert "regent" in refused.error


# Mistakes of clients


def without_raw(**changes):
    described = {"name": "images", "datatype": "FP32", "shape": [1, *SHAPE], **changes}
    return request(inputs=[described])


def with_raw(made, *raw):
    made.raw_input_contents.extend(raw)
    return made


BLACK = bytes(4 * 3 * 24 * 24)
MISTAKES = {
    "unknown model": (lambda: request(model_name="regent"), "NOT_FOUND", "regent"),
    "no model": (lambda: request(model_name=""), "NOT_FOUND", "unknown model"),
    "unknown version": (lambda: request(model_version="2"), "NOT_FOUND", ": 3"),
    "version of letters": (lambda: request(model_version="abc"), "NOT_FOUND", ": 3"),
    "not a message": (lambda: b"\xff\xff\xff", "INVALID_ARGUMENT", "not an inference.ModelInferRequest"),
    "a message cut off": (
        lambda: request().SerializeToString()[:-1],
        "INVALID_ARGUMENT",
        "not an inference.ModelInferRequest",
    ),
    "not UTF-8": (lambda: b"\x0a\x02\xff\xfe", "INVALID_ARGUMENT", "ModelInferRequest"),
    "an empty message": (lambda: b"", "NOT_FOUND", "unknown model"),
    "no input": (lambda: request(inputs=[]), "INVALID_ARGUMENT", "images"),
    "two inputs": (
        lambda: with_raw(request(inputs=[{"name": "images"}, {"name": "images"}]), BLACK, BLACK),
        "INVALID_ARGUMENT",
        "one",
    ),
    "unknown input": (lambda: with_raw(without_raw(name="image"), BLACK), "INVALID_ARGUMENT", "'image'"),
    "wrong type": (lambda: with_raw(without_raw(datatype="FP16"), BLACK), "INVALID_ARGUMENT", "FP32"),
    "wrong shape": (lambda: with_raw(without_raw(shape=[1, 3, 9, 9]), BLACK), "INVALID_ARGUMENT", "shape"),
    "too many images": (lambda: with_raw(without_raw(shape=[33, *SHAPE]), BLACK), "INVALID_ARGUMENT", "33"),
    "absurd shape": (lambda: with_raw(without_raw(shape=[2**63 - 1, *SHAPE]), BLACK), "INVALID_ARGUMENT", "images"),
    "negative shape": (lambda: with_raw(without_raw(shape=[-1, *SHAPE]), BLACK), "INVALID_ARGUMENT", "images"),
    "too few bytes": (lambda: with_raw(without_raw(), BLACK[:-1]), "INVALID_ARGUMENT", "bytes"),
    "too many bytes": (lambda: with_raw(without_raw(), BLACK + b"x"), "INVALID_ARGUMENT", "bytes"),
    "no bytes": (without_raw, "INVALID_ARGUMENT", "bytes"),
    "more tensors than inputs": (lambda: with_raw(without_raw(), BLACK, BLACK), "INVALID_ARGUMENT", "2 raw"),
    "raw and typed": (
        lambda: with_raw(without_raw(contents={"fp32_contents": [1]}), BLACK),
        "INVALID_ARGUMENT",
        "mixed",
    ),
    "typed as another type": (
        lambda: without_raw(contents={"fp64_contents": [1]}),
        "INVALID_ARGUMENT",
        "takes fp32_contents, not fp64_contents",
    ),
    "pixels beyond 255": (
        lambda: request(
            model_name="bytes",
            inputs=[
                {
                    "name": "images",
                    "datatype": "UINT8",
                    "shape": [1, 24, 24, 3],
                    "contents": {"uint_contents": [256] * 24 * 24 * 3},
                }
            ],
        ),
        "INVALID_ARGUMENT",
        "0 to 255",
    ),
    "more numbers than the largest batch": (
        lambda: without_raw(contents={"fp32_contents": [0.0] * (32 * 3 * 24 * 24 + 1)}),
        "INVALID_ARGUMENT",
        "more than 32 images",
    ),
    "unknown output": (lambda: request(outputs=[{"name": "logit"}]), "INVALID_ARGUMENT", "logit"),
    "two outputs": (lambda: request(outputs=[{"name": "logits"}, {"name": "logits"}]), "INVALID_ARGUMENT", "one"),
    "classes below none": (
        lambda: request(outputs=[{"name": "logits", "parameters": {"classification": {"int64_param": -1}}}]),
        "INVALID_ARGUMENT",
        "classification",
    ),
    "classes as text": (
        lambda: request(outputs=[{"name": "logits", "parameters": {"classification": {"string_param": "2"}}}]),
        "INVALID_ARGUMENT",
        "classification",
    ),
    "priority below none": (
        lambda: request(parameters={"priority": {"int64_param": -1}}),
        "INVALID_ARGUMENT",
        "priority",
    ),
    "a parameter without value": (lambda: request(parameters={"mine": {}}), "INVALID_ARGUMENT", "no value"),
    "shared memory": (
        lambda: without_raw(parameters={"shared_memory_region": {"string_param": "mine"}}),
        "INVALID_ARGUMENT",
        "shared memory",
    ),
    "more beside the tensors than a request takes": (
        lambda: with_raw(without_raw(name="x" * 70_000), BLACK),
        "RESOURCE_EXHAUSTED",
        "65536 bytes besides its raw tensors",
    ),
    "very many inputs": (lambda: b"\x2a\x00" * 100_000, "RESOURCE_EXHAUSTED", "besides its raw tensors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_checklist_17_a_mistake_is_the_client_s_and_the_next_request_fine(channel, server, mistake):
    make, code, said = MISTAKES[mistake]
    got, details = refusal(channel, make())
    assert got == code
    assert said in details
    assert "\n" not in details
    infer(channel, request())
    assert [one.status < 500 for one in server.wait_for(2)] == [True, True]


def test_checklist_07_a_message_beyond_the_limit_is_refused(bundle):
    limits = Limits(max_body_bytes=100_000)
    with running(load(bundle), limits=limits) as server, grpc.insecure_channel(server.url) as channel:
        assert refusal(channel, bytes(100_001))[0] == "RESOURCE_EXHAUSTED"
        infer(channel, request())
        assert [one.status for one in server.wait_for(2)] == [499, 200]
        assert server.service.admission.in_flight == server.service.admission.bytes_in_flight == 0


def test_checklist_08_a_message_that_unpacks_beyond_the_limit_is_refused(bundle):
    limits = Limits(max_body_bytes=100_000)
    with running(load(bundle), limits=limits) as server, grpc.insecure_channel(server.url) as channel:
        bomb = bytes(20 * 2**20)
        code, details = refusal(channel, bomb, compression=grpc.Compression.Gzip)
        assert code == "RESOURCE_EXHAUSTED"
        assert "Decompressed" in details, "this grpcio unpacks all of a message before it counts: 1.84 does not"
        infer(channel, request(), compression=grpc.Compression.Gzip)


def test_checklist_09_metadata_beyond_the_limit_are_refused(channel):
    code, _ = refusal(channel, request(), metadata=(("x-large", "x" * 40_000),))
    assert code == "RESOURCE_EXHAUSTED"
    infer(channel, request())


def test_a_call_that_there_is_not_is_unimplemented(channel):
    for name in ("ModelStreamInfer", "SystemSharedMemoryRegister", "TraceSetting"):
        assert refusal(channel, b"", method=f"inference.GRPCInferenceService/{name}")[0] == "UNIMPLEMENTED"


def test_a_question_that_is_no_message_is_refused(channel):
    where = "inference.GRPCInferenceService/ModelMetadata"
    assert refusal(channel, b"\xff", method=where)[0] == "INVALID_ARGUMENT"
    assert refusal(channel, b"\x0a\x01x", method=where)[0] == "NOT_FOUND"
    assert refusal(channel, b"\x1a\x00" * 50_000, method=where)[0] == "RESOURCE_EXHAUSTED"


def test_checklist_11_a_message_that_does_not_arrive_is_not_waited_for(bundle):
    with running(load(bundle), limits=Limits(read_timeout_s=0.1)) as server:
        with grpc.insecure_channel(server.url) as channel:
            never = threading.Event()

            def nothing():
                never.wait(30)
                yield from ()

            slow = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                slow(nothing(), timeout=20)
            never.set()
            assert refused.value.code().name == "DEADLINE_EXCEEDED"
            assert "0.1 s" in refused.value.details()
        assert server.wait_for(1)[0].status == 408


@contextlib.contextmanager
def silent(server, method, count):
    """So many calls on one connection that send no message."""
    ended = threading.Event()

    def nothing():
        ended.wait(60)
        yield from ()

    with grpc.insecure_channel(server.url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = [channel.stream_unary(method).future(nothing()) for _ in range(count)]
        try:
            yield calls
        finally:
            ended.set()


def test_checklist_11_calls_that_send_nothing_keep_nobody_waiting(bundle):
    method = "/inference.GRPCInferenceService/ModelInfer"
    with running(load(bundle), limits=Limits(read_timeout_s=3600.0)) as server, silent(server, method, 8) as calls:
        wait_until(lambda: server.service.admission.in_flight == 8)
        with grpc.insecure_channel(server.url) as channel:
            for _ in range(3):
                assert call(channel, request())
        assert not any(one.done() for one in calls)  # nor had any to go for it


def test_health_checks_that_send_nothing_keep_no_other_waiting(bundle):
    with running(load(bundle)) as server, silent(server, "/grpc.health.v1.Health/Check", 40) as calls:
        wait_until(lambda: sum(one.done() for one in calls) >= 24)
        with grpc.insecure_channel(server.url) as channel:
            assert check(channel) == "SERVING"


# Too much, too late, gone


@contextlib.contextmanager
def occupied(bundle, limits):
    """A server whose only executor is at work, and a channel to it."""
    served = load(bundle, limits=limits)
    session = Gated(served.session)
    served = replace(served, sessions=(session,))
    with running(served, limits=limits) as server, grpc.insecure_channel(server.url) as channel:
        running_call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(
            request().SerializeToString(), timeout=30
        )
        assert session.entered.wait(30)
        try:
            yield server, channel, session, running_call
        finally:
            session.gate.set()


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to that")


def test_checklist_13_a_full_queue_says_so_while_health_is_answered(bundle):
    with occupied(bundle, Limits(max_queue=1)) as (server, channel, session, first):
        infer_later = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future
        second = infer_later(request().SerializeToString(), timeout=30)
        wait_until(lambda: server.served[0].batcher.depth == 1)
        with pytest.raises(grpc.RpcError) as refused:
            call(channel, request())
        assert refused.value.code().name == "UNAVAILABLE"
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert check(channel) == "SERVING"
        session.gate.set()
        assert first.result(30)
        assert second.result(30)
        assert sorted(one.status for one in server.wait_for(3)) == [200, 200, 503]


def test_more_calls_than_are_let_in_are_told_to_come_back(bundle):
    with occupied(bundle, Limits(max_in_flight=1)) as (server, channel, session, first):
        assert refusal(channel, request())[0] == "UNAVAILABLE"
        assert check(channel) == "SERVING"
        session.gate.set()
        assert first.result(30)
        assert sorted(one.status for one in server.wait_for(2)) == [200, 503]


@pytest.mark.parametrize("how", ["deadline", "parameter"])
def test_checklist_14_what_is_too_late_is_not_run(bundle, how):
    with occupied(bundle, Limits()) as (server, channel, session, first):
        if how == "deadline":
            made, options = request(), {"timeout": 0.2}
        else:
            made, options = request(parameters={"timeout": {"int64_param": 200_000}}), {}
        assert refusal(channel, made, **options)[0] == "DEADLINE_EXCEEDED"
        assert server.wait_for(1)[0].status == 504
        assert server.served[0].batcher.depth == 0
        session.gate.set()
        assert first.result(30)
        done = server.wait_for(2)[1]
        assert (done.status, done.batch) == (200, 1)


def test_checklist_34_a_client_that_has_gone_leaves_the_queue(bundle):
    with occupied(bundle, Limits()) as (server, channel, session, first):
        gone = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(request().SerializeToString())
        wait_until(lambda: server.served[0].batcher.depth == 1)
        gone.cancel()
        assert server.wait_for(1)[0].status == 499
        assert server.served[0].batcher.depth == 0
        session.gate.set()
        assert first.result(30)
        assert server.wait_for(2)[1].batch == 1


def test_checklist_31_stopping_lets_what_runs_end(bundle):
    with occupied(bundle, Limits()) as (server, _channel, session, first):
        server.service.admission.state = ServerState.DRAINING
        stopping = asyncio.run_coroutine_threadsafe(server.grpc.stop(20), server.loop)
        session.gate.set()
        assert first.result(30)
        stopping.result(30)


def test_a_call_that_is_cut_off_by_the_stop_is_unavailable(bundle):
    with occupied(bundle, Limits()) as (server, _channel, _session, first):
        server.service.admission.state = ServerState.DRAINING
        server.do(server.grpc.stop(0.1))
        with pytest.raises(grpc.RpcError) as error:
            first.result(30)
        assert error.value.code().name == "UNAVAILABLE"
        one = server.wait_for(1)[0]
        assert (one.status, one.error) == (503, "the server is stopping, and this request was cut off")


def test_checklist_30_a_failure_of_the_server_tells_no_details(bundle, caplog):
    served = load(bundle)
    with running(replace(served, sessions=(Broken(served.session),))) as server:
        with grpc.insecure_channel(server.url) as channel:
            code, details = refusal(channel, request())
        assert code == "INTERNAL"
        assert "secret" not in details
        assert server.wait_for(1)[0].status == 500
    assert "secret" in caplog.text


# Who is let in, and how


def test_checklist_02_without_the_token_only_the_server_s_health_is_answered(bundle):
    token = "open-sesame-0123456789"
    with running(load(bundle), token=token) as server, grpc.insecure_channel(server.url) as channel:
        assert check(channel) == "SERVING"
        with triton.InferenceServerClient(server.url) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            for ask in (client.is_model_ready, client.get_model_metadata, client.get_model_config):
                with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                    ask("regnet")
            assert client.is_model_ready("regnet", headers={"authorization": f"Bearer {token}"})
        about_a_model = messages.message("grpc.health.v1.HealthCheckRequest", {"service": "regnet"})
        assert refusal(channel, about_a_model, method="grpc.health.v1.Health/Check")[0] == "UNAUTHENTICATED"
        for given in ((), (token,), ("Bearer ",), (f"Bearer {token[:-1]}",), (f"Basic {token}",)):
            metadata = tuple(("authorization", value) for value in given)
            code, details = refusal(channel, request(), metadata=metadata)
            assert code == "UNAUTHENTICATED"
            assert "sesame" not in details
        infer(channel, request(), metadata=(("authorization", f"Bearer {token}"),))
        twice = (("authorization", f"Bearer {token}"), ("authorization", "Bearer other"))
        with pytest.raises(grpc.RpcError) as refused:
            infer(channel, request(), metadata=twice)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "the call has the metadata authorization twice, with two values"
        assert [one.status for one in server.wait_for(6)] == [401] * 5 + [200]


def certificate(folder: Path) -> tuple[Path, Path]:
    import subprocess

    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_tls_is_spoken_with_the_certificate_given(bundle, tmp_path):
    chain, key = certificate(tmp_path)
    with running(load(bundle), tls=(chain, key)) as server:
        trusted = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc.port}", trusted) as channel:
            infer(channel, request())
        with grpc.insecure_channel(server.url) as channel:
            assert refusal(channel, request())[0] == "UNAVAILABLE"


def test_a_certificate_that_cannot_be_used_is_one_line(bundle, tmp_path):
    chain, key = certificate(tmp_path)
    served = load(bundle)
    with (
        pytest.raises(UsageError, match=r"cannot read .*missing\.pem"),
        running(served, tls=(chain, tmp_path / "missing.pem")),
    ):
        pass
    key.write_text("no key")
    with pytest.raises((ServerError, UsageError), match=r"key\.pem"), running(load(bundle), tls=(chain, key)):
        pass


def test_a_port_that_is_taken_is_one_line(bundle, server):
    async def again():
        await start_grpc(server.service, "127.0.0.1", server.grpc.port)

    with pytest.raises(ServerError, match="taken"):
        server.do(again())


def test_calls_of_triton_that_are_not_offered_are_unimplemented(bundle):
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with running(load(bundle)) as server, grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call in (
            lambda: list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest()]))),
            lambda: stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest()),
            lambda: stub.TraceSetting(service_pb2.TraceSettingRequest()),
            lambda: stub.LogSettings(service_pb2.LogSettingsRequest()),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_connections_are_replaced_before_a_server_that_lingers_ends(bundle):
    """Each is told to go (GOAWAY) without losing a call; when the server listens no more, nobody comes back."""
    with running(load(bundle), linger_s=1.0) as server, grpc.insecure_channel(server.url) as channel:
        begin = time.monotonic()
        while time.monotonic() - begin < 1.2:
            infer(channel, request())
        server.loop.call_soon_threadsafe(server.grpc.stop_listening)

        def ask_on():
            while time.monotonic() - begin < 30:
                infer(channel, request())

        with pytest.raises(grpc.RpcError) as error:
            ask_on()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Connection refused" in error.value.details()
