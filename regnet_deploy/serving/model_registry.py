"""The models of a server and their versions: found by name, leased to requests, replaced while requests run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from regnet_deploy.runtimes.golden_set import Agreement
from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.model_repository import MODEL_NAME
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
        agreement: with its golden set, where it answers.
    """

    state: VersionState
    model: ModelVersion | None = None
    reason: str = ""
    agreement: Agreement | None = None


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

    def __init__(self, on_retired: Callable[[ModelVersion], None] = lambda model: None, ready: str = "any") -> None:
        """Create an empty registry.

        Args:
            on_retired: is called with each version that has ended.
            ready: models that must answer where the server is ready: ``any``, ``all``, or the name of one.
        """
        self._policy = ready
        self._entries: dict[str, dict[int, RegistryEntry]] = {}
        self._unusable: dict[tuple[str, str | None], str] = {}
        self._newest: dict[str, ModelVersion] = {}
        self._leases: dict[ModelVersion, int] = {}
        self._retiring: set[ModelVersion] = set()
        self._on_retired = on_retired

    def names(self) -> list[str]:
        """Return the models' names, in the order in which they were added; those that cannot be opened at the end."""
        unusable = [name for name, _ in self._unusable if MODEL_NAME.match(name)]
        return list(dict.fromkeys((*self._entries, *unusable)))

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that answer, oldest first."""
        return [str(number) for number, entry in sorted(self._entries.get(name, {}).items()) if entry.model]

    def all(self) -> list[ModelVersion]:
        """Return every version that answers."""
        return [entry.model for known in self._entries.values() for _, entry in sorted(known.items()) if entry.model]

    def served(self) -> list[tuple[ModelVersion, Agreement]]:
        """Return every version that answers, with its agreement with its golden set."""
        entries = [entry for known in self._entries.values() for _, entry in sorted(known.items())]
        return [(entry.model, entry.agreement) for entry in entries if entry.model and entry.agreement]

    def ready(self) -> bool:
        """Return whether the models that must answer do."""
        return self.unready_reason() is None

    def unready_reason(self) -> str | None:
        """Return why the models that must answer do not; None: they do.

        A model answers while one of its versions does. One that is being loaded for the first time does not count: else
        each new model would make a server unready that answers for the others.
        """
        if self._policy not in ("any", "all"):
            return None if self.versions(self._policy) else f"model {self._policy} is not ready"
        if not self._newest:
            return "no model is ready"
        ill = {entry["name"] for entry in self.index() if entry["reason"]} - self._newest.keys()
        if self._policy == "any" or not ill:
            return None
        return f"{len(ill)} of {len(ill) + len(self._newest)} models are not ready"

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
            if name in self.names():
                raise RequestError(f"no version of model {name} is ready", 503)
            raise RequestError(f"unknown model {name[:80]!r}; this server has {', '.join(self.names())}", status)
        answering = self.versions(name)
        if version is None:
            if not answering:
                raise RequestError(f"no version of model {name} is ready", 503)
            version = answering[-1]
        entry = known.get(int(version)) if version.isascii() and version.isdigit() and len(version) < 19 else None
        if entry is None and (name, version) in self._unusable:
            raise RequestError(f"version {version} of model {name} is not ready", 503)
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
        """Return the repository index: name, version, state and reason of every version.

        A model that cannot be opened as a whole has no version.
        """
        index = []
        for name, known in self._entries.items():
            for number, entry in sorted(known.items()):
                problem = self._unusable.get((name, str(number))) or self._unusable.get((name, None)) or ""
                if problem and entry.model is not None:
                    problem = f"still serves the version before: {problem}"
                index.append(_entry(name, str(number), entry.state, problem or entry.reason))
        for (name, version), reason in self._unusable.items():
            known = self._entries.get(name, {})
            if int(version) not in known if version is not None else not known:
                index.append(_entry(name, version, VersionState.UNAVAILABLE, reason))
        return index

    def set_unusable(self, reasons: Mapping[tuple[str, str | None], str]) -> None:
        """Note why paths that are meant for a model, or a version of it, cannot be opened; what answers goes on."""
        self._unusable = dict(reasons)

    def loading(self, name: str, version: str) -> None:
        """Note that a version is being loaded; one that answers goes on answering."""
        known = self._entries.setdefault(name, {})
        before = known.get(int(version), RegistryEntry(VersionState.LOADING))
        if before.model is None:
            known[int(version)] = replace(before, state=VersionState.LOADING)

    def put(self, model: ModelVersion, agreement: Agreement | None = None) -> None:
        """Add a started version, in place of one with the same number."""
        known = self._entries.setdefault(model.name, {})
        before = known.get(int(model.version))
        known[int(model.version)] = RegistryEntry(VersionState.READY, model, "", agreement)
        self._find_newest(model.name)
        if before is not None and before.model is not None:
            self._retire(before.model)

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Note why a version is not served; one that answers under this number goes on answering."""
        known = self._entries.setdefault(name, {})
        before = known.get(int(version))
        if before is not None and before.model is not None:
            known[int(version)] = replace(before, reason=f"still serves the version before: {reason}")
        else:
            known[int(version)] = RegistryEntry(VersionState.UNAVAILABLE, None, reason)

    def confirm(self, name: str, version: str) -> None:
        """Note that the version that answers is the one on disk."""
        known = self._entries.get(name, {})
        if int(version) in known and known[int(version)].model is not None:
            known[int(version)] = replace(known[int(version)], reason="")

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


def _entry(name: str, version: str | None, state: VersionState, reason: str) -> dict[str, str]:
    numbered = {} if version is None else {"version": version}
    return {"name": name, **numbered, "state": state.value, "reason": reason}
