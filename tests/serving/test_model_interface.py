import pytest

from regnet_deploy.serving.batching import Batching
from regnet_deploy.serving.model_interface import ModelInterface

FLOATS = ModelInterface("m", "2", "images", "float32", (3, 8, 8), "logits", ("a", "b"), 16)
BYTES = ModelInterface("m", "2", "images", "uint8", (8, 8, 3), "logits", ("a", "b"), 16)


def test_metadata_has_names_types_and_shapes():
    assert FLOATS.metadata("onnxruntime_onnx") == {
        "name": "m",
        "versions": ["2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert BYTES.metadata("x", ["1", "2"])["versions"] == ["1", "2"]
    assert BYTES.metadata("x")["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]


def test_the_configuration_says_how_requests_are_batched():
    config = FLOATS.config("onnxruntime_onnx", "cpu", Batching(3, 8, 0.0025, max_queue=77), 1.5)
    assert config["max_batch_size"] == 16
    assert config["backend"] == "onnxruntime"
    assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 8, 8]}]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [2]}]
    assert config["instance_group"] == [{"name": "m", "kind": "KIND_CPU", "count": 3}]
    batching = config["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == 2500
    assert batching["default_queue_policy"]["max_queue_size"] == 77
    assert batching["default_queue_policy"]["default_timeout_microseconds"] == 1_500_000


@pytest.mark.parametrize("device", ["cuda:0 (NVIDIA H100)", "tensorrt:0"])
def test_on_a_gpu_the_configuration_says_so(device: str):
    config = BYTES.config("tensorrt_plan", device, Batching(), 1)
    assert config["instance_group"][0]["kind"] == "KIND_GPU"
    assert config["input"][0]["format"] == "FORMAT_NHWC"


def test_it_is_the_message_that_triton_has():
    """Every field is one of its protobuf message, and of its type."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    for interface in (FLOATS, BYTES):
        document = interface.config("onnxruntime_onnx", "cpu", Batching(), 30)
        message = json_format.ParseDict(document, model_config.ModelConfig())
        assert message.dynamic_batching.default_queue_policy.allow_timeout_override
