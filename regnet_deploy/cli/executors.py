"""What runs trials, from the options that ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.sweeping.sweep import Executor


def executor_of(ray: str | None, cpus: float | None, gpus: float | None, device: str, threads: int | None) -> Executor:
    """Return what runs the trials."""
    from regnet_deploy.sweeping.local_executor import run_locally

    if ray is None:
        for name, value in (("--cpus-per-trial", cpus), ("--gpus-per-trial", gpus)):
            if value is not None:
                raise UsageError(f"{name} belongs to --ray: without it trials run one by one in this process")
        return run_locally
    require("ray", "ray")
    if threads is not None:
        raise UsageError("with --ray a trial has as many threads as CPUs: give --cpus-per-trial in place of --threads")
    from regnet_deploy.sweeping.ray_executor import RayExecutor

    if gpus and device != "cuda":
        raise UsageError(f"--gpus-per-trial {gpus:g} needs --device cuda, and this sweep runs on {device}")
    return RayExecutor(ray, cpus or 1.0, (1.0 if device == "cuda" else 0.0) if gpus is None else gpus)
