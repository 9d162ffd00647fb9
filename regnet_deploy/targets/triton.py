"""A Triton model repository: the classifier, and an ensemble for encoded images."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import regnet_deploy
from regnet_deploy.cpu import available_cores
from regnet_deploy.engines.bundle_engines import StoredEngine
from regnet_deploy.errors import UsageError, require
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.preprocessing import image_of, normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import find_variant
from regnet_deploy.targets.packaged_variant import PackagedVariant
from regnet_deploy.targets.settings import DEFAULT_DEADLINE_MS, DEFAULT_MAX_BATCH, DEFAULT_MAX_QUEUE, DeploymentSettings
from regnet_deploy.targets.templates import EXTRA, fill, read
from regnet_deploy.targets.triton_config import (
    LABELS,
    WARM_UP,
    Config,
    Scheduling,
    classifier_config,
    config_text,
    ensemble_config,
    on_onnxruntime,
    on_tensorrt,
    preprocess_config,
)

#: Folder for ``tritonserver --model-repository``.
REPOSITORY = "model_repository"
#: Triton's release of 2026-09; the README names its container.
TRITON_RELEASE = "26.09"
#: Its release of ONNX Runtime: ``ort_version`` in ``build.py`` of github.com/triton-inference-server/server.
TRITON_ONNXRUNTIME = "1.27"

#: Maximum number of pixels of an image that is decoded; the same as that of ``regnet-deploy serve``.
MAX_PIXELS = 25_000_000

#: Default number of preprocessing instances; the machine that will run them is not known here.
DEFAULT_DECODERS = 2
#: Shared memory for one encoded image, MiB; larger files use the space of smaller ones.
_ENCODED_MIB = 1
#: Shared memory is rounded up to a multiple of this, MiB: Docker's default.
_STEP_MIB = 64

#: Modules of the preprocessing, copied unchanged, so that the pixels are the same as in training and in ``serve``. They
#: need NumPy and Pillow.
_MODULES = ("__init__.py", "errors.py", "images/__init__.py", "images/decode.py", "images/preprocessing.py")


@dataclass(frozen=True)
class Names:
    """Names of the three models."""

    classifier: str

    @property
    def preprocess(self) -> str:
        """Name of the step from encoded images to tensors."""
        return f"{self.classifier}_preprocess"

    @property
    def ensemble(self) -> str:
        """Name of both steps together."""
        return f"{self.classifier}_image"


def triton_files(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, bytes]:
    """Return the files of a Triton deployment by their paths.

    Raises:
        MissingExtra: protobuf, Pillow or safetensors is not installed.
        BundleError: a file of the bundle is damaged.
        UsageError: Triton does not run the variant, or the maximum batch is larger than that of its engines.
    """
    plans = place_for_triton(subject)
    for module in ("google.protobuf.message", "safetensors.numpy", "PIL.Image"):
        require(module, EXTRA)  # the functions below would name the extra of the server
    scheduling, threads = _scheduling(subject, settings, plans)
    names = Names(settings.name)
    images = (subject.input_name, subject.dtype, subject.image)
    gpu = settings.gpu or plans is not None
    classifier = classifier_config(
        names.classifier, scheduling, images=images, logits=(subject.output_name, len(subject.labels)), gpu=gpu
    )
    if plans is None:
        classifier = on_onnxruntime(classifier, gpu=gpu, threads=threads)
        networks = {"model.onnx": subject.bundle.read(subject.onnx)}
    else:
        default = DEFAULT_FILE if DEFAULT_FILE in plans.files else next(iter(plans.files))
        classifier = on_tensorrt(classifier, plans.by_capability, default)
        networks = {name: subject.bundle.read(engine.file) for name, engine in plans.files.items()}
    decoders = settings.decoders or DEFAULT_DECODERS
    decoding = replace(scheduling, instances=decoders, max_delay_ms=0.0)
    preprocess = preprocess_config(
        names.preprocess, decoding, subject.preprocessing, images=images, formats=WEB_FORMATS, max_pixels=MAX_PIXELS
    )
    ensemble = ensemble_config(names.ensemble, preprocess, classifier)
    labels = "".join(f"{' '.join(label.split())}\n" for label in subject.labels).encode()
    image = load_golden(subject.bundle).images[0]
    tensor = image if subject.dtype == "uint8" else normalize(image[None], subject.preprocessing)[0]
    files = {
        **_model(classifier, {LABELS: labels, f"warmup/{WARM_UP}": np.ascontiguousarray(tensor).tobytes()}, networks),
        **_model(preprocess, {f"warmup/{WARM_UP}": _element(_png(image))}, _preprocess_model()),
        **_model(ensemble, {LABELS: labels}, {".keep": b""}),  # the version folder of an ensemble is empty
    }
    package = {f"{REPOSITORY}/{name}": data for name, data in files.items()}
    package["Dockerfile"] = fill("triton/Dockerfile", {"release": TRITON_RELEASE}).encode()
    shared_mib = shared_memory_mib(subject, decoders, scheduling.max_batch)
    package["README.md"] = _readme(subject, names, scheduling, plans, gpu, decoders, shared_mib).encode()
    return package


def place_for_triton(subject: PackagedVariant) -> EnginePlacement | None:
    """Return how the engines of a variant are placed in a repository, or None for an ONNX variant.

    To disable the graph optimizations (``optimization.graph.level: 2``) would not be enough for a file for TensorRT:
    Triton's ONNX Runtime also truncates where such a file quantizes FP16 to INT8, which ONNX Runtime has not done since
    1.30.

    Raises:
        UsageError: Triton does not run the variant as it was proved.
    """
    if subject.engines:
        return place_engines(subject.variant, subject.engines)
    if subject.exact:
        precision = find_variant(subject.bundle, subject.variant).precision
        raise UsageError(
            f"variant {subject.variant} is for TensorRT engines, and ONNX Runtime {TRITON_ONNXRUNTIME} of Triton "
            f"{TRITON_RELEASE} does not compute it as it was proved: package an engine (--variant trt-{precision} "
            "--gpu) or another variant, or use --compose, whose server checks its answers"
        )
    return None


def shared_memory_mib(subject: PackagedVariant, decoders: int, max_batch: int) -> int:
    """Return the size of /dev/shm for the batches of the preprocessing instances, MiB.

    Each instance needs a batch of encoded images and two batches of tensors: one being written and one not yet fetched.
    It does not release memory.

    Args:
        subject: the variant, whose images have a fixed size.
        decoders: number of instances.
        max_batch: images in a batch.
    """
    tensor_mib = math.prod(subject.image) * np.dtype(subject.dtype).itemsize / 2**20
    needed = decoders * max_batch * (2 * tensor_mib + _ENCODED_MIB)
    return _STEP_MIB * math.ceil(needed / _STEP_MIB)


def _scheduling(
    subject: PackagedVariant, settings: DeploymentSettings, plans: EnginePlacement | None
) -> tuple[Scheduling, int]:
    """Return the scheduling and the threads of an inference: as requested, else from ``tune``, else from the cores.

    Raises:
        UsageError: the requested batch is larger than that of the engines.
    """
    tuned = subject.tuned.settings if subject.tuned else None
    most = plans.max_batch if plans else None
    batch = settings.max_batch or min(tuned.batch if tuned else DEFAULT_MAX_BATCH, most or DEFAULT_MAX_BATCH)
    if most is not None and batch > most:
        raise UsageError(
            f"--batch {batch} is larger than the maximum batch of the engines of {subject.variant}, {most} images"
        )
    delay = settings.max_delay_ms if settings.max_delay_ms is not None else tuned.max_delay_ms if tuned else 0.0
    scheduling = Scheduling(
        max_batch=batch,
        instances=settings.executors or (tuned.executors if tuned else 1),
        max_queue=settings.max_queue or DEFAULT_MAX_QUEUE,
        deadline_ms=settings.deadline_ms or DEFAULT_DEADLINE_MS,
        max_delay_ms=delay,
    )
    threads = tuned.threads if tuned else max(1, available_cores() // scheduling.instances)
    return scheduling, settings.threads or threads


def _model(config: Config, files: dict[str, bytes], version: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of one model; ``version`` has those of its version 1."""
    name = config["name"]
    return {
        f"{name}/config.pbtxt": config_text(config).encode(),
        **{f"{name}/{file}": data for file, data in files.items()},
        **{f"{name}/1/{file}": data for file, data in version.items()},
    }


def _preprocess_model() -> dict[str, bytes]:
    package = Path(regnet_deploy.__file__).parent
    modules = {f"regnet_deploy/{module}": (package / module).read_bytes() for module in _MODULES}
    return {"model.py": read("triton/model.py").encode(), **modules}


def _png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    image_of(image).save(stream, "PNG")
    return stream.getvalue()


def _element(data: bytes) -> bytes:
    """Return one element of a tensor of type BYTES in the wire format."""
    return struct.pack("<I", len(data)) + data


def _readme(
    subject: PackagedVariant,
    names: Names,
    scheduling: Scheduling,
    plans: EnginePlacement | None,
    gpu: bool,
    decoders: int,
    shared_mib: int,
) -> str:
    backend, note = "onnxruntime", ""
    if plans is not None:
        backend = "tensorrt"
        note = (
            f"\nThe engines were built by TensorRT {plans.version}: use the Triton release that has it "
            "(see NVIDIA's support matrix) as `FROM` in the Dockerfile.\n"
        )
        if plans.version_compatible:
            note += (
                "They are version-compatible, but need the lean runtime of their own version in a later TensorRT, "
                "and Triton does not load one.\n"
            )
    elif subject.weight_bits == 8:
        note = (
            "\nThe weights have 8 bits: run the network on CPUs that add products of 8 bits in 32 (x86 with VNNI, ARM "
            "with dot products).\nOn others their sums saturate; export it again there.\n"
        )
    return fill(
        "triton/README.md",
        {
            "classifier": names.classifier,
            "preprocess": names.preprocess,
            "ensemble": names.ensemble,
            "variant": subject.variant,
            "backend": backend,
            "gpus": " --gpus all" if gpu else "",
            "note": note,
            "input": subject.input_name,
            "output": subject.output_name,
            "dtype": "UINT8" if subject.dtype == "uint8" else "FP32",
            "shape": ", ".join(map(str, subject.image)),
            "max_batch": str(scheduling.max_batch),
            "decoders": str(decoders),
            "shared_mib": str(shared_mib),
            "release": TRITON_RELEASE,
        },
    )


DEFAULT_FILE = "model.plan"


@dataclass(frozen=True, eq=False)
class EnginePlacement:
    """The engines of a repository and their file names.

    Attributes:
        files: file name in the folder of the version -> engine.
        by_capability: compute capability -> file name, if it is not that of the default engine.
        max_batch: maximum batch that all engines support, images.
        version: of TensorRT that built them.
        version_compatible: whether any of them is version-compatible. The lean runtime is not part of the plan, and
            Triton does not load one, so this does not help there.
    """

    files: dict[str, StoredEngine]
    by_capability: dict[str, str]
    max_batch: int
    version: str
    version_compatible: bool


def place_engines(variant: str, engines: Sequence[StoredEngine]) -> EnginePlacement:
    """Return the latest engine of each compute capability; an engine for several of them is the default.

    Raises:
        UsageError: Triton does not run such engines, or not all of them in one server.
    """
    default: StoredEngine | None = None
    by_capability: dict[str, StoredEngine] = {}
    for engine in engines:
        identity = engine.identity
        if identity.runtime != "tensorrt":
            raise UsageError(
                f"variant {variant} is of {identity.runtime}, which Triton does not run: choose one of TensorRT with "
                "--variant, or package it with --compose or --kserve"
            )
        if identity.options.min_batch > 1:
            raise UsageError(
                f"an engine of {variant} takes batches of {identity.options.min_batch} images or more, and Triton "
                "also sends single images: build it with a minimum batch of 1"
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
    if len(versions) > 1:
        raise UsageError(
            f"the engines of {variant} were built by TensorRT {', '.join(versions)}, and a Triton server has only "
            "one: build them with one version"
        )
    return EnginePlacement(
        files=files,
        by_capability=names,
        max_batch=min(engine.identity.options.max_batch for engine in files.values()),
        version=versions[0],
        version_compatible=any(engine.identity.options.version_compatible for engine in files.values()),
    )
