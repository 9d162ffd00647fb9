"""New versions, found, proved and put in the place of old ones while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import BundleError, RegnetDeployError
from regnet_deploy.runtimes.bundle_reader import read_bundle
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_repository import FoundBundle, bundle_fingerprint, find_bundles, is_repository
from regnet_deploy.serving.model_version import ModelVersion, ServeOptions, load_proved_version, load_version

#: Told of what happens: name of the event, facts.
Tell = Callable[..., None]


@dataclass
class WatchedModel:
    """A bundle that is looked at again and again.

    Attributes:
        version: under which it is served now.
        seen: fingerprint of what was loaded or refused.
        digest: of the manifest that is served.
        last: fingerprint when it was looked at last.
        missed: it was not there when it was looked at last.
    """

    version: str
    seen: Any
    digest: str = ""
    last: Any = field(default=())
    missed: bool = False


class ModelWatcher:
    """What is at a path, and what the models are of it."""

    def __init__(
        self, path: str | Path, name: str, wish: ServeOptions, limits: Limits, models: ModelRegistry, tell: Tell
    ) -> None:
        self.path = path
        self._name, self._wish, self._limits, self._models, self._tell = name, wish, limits, models, tell
        self._followed: dict[FoundBundle, WatchedModel] = {}
        # Decided once: a bundle that is gone for a moment is not an empty repository.
        self._repository = is_repository(path)
        self._trouble = ""  # that was told last

    def load(self) -> list[ModelVersion]:
        """Open what is there now, without proving it; before there are clients.

        Raises:
            RegnetDeployError: nothing is there, or a model has no version that opens.
        """
        opened: list[ModelVersion] = []
        failed: list[tuple[FoundBundle, str, RegnetDeployError]] = []
        for found in self._bundles():
            seen, version = bundle_fingerprint(found.path), found.version or "1"
            self._followed[found] = WatchedModel(version, seen, last=seen)
            try:
                served = self._open(found, version)
            except RegnetDeployError as error:
                failed.append((found, version, error))
                continue
            self._followed[found].digest = served.digest
            opened.append(served)
        if not self._followed:
            raise BundleError(
                f"{self.path} is neither a bundle nor a folder of models with a bundle for each version, "
                "MODEL/1/bundle.json: run `regnet-deploy select` to make a bundle"
            )
        for found, version, reason in failed:
            if all(served.name != found.model for served in opened):
                raise reason
            self._refuse(found, version, reason)
        return opened

    async def follow(self, every_s: float) -> None:
        """Look again and again, for ever, whatever comes of a look."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception as error:  # no more threads, say
                self._say(f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Look once at what is there now.

        A bundle is loaded when it has not changed between two looks, and unloaded when two looks have not found it.
        """
        try:
            there = await run_in_daemon_thread(self._fingerprints)
        except (RegnetDeployError, OSError) as error:
            self._say(str(error))
            return
        # What is new first: a model that becomes a folder of versions, or a bundle, answers all the while.
        for found, now in there.items():
            followed = self._followed.setdefault(found, WatchedModel(found.version or "1", None))
            settled, followed.last = now == followed.last, now
            if now and settled and now != followed.seen:
                followed.seen = now
                await self._replace(found, followed)
        for found, known in list(self._followed.items()):
            missed, known.missed = known.missed, found not in there
            if missed and known.missed and not self._awaits(found.model):
                del self._followed[found]
                self._tell("removed", model=found.model, version=known.version)
                if not self._follows(found.model, known.version):  # else that has taken its place
                    self._models.remove(found.model, known.version)
        self._trouble = ""

    def refuse(self, served: ModelVersion, error: RegnetDeployError) -> None:
        """Say why a version that was opened is not served after all; it is looked at again when it changes."""
        for found, followed in self._followed.items():
            if (found.model, followed.version) == (served.name, served.version):
                followed.digest = ""
                self._refuse(found, followed.version, error)

    def _say(self, trouble: str) -> None:
        """Tell why nothing was seen: once, not at every look."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._tell("unreadable", level=logging.WARNING, error=trouble)

    def _awaits(self, model: str) -> bool:
        """Tell whether something of a model has come that is being written."""
        return any(
            found.model == model and not one.missed and one.seen is None for found, one in self._followed.items()
        )

    def _follows(self, model: str, version: str) -> bool:
        return any((found.model, one.version) == (model, version) for found, one in self._followed.items())

    def _fingerprints(self) -> dict[FoundBundle, Any]:
        return {found: bundle_fingerprint(found.path) for found in self._bundles()}

    def _bundles(self) -> list[FoundBundle]:
        return find_bundles(self.path) if self._repository else [FoundBundle(self._name, None, Path(self.path))]

    async def _replace(self, found: FoundBundle, followed: WatchedModel) -> None:
        """Load and prove what a bundle has become; where that fails, what is there goes on."""
        version = followed.version
        if found.version is None and followed.digest:
            version = str(int(version) + 1)
        self._models.loading(found.model, version)
        try:
            served = await run_in_daemon_thread(self._open, found, version)
            if served.digest == followed.digest:  # touched, not changed
                self._forget(found.model, version, followed.version)
                self._models.confirm(found.model, followed.version)
                return
            agreement: Agreement = await load_proved_version(served)
        except RegnetDeployError as error:
            self._refuse(found, version, error)
        except Exception as error:  # out of memory, say: whatever it is, the one before goes on
            self._refuse(found, version, RegnetDeployError(f"{type(error).__name__}: {error}"))
        else:
            before, followed.version, followed.digest = followed.version, version, served.digest
            self._models.put(served)
            self._forget(found.model, before, version)
            self._tell(
                "swapped",
                model=found.model,
                version=version,
                variant=served.variant,
                runtime=served.session.runtime,
                golden_images=agreement.images,
                max_abs_error=agreement.max_abs_error,
            )

    def _refuse(self, found: FoundBundle, version: str, error: RegnetDeployError) -> None:
        self._models.refuse(found.model, version, _for_clients(error))
        self._tell("refused", level=logging.WARNING, model=found.model, version=version, error=str(error))

    def _forget(self, model: str, version: str, other: str) -> None:
        """Drop a version unless it is the other one."""
        if version != other:
            self._models.remove(model, version)

    def _open(self, found: FoundBundle, version: str) -> ModelVersion:
        def load(bundle: Bundle) -> ModelVersion:
            return load_version(bundle, self._wish, model=found.model, version=version, limits=self._limits)

        return read_bundle(found.path, load)


def _for_clients(error: RegnetDeployError) -> str:
    """Say what is wrong with a version without the paths that the error names."""
    return f"{type(error).__name__}; the server's log has the details"
