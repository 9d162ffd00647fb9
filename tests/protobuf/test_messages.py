"""Messages that clients and servers of the published protocols understand."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, text_format

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.protobuf import messages

CONFIG = {
    "name": "regnet",
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "version_policy": {"latest": {"num_versions": 2}},
    "input": [{"name": "images", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 224, 224]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["1000"], "label_filename": "labels.txt"}],
    "instance_group": [{"kind": "KIND_GPU", "count": 1, "gpus": [0], "profile": ["0"]}],
    "dynamic_batching": {
        "preferred_batch_size": [4, 8],
        "priority_levels": 2,
        "default_queue_policy": {"timeout_action": "REJECT", "max_queue_size": 64},
        "priority_queue_policy": {"1": {"allow_timeout_override": True}},
    },
    "optimization": {
        "execution_accelerators": {
            "gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}]
        }
    },
    "model_warmup": [
        {
            "name": "one",
            "batch_size": 1,
            "inputs": {"images": {"data_type": "TYPE_FP32", "dims": [3, 224, 224], "random_data": True}},
        }
    ],
    "parameters": {"intra_op_thread_count": {"string_value": "2"}},
    "default_model_filename": "model.onnx",
    "cc_model_filenames": {"9.0": "h100.plan"},
    "response_cache": {"enable": False},
}


def ours():
    files = descriptor_pb2.FileDescriptorSet.FromString(messages.COMPILED.read_bytes()).file
    return {file.name: file for file in files}


def published(name):
    from tritonclient.grpc import model_config_pb2, service_pb2

    module = {"model_config.proto": model_config_pb2, "open_inference.proto": service_pb2}[name]
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


#: What the base protocol has and Triton has not.
BASE_ONLY = "ModelMetadataResponse.properties", "ModelMetadataResponse.PropertiesEntry"


def fields_of(messages_of_file, prefix=""):
    """Every field, enumeration and map of a file: path -> what decides its bytes."""
    found = {}
    for message in messages_of_file:
        path = f"{prefix}{message.name}"
        found[path] = message.options.map_entry
        for field in message.field:
            choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
            found[f"{path}.{field.name}"] = (field.number, field.type, field.type_name, field.label, choice)
        found |= {f"{path}.{enum.name}": values_of(enum) for enum in message.enum_type}
        found |= fields_of(message.nested_type, path + ".")
    return found


def values_of(enum):
    return [(value.name, value.number) for value in enum.value]


@pytest.mark.parametrize("name", ["model_config.proto", "open_inference.proto"])
def test_each_field_is_that_of_triton(name):
    file, theirs = ours()[name], fields_of(published(name).message_type)
    mine = fields_of(file.message_type)
    assert [path for path, value in mine.items() if theirs.get(path) != value and not path.startswith(BASE_ONLY)] == []
    assert len(mine) > 100
    enums = {enum.name: values_of(enum) for enum in published(name).enum_type}
    assert all(enums[enum.name] == values_of(enum) for enum in file.enum_type)


@pytest.mark.parametrize("name", ["open_inference.proto"])
def test_no_field_of_a_message_of_the_protocol_is_missing(name):
    mine, theirs = fields_of(ours()[name].message_type), fields_of(published(name).message_type)
    had = {path.split(".")[0] for path in mine}
    assert {path for path in theirs if path.split(".")[0] in had} == {
        path for path in mine if not path.startswith(BASE_ONLY)
    }


def test_each_call_is_that_of_triton():
    (mine,), (theirs,) = ours()["open_inference.proto"].service, published("open_inference.proto").service
    assert mine.name == theirs.name
    calls = {call.name: call for call in theirs.method}
    for call in mine.method:
        assert call.input_type == calls[call.name].input_type
        assert call.output_type == calls[call.name].output_type


def test_the_health_check_is_that_of_grpc():
    file = ours()["health.proto"]
    assert file.package == "grpc.health.v1"
    assert fields_of(file.message_type) == {
        "HealthCheckRequest": False,
        "HealthCheckRequest.service": (1, 9, "", 1, None),
        "HealthCheckResponse": False,
        "HealthCheckResponse.status": (1, 14, ".grpc.health.v1.HealthCheckResponse.ServingStatus", 1, None),
        "HealthCheckResponse.ServingStatus": [
            ("UNKNOWN", 0),
            ("SERVING", 1),
            ("NOT_SERVING", 2),
            ("SERVICE_UNKNOWN", 3),
        ],
    }


def test_a_configuration_survives_text_and_dictionary():
    config = messages.message("inference.ModelConfig", CONFIG)
    assert messages.parse_text("inference.ModelConfig", messages.to_text(config)) == config
    assert messages.message("inference.ModelConfig", messages.to_dict(config)) == config


def test_triton_reads_a_configuration_as_it_was_meant():
    from tritonclient.grpc import model_config_pb2

    config = messages.message("inference.ModelConfig", CONFIG)
    theirs = text_format.Parse(messages.to_text(config), model_config_pb2.ModelConfig())
    assert theirs.SerializeToString(deterministic=True) == config.SerializeToString(deterministic=True)
    assert messages.parse_text("inference.ModelConfig", text_format.MessageToString(theirs)) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch: 3", 'no field named "max_batch"'),
        ("max_batch_size: 'three'", "1:17"),
        ("input { data_type: FP32 }", "FP32"),
        ("input {", "Expected"),
    ],
)
def test_text_that_is_no_configuration_is_refused_with_its_place(text, said):
    with pytest.raises(DataError, match=r"^inference\.ModelConfig: [^\n]*$") as refused:
        messages.parse_text("inference.ModelConfig", text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "values", [{"max_batch": 3}, {"max_batch_size": "three"}, {"input": 3}, {"input": [{"data_type": "FP32"}]}]
)
def test_a_dictionary_that_is_no_configuration_is_refused_in_one_line(values):
    with pytest.raises(DataError, match=r"^inference\.ModelConfig: [^\n]*$"):
        messages.message("inference.ModelConfig", values)


def test_a_name_mistyped_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean inference\.ModelConfig\?"):
        messages.message("inference.ModelConfg")


@pytest.mark.parametrize("first", ["tritonclient.grpc", "regnet_deploy.protobuf.messages"])
def test_another_library_with_the_same_protocol_does_not_collide(first):
    code = f"""
import {first}
from regnet_deploy.protobuf import messages
messages.message_class("inference.ModelInferRequest")
import tritonclient.grpc.service_pb2 as theirs
assert theirs.ModelInferRequest is not messages.message_class("inference.ModelInferRequest")
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, timeout=60)
