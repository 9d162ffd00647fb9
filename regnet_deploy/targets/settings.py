"""Settings of a deployment, validated."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError

#: Names that need no quoting in a URL, a path or a manifest.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
#: Registry, path, tag and digest of a container image, without characters that a shell or YAML interprets.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}\Z")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_URI = re.compile(r"[a-z][a-z0-9+.-]{0,15}://[^\s\"'`$\\]{1,1024}\Z")

DEFAULT_NAME = "regnet"
DEFAULT_IMAGE = "regnet-deploy"
#: The image that the README of the Triton package builds: Triton's image with Pillow, for preprocessing.
DEFAULT_TRITON_IMAGE = "regnet-triton"
#: Defaults of targets with their own queue; the same as those of ``serve``.
DEFAULT_MAX_BATCH = 32
DEFAULT_MAX_QUEUE = 128
DEFAULT_DEADLINE_MS = 30_000.0
#: Seconds for which a server still answers after SIGTERM, until load balancers send it no more requests.
LINGER_S = 5
#: The same where clients use gRPC: a connection lives for two fifths of it, so that each is replaced in time.
GRPC_LINGER_S = 20
#: Seconds that the server needs beyond those of its requests: to answer that a deadline passed, and to stop.
_DRAIN_RESERVE_S, _STOP_S = 5, 10


@dataclass(frozen=True)
class DeploymentSettings:
    """Settings of a deployment; None means the default of the target.

    Attributes:
        name: of the model in the protocol.
        variant: of the bundle; None is the fastest proved one.
        gpu: run it on an NVIDIA GPU.
        image: container image of ``regnet-deploy serve``.
        triton_image: container image of Triton with Pillow, on KServe.
        storage: URI of the bundle for KServe, such as ``pvc://claim/path``; None if it is in the image at ``/bundle``.
        replicas: number of servers.
        threads: number of CPU threads of one inference.
        executors: number of concurrent inferences.
        decoders: number of processes that decode images.
        max_batch: maximum number of images in a batch.
        max_queue: maximum number of waiting images (in Triton: requests); more are rejected.
        deadline_ms: maximum time that a request waits, ms.
        max_delay_ms: maximum time that a batch waits for more images, ms.
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
        """Check that names, images and URIs contain no characters with another meaning.

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

    @property
    def drain_s(self) -> int:
        """Seconds in which every request that was accepted is answered: its deadline passes before."""
        return math.ceil((self.deadline_ms or DEFAULT_DEADLINE_MS) / 1000) + _DRAIN_RESERVE_S

    def grace_s(self, linger_s: int = LINGER_S) -> int:
        """Return the seconds from SIGTERM to the end of a server that lingers: what is to wait before SIGKILL."""
        return linger_s + self.drain_s + _STOP_S

    def serve_options(self, *, linger_s: int | None = None) -> list[str]:
        """Return the options of ``regnet-deploy serve BUNDLE`` that the user has set.

        The server takes the others from the result of ``tune`` in the bundle.

        Args:
            linger_s: seconds to answer after SIGTERM; None: the server's default, and that of draining.
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
        return words if linger_s is None else [*words, "--linger", str(linger_s), "--drain", str(self.drain_s)]


def _check_storage(storage: str) -> None:
    if not _URI.match(storage):
        raise UsageError(
            f"--storage {storage!r} is not a URI such as pvc://claim/path, s3://bucket/path or oci://image"
        )
    scheme, _, rest = storage.partition("://")
    claim = rest.split("/")[0]
    if scheme == "pvc" and not _CLAIM.match(claim):
        raise UsageError(f"--storage {storage!r}: {claim!r} is not the name of a volume claim, as in pvc://claim/path")
