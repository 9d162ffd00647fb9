"""A Triton model repository: the classifier, and an ensemble that takes encoded images."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import regnet_deploy
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError, require
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.targets.engine_placement import DEFAULT_FILE, EnginePlacement, place_engines
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

#: The folder to give to ``tritonserver --model-repository``.
REPOSITORY = "model_repository"
#: Triton's release of 2026-09, of which the container is named in the instructions.
TRITON_RELEASE = "26.09"

#: Width times height that is decoded for whoever can reach the server; the same as ``regnet-deploy serve`` has.
MAX_PIXELS = 25_000_000

#: Instances of the preprocessing where nobody says how many: of the machine that will run it nothing is known here.
DEFAULT_DECODERS = 2
#: MiB of shared memory for an image as it is sent; larger files take the room of smaller ones.
_ENCODED_MIB = 1
#: Shared memory is asked for in steps of so many MiB: Docker's own default.
_STEP_MIB = 64

#: Modules that stand between a file and the network, copied as they are: so the pixels cannot be others than in
#: training and in ``serve``. They need NumPy and Pillow.
_MODULES = ("__init__.py", "errors.py", "images/__init__.py", "images/decode.py", "images/preprocessing.py")


@dataclass(frozen=True)
class Names:
    """What the three models are called."""

    classifier: str

    @property
    def preprocess(self) -> str:
        """Of the step from encoded images to tensors."""
        return f"{self.classifier}_preprocess"

    @property
    def ensemble(self) -> str:
        """Of both steps together."""
        return f"{self.classifier}_image"


def triton_files(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, bytes]:
    """Return the files of a Triton deployment by their paths.

    Raises:
        MissingExtra: protobuf, Pillow or safetensors is not installed.
        BundleError: a file of the bundle is damaged.
        UsageError: Triton does not run the variant, or the largest batch is larger than its engines take.
    """
    for module in ("google.protobuf.message", "safetensors.numpy", "PIL.Image"):
        require(module, EXTRA)  # what is called from here would name the extra of the server
    plans = place_engines(subject.variant, subject.engines) if subject.engines else None
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
        **_model(ensemble, {LABELS: labels}, {".keep": b""}),  # an ensemble's version is an empty folder
    }
    made = {f"{REPOSITORY}/{name}": data for name, data in files.items()}
    made["Dockerfile"] = fill("triton/Dockerfile", {"release": TRITON_RELEASE}).encode()
    shared_mib = shared_memory_mib(subject, decoders, scheduling.max_batch)
    made["README.md"] = _readme(subject, names, scheduling, plans, gpu, decoders, shared_mib).encode()
    return made


def shared_memory_mib(subject: PackagedVariant, decoders: int, max_batch: int) -> int:
    """Return the MiB of /dev/shm in which the instances of the preprocessing hand batches over.

    Each has room for a batch of images as they are sent and for two of tensors: one that is being written and one that
    has not been fetched. What it once took it does not give back.

    Args:
        subject: whose images they are.
        decoders: instances.
        max_batch: images in a batch.
    """
    tensor_mib = math.prod(subject.image) * np.dtype(subject.dtype).itemsize / 2**20
    needed = decoders * max_batch * (2 * tensor_mib + _ENCODED_MIB)
    return _STEP_MIB * math.ceil(needed / _STEP_MIB)


def _scheduling(
    subject: PackagedVariant, settings: DeploymentSettings, plans: EnginePlacement | None
) -> tuple[Scheduling, int]:
    """Return how requests run, and the threads of one inference: as asked for, else as ``tune`` found, else the cores'.

    Raises:
        UsageError: the batch asked for is larger than the engines take.
    """
    tuned = subject.tuned
    most = plans.max_batch if plans else None
    batch = settings.max_batch or min(tuned.batch if tuned else DEFAULT_MAX_BATCH, most or DEFAULT_MAX_BATCH)
    if most is not None and batch > most:
        raise UsageError(f"--batch {batch} is more than the {most} images that the engines of {subject.variant} take")
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
    """Return the files of one model, ``version`` those of its version 1."""
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
    require("PIL.Image", EXTRA).fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _element(data: bytes) -> bytes:
    """Return one element of a tensor of type BYTES as it is sent."""
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
    backend, flags, note = "onnxruntime", "", ""
    if plans is not None:
        backend = "tensorrt"
        note = (
            f"\nThe engines were built by TensorRT {', '.join(plans.versions)}: take the Triton release that has it "
            "(NVIDIA's support matrix says which) as `FROM` in the Dockerfile.\n"
        )
        if plans.version_compatible:
            flags = " --backend-config=tensorrt,version-compatible=true"
            note += "They are version-compatible, so a later TensorRT runs them too.\n"
    return fill(
        "triton/README.md",
        {
            "classifier": names.classifier,
            "preprocess": names.preprocess,
            "ensemble": names.ensemble,
            "variant": subject.variant,
            "backend": backend,
            "gpus": " --gpus all" if gpu else "",
            "flags": flags,
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
