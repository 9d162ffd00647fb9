"""Configurations of Triton models as JSON data of the message ``inference.ModelConfig``, and as ``config.pbtxt``.

The text is written by protobuf, so a field that the message does not have is an error here, not in the server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.protobuf.messages import message, to_text

#: Files in the folder of a model.
LABELS = "labels.txt"
#: Files in the folder ``warmup`` of a model.
WARM_UP = "golden"
#: Name of the tensor of encoded images, of the ensemble and of its first step.
IMAGE = "image"
#: Value of the parameter ``cudnn_conv_algo_search`` of Triton's ONNX Runtime backend: 0 is exhaustive, 2 the default of
#: cuDNN.
_HEURISTIC = 1

Config = dict[str, Any]


@dataclass(frozen=True)
class Scheduling:
    """How requests are queued and batched.

    Attributes:
        max_batch: maximum number of images in a batch.
        instances: number of instances of the model; each runs one batch at a time.
        max_queue: maximum number of waiting requests; more are rejected.
        deadline_ms: maximum time that a request waits, ms; a client can request less.
        max_delay_ms: maximum time that a batch waits for more images, ms.
    """

    max_batch: int
    instances: int
    max_queue: int
    deadline_ms: float
    max_delay_ms: float


def config_text(config: Config) -> str:
    """Return a configuration as the text of ``config.pbtxt``.

    Raises:
        MissingExtra: protobuf is not installed.
    """
    return to_text(message("inference.ModelConfig", config))


def classifier_config(
    name: str,
    scheduling: Scheduling,
    *,
    images: tuple[str, str, tuple[int, int, int]],
    logits: tuple[str, int],
    gpu: bool,
) -> Config:
    """Return what all classifiers have in common; :func:`on_onnxruntime` or :func:`on_tensorrt` adds the backend.

    Args:
        name: of the model.
        scheduling: how requests are queued and batched.
        images: name, type (``float32`` or ``uint8``) and shape of one image.
        logits: name and number of classes.
        gpu: run it on a GPU.
    """
    tensor, dtype, shape = images
    pixels = dtype == "uint8"
    kind = {"data_type": "TYPE_UINT8" if pixels else "TYPE_FP32", "dims": list(shape)}
    return {
        "name": name,
        "max_batch_size": scheduling.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [{"name": tensor, "format": "FORMAT_NHWC" if pixels else "FORMAT_NCHW", **kind}],
        "output": [_logits(*logits)],
        "instance_group": [{"kind": "KIND_GPU" if gpu else "KIND_CPU", "count": scheduling.instances}],
        "dynamic_batching": _batching(scheduling),
        "model_warmup": _warm_up(tensor, kind, scheduling.max_batch),
    }


def on_onnxruntime(config: Config, *, gpu: bool, threads: int) -> Config:
    """Return the configuration of an ONNX classifier.

    The number of threads is set, because by default each instance uses a thread for every core. On a GPU, TF32 is
    disabled, because the file was proved without it. The search of convolution algorithms is a parameter of the model:
    the backend reads it there only, and without it searches exhaustively, whatever the accelerator says.
    """
    parameters: dict[str, object] = {"intra_op_thread_count": threads, "inter_op_thread_count": 1, "execution_mode": 0}
    if gpu:
        parameters["cudnn_conv_algo_search"] = _HEURISTIC
    configured = {
        **config,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "parameters": _parameters(parameters),
    }
    if gpu:
        cuda = {"name": "cuda", "parameters": {"use_tf32": "0"}}
        configured["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [cuda]}}
    return configured


def on_tensorrt(config: Config, plans: dict[str, str], default: str) -> Config:
    """Return the configuration of a classifier of TensorRT engines.

    Args:
        config: of :func:`classifier_config`.
        plans: compute capability, such as ``9.0`` -> file.
        default: file for every other compute capability.
    """
    return {
        **config,
        "backend": "tensorrt",
        "default_model_filename": default,
        **({"cc_model_filenames": plans} if plans else {}),
    }


def preprocess_config(
    name: str,
    scheduling: Scheduling,
    preprocessing: Preprocessing,
    *,
    images: tuple[str, str, tuple[int, int, int]],
    formats: tuple[str, ...],
    max_pixels: int,
) -> Config:
    """Return the configuration of the step from encoded images to the classifier's input; ``images`` as above."""
    tensor, dtype, shape = images
    encoded = {"data_type": "TYPE_STRING", "dims": [1]}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": scheduling.max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [{"name": IMAGE, **encoded}],
        "output": [
            {"name": tensor, "data_type": "TYPE_UINT8" if dtype == "uint8" else "TYPE_FP32", "dims": list(shape)}
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": scheduling.instances}],
        "dynamic_batching": _batching(scheduling),
        "model_warmup": _warm_up(IMAGE, encoded, scheduling.max_batch),
        "parameters": _parameters(
            {
                "preprocessing": json.dumps(preprocessing.to_json()),
                "formats": " ".join(formats),
                "max_pixels": max_pixels,
            }
        ),
    }


def ensemble_config(name: str, preprocess: Config, classifier: Config) -> Config:
    """Return the configuration of the ensemble of both; it has no queue of its own."""
    (image,), (pixels,) = preprocess["input"], preprocess["output"]
    (images,), (logits,) = classifier["input"], classifier["output"]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": classifier["max_batch_size"],
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [image],
        "output": [logits],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": preprocess["name"],
                    "model_version": -1,
                    "input_map": {image["name"]: image["name"]},
                    "output_map": {pixels["name"]: "preprocessed"},
                },
                {
                    "model_name": classifier["name"],
                    "model_version": -1,
                    "input_map": {images["name"]: "preprocessed"},
                    "output_map": {logits["name"]: logits["name"]},
                },
            ]
        },
    }


def _logits(name: str, classes: int) -> Config:
    return {"name": name, "data_type": "TYPE_FP32", "dims": [classes], "label_filename": LABELS}


def _batching(scheduling: Scheduling) -> Config:
    """Return a batcher with a limited queue; without a batcher, Triton has no queue to limit."""
    return {
        "max_queue_delay_microseconds": round(scheduling.max_delay_ms * 1000),
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round(scheduling.deadline_ms * 1000),
            "allow_timeout_override": True,
            "max_queue_size": scheduling.max_queue,
        },
    }


def _warm_up(tensor: str, kind: Config, max_batch: int) -> list[Config]:
    """Return the warm-up batches, the smallest and the largest, of a golden image."""
    return [
        {
            "name": f"batch-{batch}",
            "batch_size": batch,
            "count": 1,
            "inputs": {tensor: {**kind, "input_data_file": WARM_UP}},
        }
        for batch in sorted({1, max_batch})
    ]


def _parameters(values: dict[str, object]) -> Config:
    return {name: {"string_value": str(value)} for name, value in values.items()}
