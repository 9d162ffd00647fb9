"""A server put together: models, queue, decoders, observers; started and stopped as one, whatever stands in front."""

from __future__ import annotations

import asyncio
from pathlib import Path

from regnet_deploy.cores import available_cores
from regnet_deploy.errors import ProofError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.admission import Admission, ServerState
from regnet_deploy.serving.decode_pool import DecodePool
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.metrics import Metrics
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_version import ModelVersion, ServeOptions, load_proved_version
from regnet_deploy.serving.model_watcher import ModelWatcher, Tell
from regnet_deploy.serving.request_record import Observer, notify_all
from regnet_deploy.serving.service import Service

#: Seconds after which an image that is still being decoded is given up, and its process with it.
_DECODE_S = 10.0


class ServerCore:
    """All that answers, without a door to it.

    Attributes:
        service: what requests are given to.
        metrics: of it.
        opened: versions that are there at the start.
        tell: is told of what happens.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str = "regnet",
        wish: ServeOptions | None = None,
        limits: Limits | None = None,
        decoders: int | None = None,
        poll_s: float = 5.0,
        tell: Tell = lambda event, **facts: None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        """Open what is at a path; nothing of it is proved or answers yet.

        Args:
            path: a bundle, or a folder of models and versions.
            name: of the model where it is a bundle.
            wish: how to serve.
            limits: what clients may ask for.
            decoders: processes that decode images; by default one a core.
            poll_s: seconds between two looks at what is there; 0 looks once.
            tell: is told of what happens.
            observers: are told of requests, beside the metrics.

        Raises:
            RegnetDeployError: nothing is there that can be served.
        """
        limits = limits or Limits()
        models = ModelRegistry(self._retired)
        self.tell = tell
        self._watch = ModelWatcher(path, name, wish or ServeOptions(), limits, models, tell)
        self.opened: list[ModelVersion] = self._watch.load()
        for served in self.opened:
            models.loading(served.name, served.version)
        self._poll_s = poll_s
        pool = DecodePool(decoders or available_cores(), limits.max_pixels, min(_DECODE_S, limits.deadline_s))
        admission = Admission(limits.max_in_flight, ServerState.STARTING, limits.max_bodies_bytes)
        self.metrics = Metrics(models, admission, pool)
        self.service = Service(models, admission, limits, pool, notify_all((self.metrics.observe, *observers)))
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> list[Agreement]:
        """Start processes and executors and replay every golden set; then requests can be let in.

        Returns the agreement of each of ``opened``, which are those that agree from then on.

        Raises:
            ProofError: of a model no version agrees with its golden set.
            RegnetDeployError: the decoders do not start.
        """
        await self.service.decoders.start()
        agreements: dict[ModelVersion, Agreement] = {}
        refused: list[tuple[ModelVersion, ProofError]] = []
        for served in self.opened:
            try:
                agreements[served] = await load_proved_version(served)
            except ProofError as error:
                refused.append((served, error))
                continue
            self.service.models.put(served)
        for served, why in refused:
            if all(other.name != served.name for other in agreements):
                raise why
            self._watch.refuse(served, why)
        self.opened = list(agreements)
        if self._poll_s > 0:
            self._following = asyncio.ensure_future(self._watch.follow(self._poll_s))
        return list(agreements.values())

    async def stop(self) -> None:
        """End executors and processes."""
        if self._following is not None:
            self._following.cancel()
        try:
            if self._following is not None:  # whatever it ended in, the others end as well
                await asyncio.gather(self._following, return_exceptions=True)
        finally:
            try:
                self.service.close()
            finally:
                await self.service.decoders.close()

    def _retired(self, served: ModelVersion) -> None:
        """Drop the metrics of a version that has ended, and what it holds in memory."""
        self.metrics.forget(served)
        if self.service.admission.state is not ServerState.STARTING:  # by then they are announced
            self.opened = [one for one in self.opened if one is not served]
