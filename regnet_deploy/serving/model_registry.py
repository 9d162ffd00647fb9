"""The models of one server and their versions: found by name, leased to requests, swapped while others run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_version import ModelVersion


class VersionState(Enum):
    """Life of a version, in the words of the protocol's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class RegistryEntry:
    """A version that is known.

    Attributes:
        stage: whether it answers.
        served: what answers; None unless it is ready.
        reason: why it does not, or why what came after it does not; empty where there is nothing to say.
    """

    stage: VersionState
    served: ModelVersion | None = None
    reason: str = ""


class Lease:
    """A version that is held by a request."""

    __slots__ = ("_models", "_served")

    def __init__(self, models: ModelRegistry, served: ModelVersion) -> None:
        self._models, self._served = models, served

    def __enter__(self) -> ModelVersion:
        """Hold it."""
        self._models.hold(self._served)
        return self._served

    def __exit__(self, *error: object) -> None:
        """Let it go."""
        self._models.let_go(self._served)


class ModelRegistry:
    """Models by name and version; used from the event loop only.

    A request leases a version for as long as it takes. What takes its place is there for those that come after; the one
    before ends when its last request has been answered.
    """

    def __init__(self, retired: Callable[[ModelVersion], None] = lambda served: None) -> None:
        """``retired`` is called with each version that has ended."""
        self._entries: dict[str, dict[int, RegistryEntry]] = {}
        self._newest: dict[str, ModelVersion] = {}
        self._leases: dict[ModelVersion, int] = {}
        self._retiring: set[ModelVersion] = set()
        self._retired = retired

    def names(self) -> list[str]:
        """Return the models' names, in the order in which they came."""
        return list(self._entries)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that answer, oldest first."""
        return [str(number) for number, entry in sorted(self._entries.get(name, {}).items()) if entry.served]

    def all(self) -> list[ModelVersion]:
        """Return every version that answers."""
        return [entry.served for known in self._entries.values() for _, entry in sorted(known.items()) if entry.served]

    def ready(self) -> bool:
        """Tell whether there is something that answers."""
        return any(entry.served for known in self._entries.values() for entry in known.values())

    def hung(self) -> list[str]:
        """Return a line for each version with an executor that does not come back."""
        there = [*self.all(), *self._retiring]
        return [
            f"an executor of model {served.name} version {served.version} does not come back"
            for served in there
            if served.batcher.hung(served.limits.hung_s)
        ]

    def served(self, name: str, version: str | None = None, status: int = 404) -> ModelVersion:
        """Return a version of a model; without ``version`` the newest that answers.

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
            raise RequestError(f"unknown version {version[:80]!r}; of model {name} there are {listed}", status)
        if entry.served is None:
            raise RequestError(f"version {version} of model {name} is not ready", 503)
        return entry.served

    def lease(self, name: str, version: str | None = None) -> Lease:
        """Hold a version for a request, for as long as the context lasts; see :meth:`served`.

        Raises:
            RequestError: as :meth:`served` does.
        """
        return Lease(self, self.served(name, version))

    def hold(self, served: ModelVersion) -> None:
        """Count one more request that holds a version."""
        self._leases[served] = self._leases.get(served, 0) + 1

    def let_go(self, served: ModelVersion) -> None:
        """Count one fewer; the last of a version that was replaced ends it."""
        self._leases[served] -= 1
        if not self._leases[served]:
            del self._leases[served]
            if served in self._retiring:
                self._end(served)

    def index(self) -> list[dict[str, str]]:
        """Return the repository index: name, version, state and reason of every version."""
        return [
            {"name": name, "version": str(number), "state": entry.stage.value, "reason": entry.reason}
            for name, known in self._entries.items()
            for number, entry in sorted(known.items())
        ]

    def loading(self, name: str, version: str) -> None:
        """Say that a version is being loaded; one that answers goes on."""
        known = self._entries.setdefault(name, {})
        if int(version) not in known or known[int(version)].served is None:
            known[int(version)] = RegistryEntry(VersionState.LOADING)

    def put(self, served: ModelVersion) -> None:
        """Have a started version answer from now on, in place of another of the same number."""
        known = self._entries.setdefault(served.name, {})
        before = known.get(int(served.version))
        known[int(served.version)] = RegistryEntry(VersionState.READY, served)
        self._find_newest(served.name)
        if before is not None and before.served is not None:
            self._retire(before.served)

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Say why a version is not served; one that answers under its number goes on."""
        known = self._entries.setdefault(name, {})
        before = known.get(int(version))
        if before is not None and before.served is not None:
            known[int(version)] = RegistryEntry(
                VersionState.READY, before.served, f"serves what was there before: {reason}"
            )
        else:
            known[int(version)] = RegistryEntry(VersionState.UNAVAILABLE, None, reason)

    def confirm(self, name: str, version: str) -> None:
        """Say that what answers is what is there."""
        known = self._entries.get(name, {})
        if int(version) in known and known[int(version)].served is not None:
            known[int(version)] = RegistryEntry(VersionState.READY, known[int(version)].served)

    def remove(self, name: str, version: str) -> None:
        """Have a version answer no more; of a model without versions nothing is left."""
        entry = self._entries.get(name, {}).pop(int(version), None)
        if not self._entries.get(name, {0: entry}):
            del self._entries[name]
        self._find_newest(name)
        if entry is not None and entry.served is not None:
            self._retire(entry.served)

    def close(self) -> None:
        """End every version."""
        for served in self.all():
            served.close()

    def _find_newest(self, name: str) -> None:
        """Remember the version that requests get which name none: it is what most of them do."""
        answering = [entry.served for _, entry in sorted(self._entries.get(name, {}).items()) if entry.served]
        self._newest.pop(name, None)
        if answering:
            self._newest[name] = answering[-1]

    def _retire(self, served: ModelVersion) -> None:
        self._retiring.add(served)
        if served not in self._leases:
            self._end(served)

    def _end(self, served: ModelVersion) -> None:
        self._retiring.discard(served)
        served.close()
        self._retired(served)
