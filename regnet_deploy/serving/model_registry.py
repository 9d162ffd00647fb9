"""The models of a server and their versions: found by name, leased to requests, replaced while requests run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_version import ModelVersion


class VersionState(Enum):
    """State of a version; the values are those of the protocol's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class RegistryEntry:
    """What is known of a version.

    Attributes:
        state: whether it answers.
        model: what answers; None unless it is ready.
        reason: why it does not answer, or why its replacement was refused; else empty.
    """

    state: VersionState
    model: ModelVersion | None = None
    reason: str = ""


class Lease:
    """A version in use by a request."""

    __slots__ = ("_model", "_models")

    def __init__(self, models: ModelRegistry, model: ModelVersion) -> None:
        self._models, self._model = models, model

    def __enter__(self) -> ModelVersion:
        """Start using it."""
        self._models.acquire(self._model)
        return self._model

    def __exit__(self, *error: object) -> None:
        """Stop using it."""
        self._models.release(self._model)


class ModelRegistry:
    """Models by name and version; used from the event loop only.

    Each request leases a version until it is answered. A version that was replaced ends with its last lease.
    """

    def __init__(self, on_retired: Callable[[ModelVersion], None] = lambda model: None) -> None:
        """Create an empty registry; ``on_retired`` is called with each version that has ended."""
        self._entries: dict[str, dict[int, RegistryEntry]] = {}
        self._newest: dict[str, ModelVersion] = {}
        self._leases: dict[ModelVersion, int] = {}
        self._retiring: set[ModelVersion] = set()
        self._on_retired = on_retired

    def names(self) -> list[str]:
        """Return the models' names, in the order in which they were added."""
        return list(self._entries)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that answer, oldest first."""
        return [str(number) for number, entry in sorted(self._entries.get(name, {}).items()) if entry.model]

    def all(self) -> list[ModelVersion]:
        """Return every version that answers."""
        return [entry.model for known in self._entries.values() for _, entry in sorted(known.items()) if entry.model]

    def ready(self) -> bool:
        """Return whether any version answers."""
        return any(entry.model for known in self._entries.values() for entry in known.values())

    def hung(self) -> list[str]:
        """Return one line for each version with an executor that hangs."""
        running = [*self.all(), *self._retiring]
        return [
            f"an executor of model {model.name} version {model.version} does not come back"
            for model in running
            if model.batcher.hung(model.limits.hung_s)
        ]

    def get(self, name: str, version: str | None = None, status: int = 404) -> ModelVersion:
        """Return a version of a model; without ``version`` the newest one that answers.

        Raises:
            RequestError: there is no such model or version (``status``), or it does not answer now (503).
        """
        if version is None and name in self._newest:
            return self._newest[name]
        known = self._entries.get(name)
        if known is None:
            raise RequestError(f"unknown model {name[:80]!r}; this server has {', '.join(self._entries)}", status)
        answering = self.versions(name)
        if version is None:
            if not answering:
                raise RequestError(f"no version of model {name} is ready", 503)
            version = answering[-1]
        entry = known.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 19 else None
        if entry is None or str(int(version)) != version:
            listed = ", ".join(answering) or "none"
            raise RequestError(f"unknown version {version[:80]!r}; available versions of {name}: {listed}", status)
        if entry.model is None:
            raise RequestError(f"version {version} of model {name} is not ready", 503)
        return entry.model

    def lease(self, name: str, version: str | None = None) -> Lease:
        """Return a context in which a request uses a version; see :meth:`get`.

        Raises:
            RequestError: as :meth:`get` does.
        """
        return Lease(self, self.get(name, version))

    def acquire(self, model: ModelVersion) -> None:
        """Count one more request that uses a version."""
        self._leases[model] = self._leases.get(model, 0) + 1

    def release(self, model: ModelVersion) -> None:
        """Count one request fewer; the last one of a version that was replaced ends the version."""
        self._leases[model] -= 1
        if not self._leases[model]:
            del self._leases[model]
            if model in self._retiring:
                self._end(model)

    def index(self) -> list[dict[str, str]]:
        """Return the repository index: name, version, state and reason of every version."""
        return [
            {"name": name, "version": str(number), "state": entry.state.value, "reason": entry.reason}
            for name, known in self._entries.items()
            for number, entry in sorted(known.items())
        ]

    def loading(self, name: str, version: str) -> None:
        """Note that a version is being loaded; one that answers goes on answering."""
        known = self._entries.setdefault(name, {})
        if int(version) not in known or known[int(version)].model is None:
            known[int(version)] = RegistryEntry(VersionState.LOADING)

    def put(self, model: ModelVersion) -> None:
        """Add a started version, in place of one with the same number."""
        known = self._entries.setdefault(model.name, {})
        before = known.get(int(model.version))
        known[int(model.version)] = RegistryEntry(VersionState.READY, model)
        self._find_newest(model.name)
        if before is not None and before.model is not None:
            self._retire(before.model)

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Note why a version is not served; one that answers under this number goes on answering."""
        known = self._entries.setdefault(name, {})
        before = known.get(int(version))
        if before is not None and before.model is not None:
            known[int(version)] = RegistryEntry(
                VersionState.READY, before.model, f"still serves the version before: {reason}"
            )
        else:
            known[int(version)] = RegistryEntry(VersionState.UNAVAILABLE, None, reason)

    def confirm(self, name: str, version: str) -> None:
        """Note that the version that answers is the one on disk."""
        known = self._entries.get(name, {})
        if int(version) in known and known[int(version)].model is not None:
            known[int(version)] = RegistryEntry(VersionState.READY, known[int(version)].model)

    def remove(self, name: str, version: str) -> None:
        """Remove a version, and a model without versions."""
        entry = self._entries.get(name, {}).pop(int(version), None)
        if not self._entries.get(name, {0: entry}):
            del self._entries[name]
        self._find_newest(name)
        if entry is not None and entry.model is not None:
            self._retire(entry.model)

    def close(self) -> None:
        """End every version."""
        for model in self.all():
            model.close()

    def _find_newest(self, name: str) -> None:
        """Cache the version of requests that name none, as most do."""
        answering = [entry.model for _, entry in sorted(self._entries.get(name, {}).items()) if entry.model]
        self._newest.pop(name, None)
        if answering:
            self._newest[name] = answering[-1]

    def _retire(self, model: ModelVersion) -> None:
        self._retiring.add(model)
        if model not in self._leases:
            self._end(model)

    def _end(self, model: ModelVersion) -> None:
        self._retiring.discard(model)
        model.close()
        self._on_retired(model)
