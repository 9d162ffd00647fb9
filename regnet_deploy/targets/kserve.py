"""KServe manifests: the server as a custom predictor over HTTP or gRPC, and a Triton repository on KServe's runtime."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.targets.packaged_variant import PackagedVariant
from regnet_deploy.targets.settings import DEFAULT_MAX_BATCH, GRPC_LINGER_S, LINGER_S, DeploymentSettings
from regnet_deploy.targets.templates import dump_yaml, fill, load_yaml
from regnet_deploy.targets.triton import DEFAULT_DECODERS, REPOSITORY, place_for_triton, shared_memory_mib

#: Folder in which KServe mounts the storage of STORAGE_URI.
MOUNT = "/mnt/models"
GRPC_PORT = 8001
#: Default storage of the model repository.
DEFAULT_CLAIM = "pvc://models"
#: Memory of Triton without its shared memory, MiB.
_TRITON_MIB = 4096

KubernetesManifest = dict[str, Any]


def kserve_files(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, bytes]:
    """Return the manifests and their README by name.

    Raises:
        MissingExtra: PyYAML is not installed.
    """
    http, grpc = _server(subject, settings, LINGER_S), _over_grpc(_server(subject, settings, GRPC_LINGER_S))
    manifests = {"inferenceservice.yaml": http, "inferenceservice-grpc.yaml": grpc}
    try:
        place_for_triton(subject)
    except UsageError as error:
        row = ""
        about_triton = f"There is no manifest for Triton: {error}."
    else:
        row = f"\n| `inferenceservice-triton.yaml` | Triton Inference Server from the image `{settings.triton_image}` |"
        manifests["inferenceservice-triton.yaml"] = triton = _triton(subject, settings)
        about_triton = fill(
            "kserve/triton.md",
            {
                "bundle": subject.bundle.argument,
                "flags": " --gpu" if settings.gpu else "",
                "image": settings.triton_image,
                "storage": triton["spec"]["predictor"]["model"]["storageUri"],
                "repository": REPOSITORY,
            },
        ).rstrip()
    head = "Made by `regnet-deploy package --kserve`; README.md says how to apply it."
    files = {name: dump_yaml(manifest, head=head).encode() for name, manifest in manifests.items()}
    storage = settings.storage or "the image, at `/bundle`"
    values = {
        "name": http["metadata"]["name"],
        "model": settings.name,
        "variant": subject.variant,
        "image": settings.image,
        "storage": f"`{storage}`" if settings.storage else storage,
        "from_image": shlex.quote(f"FROM {settings.image}"),
        "copy_bundle": shlex.quote(f'COPY ["{subject.bundle.path.resolve().name}", "/bundle"]'),
        "triton": about_triton,
        "triton_row": row,
    }
    files["README.md"] = fill("kserve/README.md", values).encode()
    return files


def service_name(name: str, suffix: str = "") -> str:
    """Return a valid Kubernetes service name: letters, digits and '-', 40 at most, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"regnet-{plain}".rstrip("-")
    return plain[: 40 - len(suffix)].rstrip("-") + suffix


def _server(subject: PackagedVariant, settings: DeploymentSettings, linger_s: int) -> KubernetesManifest:
    (manifest,) = load_yaml("kserve/inferenceservice.yaml")
    manifest["metadata"]["name"] = service_name(settings.name)
    predictor = manifest["spec"]["predictor"]
    predictor["minReplicas"] = predictor["maxReplicas"] = settings.replicas
    (container,) = predictor["containers"]
    container["image"] = settings.image
    container["args"] = settings.serve_options(linger_s=linger_s)
    predictor["terminationGracePeriodSeconds"] = settings.grace_s(linger_s)
    if settings.storage is not None:
        # The entrypoint of the image serves /bundle; KServe stores the bundle in another folder.
        container["command"] = ["regnet-deploy", "serve", MOUNT, "--host", "0.0.0.0"]
        container["env"].append({"name": "STORAGE_URI", "value": settings.storage})
    _set_resources(container["resources"], subject, settings)
    return dict(manifest)


def _over_grpc(http: KubernetesManifest) -> KubernetesManifest:
    """Return the manifest with gRPC as the first port of the service, to which KServe routes."""
    manifest = copy.deepcopy(http)
    name = manifest["metadata"]["name"]
    manifest["metadata"]["name"] = service_name(name, "-grpc")
    (container,) = manifest["spec"]["predictor"]["containers"]
    container["args"] += ["--grpc-port", str(GRPC_PORT)]
    for port in container["ports"]:
        if port["name"] == "http1":
            port["name"] = "probes"
    container["ports"].insert(0, {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"})
    return manifest


def _triton(subject: PackagedVariant, settings: DeploymentSettings) -> KubernetesManifest:
    (manifest,) = load_yaml("kserve/inferenceservice-triton.yaml")
    manifest["metadata"]["name"] = service_name(settings.name, "-triton")
    predictor = manifest["spec"]["predictor"]
    predictor["minReplicas"] = predictor["maxReplicas"] = settings.replicas
    model = predictor["model"]
    model["image"] = settings.triton_image
    model["args"].append(f"--exit-timeout-secs={settings.drain_s}")
    predictor["terminationGracePeriodSeconds"] = settings.grace_s()  # its preStop lingers
    model["storageUri"] = f"{(settings.storage or DEFAULT_CLAIM).rstrip('/')}/{REPOSITORY}"
    batch = settings.max_batch or (subject.tuned.settings.batch if subject.tuned else DEFAULT_MAX_BATCH)
    shared_mib = shared_memory_mib(subject, settings.decoders or DEFAULT_DECODERS, batch)
    for volume in predictor["volumes"]:
        if volume["name"] == "shared-memory":
            volume["emptyDir"]["sizeLimit"] = f"{shared_mib}Mi"
    model["resources"]["limits"]["memory"] = f"{_TRITON_MIB + shared_mib}Mi"  # the volume counts as memory
    if settings.gpu:
        model["resources"]["limits"]["nvidia.com/gpu"] = "1"
    return dict(manifest)


def _set_resources(resources: KubernetesManifest, subject: PackagedVariant, settings: DeploymentSettings) -> None:
    """Set the resources of the server: as many cores as it uses for inference."""
    tuned = subject.tuned.settings if subject.tuned else None
    threads = settings.threads or (tuned.threads if tuned else None)
    if threads:
        cores = threads * (settings.executors or (tuned.executors if tuned else 1))
        resources["requests"]["cpu"] = resources["limits"]["cpu"] = str(cores)
    if settings.gpu:
        resources["limits"]["nvidia.com/gpu"] = "1"
