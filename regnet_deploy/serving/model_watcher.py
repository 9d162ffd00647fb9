"""Finds new versions, proves them and replaces old ones while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, read_bundle
from regnet_deploy.errors import BundleError, RegnetDeployError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_repository import FoundBundle, bundle_fingerprint, find_bundles, is_repository
from regnet_deploy.serving.model_version import (
    ModelVersion,
    ServeOptions,
    load_proved_version,
    load_version,
    served_content,
)

#: Logs what happens to the server: name of the event, facts as keyword arguments.
LogEvent = Callable[..., None]


@dataclass
class WatchedModel:
    """A bundle that is watched for changes.

    Attributes:
        version: under which it is served now.
        loaded: fingerprint of what was loaded or refused.
        digest: of the manifest that is served.
        content: of the version that is served; see :func:`served_content`.
        refused: version that was refused in its place and is still listed; empty: none.
        last_seen: fingerprint at the last look.
        missing: it was not there at the last look.
    """

    version: str
    loaded: Any
    digest: str = ""
    content: str = ""
    refused: str = ""
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
            watched = self._watched[found] = WatchedModel(version, seen, last_seen=seen)
            try:
                model = self._open(found, watched)
            except RegnetDeployError as error:
                failed.append((found, version, error))
                continue
            watched.digest, watched.content = model.digest, model.content
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
        try:
            bundle = await run_in_daemon_thread(open_bundle, found.path)
            version = _number(found, watched, bundle)
            self._models.loading(found.model, version)
            model = await run_in_daemon_thread(self._open, found, watched)
            if model.version != version:  # it has changed meanwhile: the next look sees that
                self._remove_unless(found.model, version, watched.version)
                return
            if model.digest == watched.digest:  # touched, not changed
                self._forget_refused(found, watched)
                self._models.confirm(found.model, watched.version)
                return
            agreement: Agreement = await load_proved_version(model)
        except Exception as error:  # for example MemoryError: whatever it is, the version before goes on
            if not isinstance(error, RegnetDeployError):
                error = RegnetDeployError(f"{type(error).__name__}: {error}")
            if version != watched.refused:
                self._forget_refused(found, watched)
            watched.refused = version
            self._refuse(found, version, error)
        else:
            before, watched.version = watched.version, version
            watched.digest, watched.content = model.digest, model.content
            self._models.put(model)
            self._remove_unless(found.model, before, version)
            self._forget_refused(found, watched)
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

    def _forget_refused(self, found: FoundBundle, watched: WatchedModel) -> None:
        """Remove the version that was refused in the place of the one that is served."""
        if watched.refused:
            self._remove_unless(found.model, watched.refused, watched.version)
        watched.refused = ""

    def _remove_unless(self, model: str, version: str, other: str) -> None:
        """Remove a version unless it is ``other``."""
        if version != other:
            self._models.remove(model, version)

    def _open(self, found: FoundBundle, watched: WatchedModel) -> ModelVersion:
        def load(bundle: Bundle) -> ModelVersion:
            version = _number(found, watched, bundle)
            return load_version(bundle, self._options, model=found.model, version=version, limits=self._limits)

        return read_bundle(found.path, load)


def _number(found: FoundBundle, watched: WatchedModel, bundle: Bundle) -> str:
    """Return the version of a bundle: that of its folder, else the next one where another network is served."""
    is_other = watched.digest and served_content(bundle) != watched.content
    return str(int(watched.version) + 1) if found.version is None and is_other else watched.version


def _public_reason(error: RegnetDeployError) -> str:
    """Return what clients may know of an error: no paths."""
    return f"{type(error).__name__}; the server's log has the details"
