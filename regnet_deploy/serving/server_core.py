"""The parts of a server below its listeners: models, queues, decoders, observers; started and stopped as one."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from pathlib import Path

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import UsageError
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.connection_places import ConnectionCounts
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_repository import are_versions, is_repository, list_repository
from regnet_deploy.serving.model_version import ModelVersion, load_proved_version
from regnet_deploy.serving.model_watcher import LogEvent, ModelWatcher
from regnet_deploy.serving.request_record import Observer, notify_all
from regnet_deploy.serving.service import Service

#: Seconds after which the decoding of an image is given up and its process replaced.
_DECODE_S = 10.0


class ServerCore:
    """A server without its listeners.

    Attributes:
        service: answers requests.
        metrics: of the service.
        connections: of the HTTP socket, where there is one.
        opened: versions that are opened at the start.
        log_event: is called with what happens to the server.
    """

    def __init__(
        self,
        path: str | Path,
        settings: CoreSettings | None = None,
        *,
        log_event: LogEvent = lambda event, **facts: None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        """Open what is at a path; nothing is proved or answered yet.

        Args:
            path: a bundle, or a folder of models and versions.
            settings: which models are served, and how.
            log_event: is called with what happens to the server.
            observers: get a record of each request, beside the metrics.

        Raises:
            UsageError: ``ready`` names another model than that of a bundle, or ``versions`` are given for one.
            RegnetDeployError: nothing is there that can be served.
        """
        settings = settings or CoreSettings()
        if not is_repository(path):
            name, ready = settings.name, settings.ready
            if ready not in ("any", "all", name):
                raise UsageError(f"--ready {ready}: {path} is a bundle, and its model is {name}; see --name")
            if settings.versions:
                raise UsageError(f"--versions is for a folder of models; {path} is a bundle, which is one version")
        limits = settings.limits
        models = ModelRegistry(self._retire, settings.ready)
        self.log_event = log_event
        self._watcher = ModelWatcher(path, settings, models, log_event)
        self._poll_s = settings.poll_s
        self.opened: list[ModelVersion] = self._watcher.load(may_wait=self._poll_s > 0)
        if is_repository(path):
            _warn_of_names(path, settings, log_event)
        pool = DecodePool(settings.decoders or available_cores(), limits.max_pixels, min(_DECODE_S, limits.deadline_s))
        admission = Admission(limits.max_in_flight, ServerState.STARTING, limits.max_bodies_bytes)
        self.connections = ConnectionCounts()
        self.metrics = Metrics(models, admission, pool, connections=self.connections)
        self.service = Service(models, admission, limits, pool, notify_all((self.metrics.observe, *observers)))
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start processes and executors and replay every golden set; after that, requests can be accepted.

        Versions that disagree are removed from ``opened``; a version policy may have others opened in their place.

        Raises:
            ProofError: no model agrees with its golden set.
            RegnetDeployError: the decoders do not start.
        """
        await self.service.decoders.start()
        models = self.service.models
        refused: list[tuple[ModelVersion, Exception]] = []
        for model in self.opened:
            try:
                agreement = await load_proved_version(model)
            except Exception as error:  # whatever it is, the other models are served
                refused.append((model, error))
                continue
            models.put(model, agreement)
        if refused and (models.all() or self._watcher.has_others()):
            for model, reason in refused:
                self._watcher.refuse(model, reason)
            await self._watcher.look()
        if refused and not models.all():
            raise refused[0][1]
        self.opened = models.all()
        unready = models.unready_reason()
        if unready is not None:
            self.log_event("unready", level=logging.WARNING, error=unready)
        if self._poll_s > 0:
            self._watching = asyncio.ensure_future(self._watcher.watch(self._poll_s))

    async def stop(self) -> None:
        """Stop executors and processes."""
        if self._watching is not None:
            self._watching.cancel()
        try:
            if self._watching is not None:  # whatever it raises, the others are stopped as well
                await asyncio.gather(self._watching, return_exceptions=True)
        finally:
            try:
                self.service.close()
            finally:
                await self.service.decoders.close()

    def _retire(self, model: ModelVersion) -> None:
        """Drop the metrics of a version that has ended, and what it holds in memory."""
        self.metrics.forget(model)
        if self.service.admission.state is not ServerState.STARTING:  # by then they are announced
            self.opened = [one for one in self.opened if one is not model]


def _warn_of_names(path: str | Path, settings: CoreSettings, log_event: LogEvent) -> None:
    """Warn of options for models that are not there (yet), and of versions that are taken for models."""
    listing = list_repository(path)
    there = {one.model for one in listing.bundles} | {one.model for one in listing.unusable}
    named = [("--ready", settings.ready)] if settings.ready not in ("any", "all") else []
    named += [("--versions", model) for model in settings.policies.models]
    for option, model in named:
        if model not in there:
            error = f"{option}: there is no model {model} in {path} now; there are: {', '.join(sorted(there))}"
            log_event("no_such_model", level=logging.WARNING, model=model, error=error)
    if are_versions(listing):
        error = (
            f"{path} looks like the folder of one model with versions, and its versions are served as models: "
            f"`regnet-deploy serve {shlex.quote(os.path.dirname(os.path.abspath(path)))}` serves the model "
            f"{os.path.basename(os.path.abspath(path))}"
        )
        log_event("versions_as_models", level=logging.WARNING, error=error)
