"""A docker compose project: the server, Prometheus with alerts, Grafana with a dashboard."""

from __future__ import annotations

from regnet_deploy.bundle import MANIFEST
from regnet_deploy.bundle.reading import copy_name
from regnet_deploy.targets.packaged_variant import PackagedVariant
from regnet_deploy.targets.settings import DEFAULT_MAX_QUEUE, LINGER_S, DeploymentSettings
from regnet_deploy.targets.templates import dump_yaml, fill, load_yaml, read

#: Files that are copied unchanged.
_COPIED = (
    "prometheus/prometheus.yml",
    "grafana/provisioning/datasources/prometheus.yml",
    "grafana/provisioning/dashboards/regnet.yml",
    "grafana/dashboards/regnet.json",
)
#: Default limit of the 99th percentile of latency, ms; ``tune`` may have another one.
_P99_MS = 100.0
#: Folder of the copy of the bundle.
_BUNDLE = "bundle"
#: Default limit of processes and threads of the server.
_PIDS = 4096
#: Share of the queue at which an alert fires.
_NEARLY_FULL = 0.8


def compose_files(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, bytes]:
    """Return the project's files by their paths.

    Raises:
        MissingExtra: PyYAML is not installed.
        BundleError: a file of the bundle is damaged.
    """
    (project,) = load_yaml("compose/docker-compose.yaml")
    server = project["services"]["server"]
    server["image"] = _plain(settings.image)
    server["command"] = [_plain(word) for word in settings.serve_options(linger_s=LINGER_S)]
    server["stop_grace_period"] = f"{settings.grace_s()}s"
    server["pids_limit"] = _PIDS + (settings.threads or 1) * (settings.executors or 1)
    if settings.gpu:
        server["mem_limit"] = "${SERVER_MEMORY:-8g}"  # CUDA and its libraries need more host memory
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        server["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    head = "Made by `regnet-deploy package --compose`; README.md says how to run it."
    values = {
        "name": settings.name,
        "variant": subject.variant,
        "image": settings.image,
        "memory": "8 GB" if settings.gpu else "4 GB",
        "build_argument": " --build-arg RUNTIME=gpu" if settings.gpu else "",
    }
    return {
        "docker-compose.yaml": dump_yaml(project, head=head).encode(),
        "prometheus/alerts.yml": _alerts(subject, settings).encode(),
        **{name: read(f"compose/{name}").encode() for name in _COPIED},
        **_copy_of(subject),
        "README.md": fill("compose/README.md", values).encode(),
    }


def _copy_of(subject: PackagedVariant) -> dict[str, bytes]:
    """Return the files of the bundle, so that the folder can be moved to another machine."""
    bundle = subject.bundle
    files = {f"{_BUNDLE}/{stored.name}": bundle.read(logical) for logical, stored in bundle.files.items()}
    manifest = (bundle.path / MANIFEST).read_bytes()
    return {f"{_BUNDLE}/{MANIFEST}": manifest, f"{_BUNDLE}/{copy_name(manifest)}": manifest, **files}


def _alerts(subject: PackagedVariant, settings: DeploymentSettings) -> str:
    """Return the alerts with the limits of the server: the latency for which it was tuned, and its queue."""
    p99_ms = subject.tuned.p99_ms if subject.tuned else _P99_MS
    queue = _NEARLY_FULL * (settings.max_queue or DEFAULT_MAX_QUEUE)
    text = read("compose/prometheus/alerts.yml")
    for place, value in (("P99_SECONDS", p99_ms / 1000), ("P99_MS", p99_ms), ("QUEUE_IMAGES", queue)):
        text = text.replace(place, f"{value:g}")
    return text


def _plain(value: str) -> str:
    """Escape a value, so that compose does not substitute variables in it."""
    return value.replace("$", "$$")
