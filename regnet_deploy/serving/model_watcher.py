"""Finds new versions, proves them and replaces old ones while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, read_bundle
from regnet_deploy.errors import BundleError, RegnetDeployError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_repository import FoundBundle, bundle_fingerprint, find_bundles, is_repository
from regnet_deploy.serving.model_version import ModelVersion, ServeOptions, load_proved_version, load_version

#: Logs what happens to the server: name of the event, facts as keyword arguments.
LogEvent = Callable[..., None]


@dataclass
class WatchedModel:
    """A bundle that is watched for changes.

    Attributes:
        version: under which it is served now.
        loaded: fingerprint of what was loaded or refused.
        digest: of the manifest that is served.
        last_seen: fingerprint at the last look.
        missing: it was not there at the last look.
    """

    version: str
    loaded: Any
    digest: str = ""
    last_seen: Any = field(default=())
    missing: bool = False


class ModelWatcher:
    """Keeps the models of a server as the bundles at a path are."""

    def __init__(
        self,
        path: str | Path,
        name: str,
        options: ServeOptions,
        limits: Limits,
        models: ModelRegistry,
        log_event: LogEvent,
    ) -> None:
        self.path = path
        self._name, self._options, self._limits = name, options, limits
        self._models, self._log_event = models, log_event
        self._watched: dict[FoundBundle, WatchedModel] = {}
        # Decided once: a bundle that is gone for a moment is not an empty repository.
        self._is_repository = is_repository(path)
        self._last_error = ""  # that was logged

    def load(self) -> list[ModelVersion]:
        """Open what is there now, without proving it; called before there are clients.

        Raises:
            RegnetDeployError: nothing is there, or a model has no version that opens.
        """
        opened: list[ModelVersion] = []
        failed: list[tuple[FoundBundle, str, RegnetDeployError]] = []
        for found in self._bundles():
            seen, version = bundle_fingerprint(found.path), found.version or "1"
            self._watched[found] = WatchedModel(version, seen, last_seen=seen)
            try:
                model = self._open(found, version)
            except RegnetDeployError as error:
                failed.append((found, version, error))
                continue
            self._watched[found].digest = model.digest
            opened.append(model)
        if not self._watched:
            raise BundleError(
                f"{self.path} is neither a bundle nor a folder of models with a bundle for each version, "
                "MODEL/1/bundle.json: run `regnet-deploy select` to make a bundle"
            )
        for found, version, reason in failed:
            if all(model.name != found.model for model in opened):
                raise reason
            self._refuse(found, version, reason)
        return opened

    async def watch(self, every_s: float) -> None:
        """Look for changes every ``every_s`` seconds, whatever errors a look raises."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception as error:  # for example, no more threads can be started
                self._log_once(f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Look for changes once.

        A bundle is loaded when it has not changed between two looks, and unloaded when two looks have not found it.
        """
        try:
            there = await run_in_daemon_thread(self._fingerprints)
        except (RegnetDeployError, OSError) as error:
            self._log_once(str(error))
            return
        # New bundles first: a model that becomes a folder of versions, or a bundle, goes on answering.
        for found, now in there.items():
            watched = self._watched.setdefault(found, WatchedModel(found.version or "1", None))
            settled, watched.last_seen = now == watched.last_seen, now
            if now and settled and now != watched.loaded:
                watched.loaded = now
                await self._replace(found, watched)
        for found, known in list(self._watched.items()):
            was_missing, known.missing = known.missing, found not in there
            if was_missing and known.missing and not self._is_being_written(found.model):
                del self._watched[found]
                self._log_event("removed", model=found.model, version=known.version)
                if not self._is_watched(found.model, known.version):  # else the other bundle has replaced it
                    self._models.remove(found.model, known.version)
        self._last_error = ""

    def refuse(self, model: ModelVersion, error: RegnetDeployError) -> None:
        """Refuse a version that was opened; it is looked at again when it changes."""
        for found, watched in self._watched.items():
            if (found.model, watched.version) == (model.name, model.version):
                watched.digest = ""
                self._refuse(found, watched.version, error)

    def _log_once(self, error: str) -> None:
        """Log why a look failed: once, not at every look."""
        if error != self._last_error:
            self._last_error = error
            self._log_event("unreadable", level=logging.WARNING, error=error)

    def _is_being_written(self, model: str) -> bool:
        """Return whether a new bundle of a model is being written."""
        return any(
            found.model == model and not one.missing and one.loaded is None for found, one in self._watched.items()
        )

    def _is_watched(self, model: str, version: str) -> bool:
        return any((found.model, one.version) == (model, version) for found, one in self._watched.items())

    def _fingerprints(self) -> dict[FoundBundle, Any]:
        return {found: bundle_fingerprint(found.path) for found in self._bundles()}

    def _bundles(self) -> list[FoundBundle]:
        return find_bundles(self.path) if self._is_repository else [FoundBundle(self._name, None, Path(self.path))]

    async def _replace(self, found: FoundBundle, watched: WatchedModel) -> None:
        """Load and prove a changed bundle; where that fails, the version before goes on answering."""
        version = watched.version
        if found.version is None and watched.digest:
            version = str(int(version) + 1)
        self._models.loading(found.model, version)
        try:
            model = await run_in_daemon_thread(self._open, found, version)
            if model.digest == watched.digest:  # touched, not changed
                self._remove_unless(found.model, version, watched.version)
                self._models.confirm(found.model, watched.version)
                return
            agreement: Agreement = await load_proved_version(model)
        except RegnetDeployError as error:
            self._refuse(found, version, error)
        except Exception as error:  # for example MemoryError: whatever it is, the version before goes on
            self._refuse(found, version, RegnetDeployError(f"{type(error).__name__}: {error}"))
        else:
            before, watched.version, watched.digest = watched.version, version, model.digest
            self._models.put(model)
            self._remove_unless(found.model, before, version)
            self._log_event(
                "swapped",
                model=found.model,
                version=version,
                variant=model.variant,
                runtime=model.session.runtime,
                golden_images=agreement.images,
                max_abs_error=agreement.max_abs_error,
            )

    def _refuse(self, found: FoundBundle, version: str, error: RegnetDeployError) -> None:
        self._models.refuse(found.model, version, _public_reason(error))
        self._log_event("refused", level=logging.WARNING, model=found.model, version=version, error=str(error))

    def _remove_unless(self, model: str, version: str, other: str) -> None:
        """Remove a version unless it is ``other``."""
        if version != other:
            self._models.remove(model, version)

    def _open(self, found: FoundBundle, version: str) -> ModelVersion:
        def load(bundle: Bundle) -> ModelVersion:
            return load_version(bundle, self._options, model=found.model, version=version, limits=self._limits)

        return read_bundle(found.path, load)


def _public_reason(error: RegnetDeployError) -> str:
    """Return what clients may know of an error: no paths."""
    return f"{type(error).__name__}; the server's log has the details"
