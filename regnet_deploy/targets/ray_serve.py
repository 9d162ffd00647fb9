"""A Ray Serve application: the server's ASGI application in each replica."""

from __future__ import annotations

from typing import Any

from regnet_deploy.cpu import available_cores
from regnet_deploy.targets.packaged_variant import PackagedVariant
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.templates import dump_yaml, fill, load_yaml, read


def ray_files(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, bytes]:
    """Return the application, its configuration and its README by name.

    Raises:
        MissingExtra: PyYAML is not installed.
    """
    (config,) = load_yaml("ray/config.yaml")
    (application,) = config["applications"]
    application["name"] = settings.name
    application["args"] = _arguments(subject, settings)
    (deployment,) = application["deployments"]
    deployment["num_replicas"] = settings.replicas
    deployment["graceful_shutdown_timeout_s"] = settings.drain_s
    options = application["args"]["options"]
    batch, executors, threads = options.get("batch", 8), options.get("executors", 1), options["threads"]
    deployment["max_ongoing_requests"] = max(deployment["max_ongoing_requests"], 2 * batch * executors)
    if settings.max_queue is not None:
        deployment["max_queued_requests"] = settings.max_queue
    deployment["ray_actor_options"]["num_cpus"] = threads * executors
    if settings.gpu:
        deployment["ray_actor_options"]["num_gpus"] = 1
    values = {"name": settings.name, "variant": subject.variant, "runtime": "gpu" if settings.gpu else "cpu"}
    return {
        "app.py": read("ray/app.py").encode(),
        "config.yaml": dump_yaml(
            config, head="Made by `regnet-deploy package --ray`; README.md says how to run it."
        ).encode(),
        "README.md": fill("ray/README.md", values).encode(),
    }


def _arguments(subject: PackagedVariant, settings: DeploymentSettings) -> dict[str, Any]:
    """Return the arguments of app.py: settings of the server that are not defaults."""
    tuned = subject.tuned.settings if subject.tuned else None
    executors = settings.executors or (tuned.executors if tuned else 1)
    threads = settings.threads or (tuned.threads if tuned else max(1, available_cores() // executors))
    batch = settings.max_batch or (tuned.batch if tuned else None)
    delay_ms = settings.max_delay_ms if settings.max_delay_ms is not None else tuned.max_delay_ms if tuned else None
    options: dict[str, Any] = {"variant": subject.variant, "threads": threads, "executors": executors}
    if batch is not None:
        options["batch"] = batch
    if delay_ms is not None:
        options["max_delay_s"] = delay_ms / 1000
    if not settings.gpu:
        options["device"] = "cpu"
    limits: dict[str, Any] = {}
    if settings.max_queue is not None:
        limits["max_queue"] = settings.max_queue
    if settings.deadline_ms is not None:
        limits["deadline_s"] = settings.deadline_ms / 1000
    return {
        "bundle": str(subject.bundle.path.resolve()),
        "name": settings.name,
        "options": options,
        "limits": limits,
        "decoders": settings.decoders or threads * executors,
    }
