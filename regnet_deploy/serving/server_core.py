"""The parts of a server below its listeners: models, queues, decoders, observers; started and stopped as one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import ProofError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_version import ModelVersion, ServeOptions, load_proved_version
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
        opened: versions that are opened at the start.
        log_event: is called with what happens to the server.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "regnet",
        options: ServeOptions | None = None,
        limits: Limits | None = None,
        decoders: int | None = None,
        poll_s: float = 5.0,
        log_event: LogEvent = lambda event, **facts: None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        """Open what is at a path; nothing is proved or answered yet.

        Args:
            path: a bundle, or a folder of models and versions.
            name: of the model where it is a bundle.
            options: how to run the models.
            limits: what clients may ask for.
            decoders: processes that decode images; by default one for each core.
            poll_s: seconds between two looks for new versions; 0: none after the start.
            log_event: is called with what happens to the server.
            observers: get a record of each request, beside the metrics.

        Raises:
            RegnetDeployError: nothing is there that can be served.
        """
        limits = limits or Limits()
        models = ModelRegistry(self._retire)
        self.log_event = log_event
        self._watcher = ModelWatcher(path, name, options or ServeOptions(), limits, models, log_event)
        self.opened: list[ModelVersion] = self._watcher.load()
        for model in self.opened:
            models.loading(model.name, model.version)
        self._poll_s = poll_s
        pool = DecodePool(decoders or available_cores(), limits.max_pixels, min(_DECODE_S, limits.deadline_s))
        admission = Admission(limits.max_in_flight, ServerState.STARTING, limits.max_bodies_bytes)
        self.metrics = Metrics(models, admission, pool)
        self.service = Service(models, admission, limits, pool, notify_all((self.metrics.observe, *observers)))
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> list[Agreement]:
        """Start processes and executors and replay every golden set; after that, requests can be accepted.

        Returns the agreement of each of ``opened``; versions that disagree are removed from it.

        Raises:
            ProofError: no version of a model agrees with its golden set.
            RegnetDeployError: the decoders do not start.
        """
        await self.service.decoders.start()
        agreements: dict[ModelVersion, Agreement] = {}
        refused: list[tuple[ModelVersion, ProofError]] = []
        for model in self.opened:
            try:
                agreements[model] = await load_proved_version(model)
            except ProofError as error:
                refused.append((model, error))
                continue
            self.service.models.put(model)
        for model, reason in refused:
            if all(other.name != model.name for other in agreements):
                raise reason
            self._watcher.refuse(model, reason)
        self.opened = list(agreements)
        if self._poll_s > 0:
            self._watching = asyncio.ensure_future(self._watcher.watch(self._poll_s))
        return list(agreements.values())

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
