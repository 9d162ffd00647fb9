"""Encoded images to what the classifier takes: a model of Triton's Python backend; needs NumPy and Pillow.

The modules beside this file are those of regnet-deploy, so the pixels are the ones of training and of its own server.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parent))

from regnet_deploy.errors import DataError
from regnet_deploy.images.preprocessing import load_pixels, normalize


class TritonPythonModel:
    """Decodes, resizes, crops and, where the network does not do it itself, normalises."""

    def initialize(self, args):
        """Read the parameters of config.pbtxt."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        steps = {"scaled_decoding": False, "antialias": True, **json.loads(parameters["preprocessing"])}
        self._preprocessing = SimpleNamespace(**steps)
        self._formats = tuple(parameters["formats"].split())
        self._max_pixels = int(parameters["max_pixels"])
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]
        self._normalise = config["output"][0]["data_type"] != "TYPE_UINT8"

    def execute(self, requests):
        """Answer each request separately: an image that cannot be decoded fails only its own request."""
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        images = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().reshape(-1)
        try:
            pixels = np.stack([self._pixels(data, f"image {i}") for i, data in enumerate(images)])
        except DataError as error:
            mistake = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=mistake)
        tensor = normalize(pixels, self._preprocessing) if self._normalise else pixels
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, tensor)])

    def _pixels(self, data, name):
        return load_pixels(bytes(data), self._preprocessing, name, self._max_pixels, self._formats)
