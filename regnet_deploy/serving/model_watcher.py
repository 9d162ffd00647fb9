"""Finds new versions, proves them and replaces old ones while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, read_bundle
from regnet_deploy.errors import BundleError, MissingPart, RegnetDeployError, UsageError
from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.daemon_thread import run_in_daemon_thread
from regnet_deploy.serving.model_registry import ModelRegistry
from regnet_deploy.serving.model_repository import (
    FoundBundle,
    RepositoryListing,
    UnusablePath,
    bundle_fingerprint,
    is_repository,
    list_repository,
)
from regnet_deploy.serving.model_version import (
    ModelVersion,
    load_proved_version,
    load_version,
    served_content,
)
from regnet_deploy.serving.version_policy import ALL_VERSIONS

#: Looks between two attempts to load a version, at most.
_MOST_LOOKS = 64

#: Logs what happens to the server: name of the event, facts as keyword arguments.
LogEvent = Callable[..., None]


@dataclass
class WatchedModel:
    """A bundle that is watched for changes.

    Attributes:
        version: under which it is served now.
        loaded: fingerprint of what was loaded or refused; None: neither.
        digest: of the manifest that is served.
        content: of the version that is served; see :func:`served_content`.
        refused: version that was refused in its place and is still listed; empty: none.
        last_seen: fingerprint at the last look.
        missing: it was not there at the last look.
        failures: loads in a row that failed for a reason that may go away by itself, such as a lack of memory.
        retry_in: looks until the next attempt after such a failure.
        error: why it was refused, as it was logged; empty: it was not.
    """

    version: str
    loaded: Any = None
    digest: str = ""
    content: str = ""
    refused: str = ""
    last_seen: Any = field(default=())
    missing: bool = False
    failures: int = 0
    retry_in: int = 0
    error: str = ""

    @property
    def is_listed(self) -> bool:
        """Whether it is served or was refused, and not left out by a version policy."""
        return bool(self.digest or self.refused)


@dataclass(frozen=True)
class _Look:
    """What was seen at one look: the bundles with their fingerprints, newest version first, and what is unusable."""

    bundles: dict[FoundBundle, Any]
    unusable: dict[tuple[str, str | None], UnusablePath]

    def is_unusable(self, found: FoundBundle) -> bool:
        """Return whether a bundle may still be there, in a folder that cannot be opened."""
        return (found.model, found.version) in self.unusable or (found.model, None) in self.unusable


class ModelWatcher:
    """Keeps the models of a server as the bundles at a path are.

    Attributes:
        waits: no model can be served yet, and the server waits for one.
    """

    def __init__(self, path: str | Path, settings: CoreSettings, models: ModelRegistry, log_event: LogEvent) -> None:
        self.path = path
        self.waits = False
        self._settings, self._policies = settings, settings.policies
        self._models, self._log_event = models, log_event
        self._watched: dict[FoundBundle, WatchedModel] = {}
        # Decided once: a bundle that is gone for a moment is not an empty repository.
        self._is_repository = is_repository(path)
        self._last_error = ""  # that was logged
        self._last_unusable: dict[tuple[str, str | None], UnusablePath] = {}  # at the last look
        self._logged_unusable: dict[tuple[str, str | None], str] = {}

    def load(self, may_wait: bool = False) -> list[ModelVersion]:
        """Open what is there now, without proving it; called before there are clients.

        Args:
            may_wait: where no model of a repository opens, and one of them may be half copied, wait for it.

        Raises:
            RegnetDeployError: nothing is there, or no model opens.
        """
        look = self._look()
        opened: list[ModelVersion] = []
        failed: list[tuple[FoundBundle, Exception]] = []
        for found, seen in look.bundles.items():
            watched = self._watched[found] = WatchedModel(found.version or "1", last_seen=seen)
            if not self._is_wanted(found, look):
                continue
            watched.loaded = seen
            self._models.loading(found.model, watched.version)
            try:
                model = self._open(found, watched)
            except Exception as error:  # whatever it is, the other models are served
                failed.append((found, error))
                continue
            watched.digest, watched.content = model.digest, model.content
            opened.append(model)
        self._last_unusable = look.unusable | self._missing_versions(look)
        problems = [*(error for _, error in failed), *(one.error for one in self._last_unusable.values())]
        if not opened and not problems:
            raise BundleError(
                f"{self.path} is neither a bundle nor a folder of models with a bundle for each version, "
                "MODEL/1/bundle.json: `regnet-deploy select --gflops 4 -o FOLDER` makes a bundle"
            )
        self.waits = not opened and may_wait and self._is_repository and any(map(_may_heal, problems))
        if not opened and not self.waits:
            raise problems[0]
        self._note_unusable(look)
        for found, reason in failed:
            self._fail(found, self._watched[found], self._watched[found].version, reason)
        if self.waits:
            self._log_event("waiting", level=logging.WARNING, path=str(self.path), error="no model can be served yet")
        return sorted(opened, key=lambda model: (model.name, int(model.version)))

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
            look = await run_in_daemon_thread(self._look)
        except (RegnetDeployError, OSError) as error:
            self._log_once(str(error))
            return
        self._note_unusable(look)
        # New bundles first: a model that becomes a folder of versions, or a bundle, goes on answering.
        for found, now in look.bundles.items():
            watched = self._watched.setdefault(found, WatchedModel(found.version or "1"))
            settled, watched.last_seen = now == watched.last_seen, now
            if watched.retry_in:
                watched.retry_in -= 1
                watched.loaded = watched.loaded if watched.retry_in else None
            if now and settled and now != watched.loaded and self._is_wanted(found, look):
                watched.loaded, watched.retry_in = now, 0
                await self._replace(found, watched)
        for found in look.bundles:
            watched = self._watched[found]
            if watched.is_listed and not self._is_wanted(found, look):
                self._unload(found, watched)
        for found, known in list(self._watched.items()):
            was_missing, known.missing = known.missing, found not in look.bundles and not look.is_unusable(found)
            if was_missing and known.missing and not (known.digest and self._is_needed(found, look)):
                del self._watched[found]
                if known.is_listed:
                    self._log_event("removed", model=found.model, version=known.version)
                if not self._is_watched(found.model, known.version):  # else the other bundle has replaced it
                    self._forget_refused(found, known)
                    self._models.remove(found.model, known.version)
        self._last_error = ""

    def has_others(self) -> bool:
        """Return whether there are versions that a version policy has served where newer ones cannot be."""
        return any(watched.loaded is None for watched in self._watched.values())

    def refuse(self, model: ModelVersion, error: Exception) -> None:
        """Refuse a version that was opened; it is looked at again when it changes."""
        for found, watched in self._watched.items():
            if (found.model, watched.version) == (model.name, model.version):
                watched.digest = ""
                self._fail(found, watched, watched.version, error)

    def _log_once(self, error: str) -> None:
        """Log why a look failed: once, not at every look."""
        if error != self._last_error:
            self._last_error = error
            self._log_event("unreadable", level=logging.WARNING, error=error)

    def _is_needed(self, found: FoundBundle, look: _Look) -> bool:
        """Return whether a bundle that is gone answers alone for a model with another that may come to answer."""
        if len(self._models.versions(found.model)) > 1:
            return False
        return any(model == found.model for model, _ in look.unusable) or any(
            other.model == found.model and not one.missing and not one.digest and self._is_wanted(other, look)
            for other, one in self._watched.items()
        )

    def _is_wanted(self, found: FoundBundle, look: _Look) -> bool:
        """Return whether the policy has a bundle served; of a number of versions those count that can be served."""
        policy = self._policies.of(found.model)
        if found.version is None:
            return True
        number = int(found.version)
        if policy.named is not None:
            return number in policy.named
        if policy.latest is None:
            return True
        newer = [
            other
            for other in look.bundles
            if other.model == found.model and other.version is not None and int(other.version) > number
        ]
        return sum(bool(self._watched[other].digest) for other in newer if other in self._watched) < policy.latest

    def _unload(self, found: FoundBundle, watched: WatchedModel) -> None:
        """Remove a version that the policy does not have served, or not any more."""
        if watched.digest:
            self._log_event("removed", model=found.model, version=watched.version, reason="version policy")
        watched.loaded, watched.digest, watched.refused, watched.error = None, "", "", ""
        self._models.remove(found.model, watched.version)

    def _is_watched(self, model: str, version: str) -> bool:
        return any((found.model, one.version) == (model, version) for found, one in self._watched.items())

    def _look(self) -> _Look:
        """Look at the disk.

        Raises:
            UsageError: the folder of all models cannot be read.
        """
        listing = RepositoryListing((FoundBundle(self._settings.name, None, Path(self.path)),))
        if self._is_repository:
            listing = list_repository(self.path, {found.model for found in self._watched})
        unusable = {(one.model, one.version): one for one in listing.unusable}
        bundles = {}
        for found in sorted(listing.bundles, key=lambda one: (one.model, -int(one.version or 0))):
            try:
                bundles[found] = bundle_fingerprint(found.path)
            except OSError as error:
                reason = f"cannot be read: {error.strerror}"
                unusable[found.model, found.version] = UnusablePath(
                    found.model, found.version, reason, BundleError(f"{found.path} {reason}")
                )
        return _Look(bundles, unusable)

    def _missing_versions(self, look: _Look) -> dict[tuple[str, str | None], UnusablePath]:
        """Return the versions that a policy names and that are not there."""
        there = {(one.model, one.version) for one in look.bundles} | look.unusable.keys()
        numbered = {model for model, version in there if version is not None}
        missing = {
            (model, str(number))
            for model in sorted(numbered)
            for number in self._policies.of(model).named or ()
            if (model, str(number)) not in there
        }
        return {
            (model, number): UnusablePath(
                model, number, "is not there", UsageError(f"model {model} has no version {number}")
            )
            for model, number in sorted(missing)
        }

    def _note_unusable(self, look: _Look) -> None:
        """Tell clients and the log what cannot be opened, once two looks have found it so: it may be being copied."""
        wanted = {
            (model, version): one
            for (model, version), one in look.unusable.items()
            if version is None or self._is_wanted(FoundBundle(model, version, Path()), look)
        }
        unusable = wanted | self._missing_versions(look)
        before = self._last_unusable
        twice = {key: one for key, one in unusable.items() if key in before and before[key].seen == one.seen}
        self._last_unusable = unusable
        for (model, version), one in twice.items():
            if self._logged_unusable.get((model, version)) != str(one.error):
                facts = {} if version is None else {"version": version}
                self._log_event("refused", level=logging.WARNING, model=model, **facts, error=str(one.error))
        self._logged_unusable = {key: str(one.error) for key, one in twice.items()}
        self._models.set_unusable({key: one.reason for key, one in twice.items()})

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
            if version != watched.refused:
                self._forget_refused(found, watched)
            self._fail(found, watched, version, error)
        else:
            watched.failures = 0
            before, watched.version = watched.version, version
            watched.digest, watched.content = model.digest, model.content
            self._models.put(model, agreement)
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

    def _fail(self, found: FoundBundle, watched: WatchedModel, version: str, error: Exception) -> None:
        """Refuse a version; where the reason may go away by itself, it is tried again, later and later."""
        if _may_heal(error):
            watched.failures += 1
            watched.retry_in = min(2**watched.failures, _MOST_LOOKS)
        if not isinstance(error, RegnetDeployError):
            error = RegnetDeployError(f"{type(error).__name__}: {error}")
        if version != watched.refused or str(error) != watched.error:  # else the log has it
            self._log_event("refused", level=logging.WARNING, model=found.model, version=version, error=str(error))
        watched.refused, watched.error = version, str(error)
        self._models.refuse(found.model, version, _public_reason(error))

    def _forget_refused(self, found: FoundBundle, watched: WatchedModel) -> None:
        """Remove the version that was refused in the place of the one that is served."""
        if watched.refused:
            self._remove_unless(found.model, watched.refused, watched.version)
        watched.refused = watched.error = ""

    def _remove_unless(self, model: str, version: str, other: str) -> None:
        """Remove a version unless it is ``other``."""
        if version != other:
            self._models.remove(model, version)

    def _open(self, found: FoundBundle, watched: WatchedModel) -> ModelVersion:
        def load(bundle: Bundle) -> ModelVersion:
            version = _number(found, watched, bundle)
            policy = self._policies.of(found.model) if found.version else ALL_VERSIONS
            return load_version(
                bundle,
                self._settings.options,
                model=found.model,
                version=version,
                policy=policy,
                limits=self._settings.limits,
            )

        return read_bundle(found.path, load)


def _number(found: FoundBundle, watched: WatchedModel, bundle: Bundle) -> str:
    """Return the version of a bundle: that of its folder, else the next one where another network is served."""
    is_other = watched.digest and served_content(bundle) != watched.content
    return str(int(watched.version) + 1) if found.version is None and is_other else watched.version


def _may_heal(error: Exception) -> bool:
    """Return whether the same bundle may open later: it is half copied, or memory or the disk failed."""
    if isinstance(error, RegnetDeployError):
        return isinstance(error, BundleError) and not isinstance(error, MissingPart)
    return True


def _public_reason(error: RegnetDeployError) -> str:
    """Return what clients may know of an error: no paths."""
    return f"{type(error).__name__}; the server's log has the details"
