"""The network of tests/conftest.py in NumPy, as a model of Triton's Python backend: conv, relu, average, gemm.

It stands in for a backend that the Triton of the nvidia-pytriton wheel does not have.
"""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def logits_of(images, weights):
    """Return the logits ``(n, classes)`` of ``(n, 3, h, w)`` float32, or of ``(n, h, w, 3)`` uint8."""
    if images.dtype == np.uint8:
        images = images.transpose(0, 3, 1, 2).astype(np.float32) * weights["scale"] + weights["shift"]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    maps = np.einsum("nchwij,ocij->nohw", windows, weights["w"], optimize=True) + weights["b"][None, :, None, None]
    pooled = np.maximum(maps, 0).mean(axis=(2, 3))
    return (pooled @ weights["fc"] + weights["fc_b"]).astype(np.float32)


class TritonPythonModel:
    """Answers as the ONNX file does, after the milliseconds that the parameter ``delay_ms`` says."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._delay_s = float(config["parameters"]["delay_ms"]["string_value"]) / 1000
        folder = os.path.join(args["model_repository"], args["model_version"])
        with np.load(os.path.join(folder, "weights.npz")) as stored:
            self._weights = {name: stored[name] for name in stored.files}

    def execute(self, requests):
        time.sleep(self._delay_s)
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            logits = logits_of(images, self._weights)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self._output, logits)]))
        return responses
