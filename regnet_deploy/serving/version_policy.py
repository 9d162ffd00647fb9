"""Which versions of a model are served; the choices are those of Triton's ``version_policy``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from regnet_deploy.errors import UsageError

_VERSIONS = re.compile(r"[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})*\Z")
_LATEST = re.compile(r"latest(:([1-9][0-9]{0,5}))?\Z")


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are served; by default all.

    Attributes:
        latest: number of versions, the newest that can be served; None: no limit.
        named: the versions that are served; None: not limited to some.
    """

    latest: int | None = None
    named: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the field ``version_policy`` of Triton's model configuration."""
        if self.latest is not None:
            return {"latest": {"num_versions": self.latest}}
        if self.named is not None:
            return {"specific": {"versions": list(self.named)}}
        return {"all": {}}


ALL_VERSIONS = VersionPolicy()


@dataclass(frozen=True)
class VersionPolicies:
    """The policy of each model.

    Attributes:
        default: of models without one of their own.
        models: name of a model -> its policy.
    """

    default: VersionPolicy = ALL_VERSIONS
    models: Mapping[str, VersionPolicy] = field(default_factory=dict)

    def of(self, model: str) -> VersionPolicy:
        """Return the policy of a model."""
        return self.models.get(model, self.default)


def parse_version_policies(texts: Iterable[str]) -> VersionPolicies:
    """Return the policies that texts such as ``latest:2``, ``all``, ``3,5`` or ``cats=latest:1`` name.

    Raises:
        UsageError: one of them is malformed, or two are for the same models.
    """
    policies: dict[str | None, VersionPolicy] = {}
    for text in texts:
        model, equals, policy = text.rpartition("=")
        key = model if equals else None
        if key in policies:
            of = "all models" if key is None else f"model {key}"
            raise UsageError(f"--versions has two policies of {of}: name all its versions in one, such as 3,5")
        policies[key] = _parse(text, policy)
    default = policies.pop(None, ALL_VERSIONS)
    return VersionPolicies(default, {name: policy for name, policy in policies.items() if name is not None})


def _parse(text: str, policy: str) -> VersionPolicy:
    latest = _LATEST.match(policy)
    if text.startswith("=") or not (policy == "all" or latest or _VERSIONS.match(policy)):
        raise UsageError(
            f"--versions must be all, latest:N or versions such as 3,5, or MODEL= and one of these, not {text[:80]!r}"
        )
    if policy == "all":
        return ALL_VERSIONS
    if latest:
        return VersionPolicy(latest=int(latest[2] or 1))
    return VersionPolicy(named=tuple(sorted({int(number) for number in policy.split(",")})))
