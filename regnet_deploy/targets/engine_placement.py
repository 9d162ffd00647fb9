"""Which of a variant's TensorRT engines goes to which GPU of a Triton server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regnet_deploy.engines.bundle_engines import StoredEngine
from regnet_deploy.errors import UsageError

DEFAULT_FILE = "model.plan"


@dataclass(frozen=True, eq=False)
class EnginePlacement:
    """Engines by the file that each becomes.

    Attributes:
        files: name in the version's folder -> engine.
        by_capability: compute capability -> name, where it is not the default's.
        max_batch: largest batch in images that all of them take.
        versions: of TensorRT that built them.
        version_compatible: whether every one can be run by later versions.
    """

    files: dict[str, StoredEngine]
    by_capability: dict[str, str]
    max_batch: int
    versions: tuple[str, ...]
    version_compatible: bool


def place_engines(variant: str, engines: Sequence[StoredEngine]) -> EnginePlacement:
    """Give each compute capability its engine, the latest of those that are for it; one for several is the default.

    Raises:
        UsageError: Triton does not run such engines, or not all of them in one server.
    """
    default: StoredEngine | None = None
    by_capability: dict[str, StoredEngine] = {}
    for engine in engines:
        identity = engine.identity
        if identity.runtime != "tensorrt":
            raise UsageError(
                f"variant {variant} is of {identity.runtime}, which Triton does not run: name one of TensorRT with "
                "--variant, or package it with --compose or --kserve"
            )
        if identity.options.min_batch > 1:
            raise UsageError(
                f"an engine of {variant} takes batches of {identity.options.min_batch} images or more, and Triton "
                "sends one alone: build it with a smallest batch of 1"
            )
        if identity.options.hardware_compatible == "ampere+":
            default = engine
        else:
            by_capability[str(identity.compute_capability)] = engine
    if default is None and len(by_capability) == 1:
        default = by_capability.popitem()[1]
    names = {capability: f"model-{capability}.plan" for capability in sorted(by_capability)}
    files = {names[capability]: engine for capability, engine in by_capability.items()}
    if default is not None:
        files[DEFAULT_FILE] = default
    versions = tuple(sorted({engine.identity.version for engine in files.values()}))
    compatible = all(engine.identity.options.version_compatible for engine in files.values())
    if len(versions) > 1 and not compatible:
        raise UsageError(
            f"the engines of {variant} were built by TensorRT {', '.join(versions)}, and a Triton server has one: "
            "build them with one version"
        )
    return EnginePlacement(
        files=files,
        by_capability=names,
        max_batch=min(engine.identity.options.max_batch for engine in files.values()),
        versions=versions,
        version_compatible=compatible,
    )
