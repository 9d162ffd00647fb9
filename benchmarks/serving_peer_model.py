"""The network as the handlers of other servers run it; needs NumPy, Pillow and ONNX Runtime alone.

The same ONNX files, session options and preprocessing as regnet-deploy's: a JPEG is decoded at the smallest of
libjpeg's scales that is enough, the part of it that the crop shows is resized, and the network normalizes the pixels.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

_JPEG = b"\xff\xd8"


class Model:
    """Two sessions: one for tensors, one for pixels.

    Args:
        facts: ``float32`` and ``uint8`` (ONNX files), ``input``, ``side``, ``resize``.
        threads: of each session.
    """

    def __init__(self, facts: dict[str, Any], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self._sessions = {
            kind: onnxruntime.InferenceSession(facts[kind], options, providers=["CPUExecutionProvider"])
            for kind in ("float32", "uint8")
        }
        self._input, self._side, self._resize = facts["input"], facts["side"], facts["resize"]

    def read(self, data: bytes) -> np.ndarray:
        """Return the tensor in raw bytes, ``(3, h, w)`` float32, or the pixels of a JPEG file, ``(h, w, 3)`` uint8."""
        if data[:2] == _JPEG:
            return self._pixels(data)
        return np.frombuffer(data, np.float32).reshape(3, self._side, self._side)

    def run(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the logits of images of one kind, ``(n, classes)``."""
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        return self._sessions[batch.dtype.name].run(None, {self._input: batch})[0]

    def answer(self, image: np.ndarray, logits: np.ndarray) -> bytes:
        """Return logits as bytes to a tensor, the five likeliest classes as JSON to a JPEG file."""
        if image.dtype == np.float32:
            return logits.tobytes()
        powers = np.exp(logits - logits.max())
        powers /= powers.sum()
        best = np.argsort(-powers)[:5]
        return json.dumps(
            {"predictions": [{"label": f"class {i}", "index": int(i), "probability": float(powers[i])} for i in best]}
        ).encode()

    def classify(self, data: bytes) -> bytes:
        """Do all of it for one request."""
        image = self.read(data)
        return self.answer(image, self.run([image])[0])

    def _pixels(self, data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        short = min(width, height)
        full = tuple(max(self._resize, round(side * self._resize / short)) for side in (width, height))
        image.draft("RGB", full)
        image = image.convert("RGB")
        left, top = (full[0] - self._side) // 2, (full[1] - self._side) // 2
        scale = round(width / image.width)
        across, down = width / full[0] / scale, height / full[1] / scale
        box = (left * across, top * down, (left + self._side) * across, (top + self._side) * down)
        return np.asarray(image.resize((self._side, self._side), Image.Resampling.BILINEAR, box=box))
