"""Input and output of a served model, and how the protocol describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regnet_deploy.serving.batching import DEFAULT_PRIORITY, PRIORITIES, Batching
from regnet_deploy.serving.version_policy import ALL_VERSIONS, VersionPolicy

_DATATYPES = {"float32": "FP32", "uint8": "UINT8"}


@dataclass(frozen=True)
class ModelInterface:
    """Input and output of a served model.

    Attributes:
        model: name under which it is served.
        version: of the model, an integer above 0.
        input: name of the input tensor.
        dtype: ``float32`` or ``uint8``.
        image: shape of one image: ``(channels, h, w)`` or ``(h, w, channels)``.
        output: name of the output tensor.
        labels: class names in the order of the logits.
        max_batch: limit of images in a request.
        policy: which versions of the model are served.
    """

    model: str
    version: str
    input: str
    dtype: str
    image: tuple[int, int, int]
    output: str
    labels: tuple[str, ...]
    max_batch: int
    policy: VersionPolicy = ALL_VERSIONS

    @property
    def datatype(self) -> str:
        """The input's type, as the protocol names it."""
        return _DATATYPES[self.dtype]

    def metadata(self, platform: str, versions: list[str] | None = None) -> dict[str, Any]:
        """Return the body of a model metadata response; ``versions`` are all that are served, by default this one."""
        return {
            "name": self.model,
            "versions": versions or [self.version],
            "platform": platform,
            "inputs": [{"name": self.input, "datatype": self.datatype, "shape": [-1, *self.image]}],
            "outputs": [{"name": self.output, "datatype": "FP32", "shape": [-1, len(self.labels)]}],
        }

    def config(self, platform: str, device: str, batching: Batching, deadline_s: float) -> dict[str, Any]:
        """Return the body of a model configuration response: Triton's message ``ModelConfig`` as JSON."""
        queue = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": int(deadline_s * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue,
        }
        return {
            "name": self.model,
            "platform": platform,
            "backend": platform.split("_")[0],
            "version_policy": self.policy.to_json(),
            "max_batch_size": self.max_batch,
            "input": [
                {
                    "name": self.input,
                    "data_type": f"TYPE_{self.datatype}",
                    "format": "FORMAT_NHWC" if self.dtype == "uint8" else "FORMAT_NCHW",
                    "dims": list(self.image),
                }
            ],
            "output": [{"name": self.output, "data_type": "TYPE_FP32", "dims": [len(self.labels)]}],
            "instance_group": [
                {
                    "name": self.model,
                    "kind": "KIND_CPU" if device == "cpu" else "KIND_GPU",
                    "count": batching.executors,
                }
            ],
            "dynamic_batching": {
                "preferred_batch_size": [],
                "max_queue_delay_microseconds": int(batching.max_delay_s * 1e6),
                "preserve_ordering": False,
                "priority_levels": PRIORITIES,
                "default_priority_level": DEFAULT_PRIORITY,
                "default_queue_policy": queue,
            },
        }
