"""Settings of a deployment, validated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError

#: Names that stand in a URL, a folder and a manifest as they are.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
#: Registry, path, tag and digest of a container image; nothing that a shell or YAML reads as something else.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}\Z")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,15}://[^\s\"'`$\\]{1,1024}\Z")

DEFAULT_NAME = "regnet"
DEFAULT_IMAGE = "regnet-deploy"
#: What the instructions of the Triton package build: Triton's own image lacks Pillow, which its preprocessing needs.
DEFAULT_TRITON_IMAGE = "regnet-triton"
#: Of a target that has a queue of its own; what ``serve`` has by default.
DEFAULT_MAX_BATCH = 32
DEFAULT_MAX_QUEUE = 128
DEFAULT_DEADLINE_MS = 30_000.0
#: Seconds in which a server that is to end still answers: until nothing in front sends it requests any more.
LINGER_S = 5


@dataclass(frozen=True)
class DeploymentSettings:
    """How the model is to be run; None leaves the choice to what runs it.

    Attributes:
        name: of the model in the protocol.
        variant: of the bundle; None is the fastest that is proved.
        gpu: run it on an NVIDIA GPU.
        image: container image of ``regnet-deploy serve``.
        triton_image: container image of Triton with Pillow, on KServe.
        storage: where KServe finds the bundle: ``pvc://claim/path`` or another URI; None: it is in the image at
            ``/bundle``.
        replicas: copies of the server.
        threads: of the CPU for one inference.
        executors: inferences at a time.
        decoders: processes that decode images.
        max_batch: images in one batch.
        max_queue: images, in Triton requests, that wait; more are refused.
        deadline_ms: milliseconds that a request waits at most.
        max_delay_ms: milliseconds that a batch may wait to become fuller.
    """

    name: str = DEFAULT_NAME
    variant: str | None = None
    gpu: bool = False
    image: str = DEFAULT_IMAGE
    triton_image: str = DEFAULT_TRITON_IMAGE
    storage: str | None = None
    replicas: int = 1
    threads: int | None = None
    executors: int | None = None
    decoders: int | None = None
    max_batch: int | None = None
    max_queue: int | None = None
    deadline_ms: float | None = None
    max_delay_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse names that something on the way would read as something else.

        Raises:
            UsageError: one line with the option, the value and what is allowed.
        """
        if not _MODEL_NAME.match(self.name):
            raise UsageError(
                f"--name {self.name!r} must be letters, digits, '.', '_' or '-', 128 at most, not beginning with '.'"
            )
        for option, image in (("--image", self.image), ("--triton-image", self.triton_image)):
            if not _IMAGE.match(image):
                raise UsageError(f"{option} {image!r} is not a container image such as registry.example/regnet:1.0")
        if self.storage is not None:
            _check_storage(self.storage)

    def serve_options(self, *, linger: bool = False) -> list[str]:
        """Return the words behind ``regnet-deploy serve BUNDLE``: only what the user said.

        What is not said here is taken by the server from the bundle, where ``tune`` has left its findings.

        Args:
            linger: have it answer for :data:`LINGER_S` after SIGTERM.
        """
        words = ["--name", self.name]
        given: dict[str, Any] = {
            "--variant": self.variant,
            "--threads": self.threads,
            "--executors": self.executors,
            "--decoders": self.decoders,
            "--batch": self.max_batch,
            "--max-queue": self.max_queue,
            "--deadline": self.deadline_ms,
            "--max-delay": self.max_delay_ms,
        }
        for option, value in given.items():
            if value is not None:
                words += [option, f"{value:.15g}" if isinstance(value, float) else str(value)]
        return [*words, "--linger", str(LINGER_S)] if linger else words


def _check_storage(storage: str) -> None:
    if not _URI.match(storage):
        raise UsageError(
            f"--storage {storage!r} is not a URI such as pvc://claim/path, s3://bucket/path or oci://image"
        )
    scheme, _, rest = storage.partition("://")
    claim = rest.split("/")[0]
    if scheme == "pvc" and not _CLAIM.match(claim):
        raise UsageError(f"--storage {storage!r}: {claim!r} is not the name of a volume claim, as in pvc://claim/path")
