"""Which models a server serves, and how it runs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_version import ServeOptions
from regnet_deploy.serving.version_policy import VersionPolicies, parse_version_policies


@dataclass(frozen=True)
class CoreSettings:
    """Settings of a server that do not depend on how its clients reach it.

    Attributes:
        name: of the model where a bundle is served.
        options: how to run the models.
        limits: what clients may ask for.
        decoders: processes that decode images; None: one for each core.
        poll_s: seconds between two looks for new versions; 0: none after the start.
        versions: which versions of the models are served, such as ``latest:2`` or ``cats=3,5``; empty: all.
        ready: models that must answer where the server is ready: ``any``, ``all``, or the name of one.

    Raises:
        UsageError: a version policy is malformed.
    """

    name: str = "regnet"
    options: ServeOptions = field(default_factory=ServeOptions)
    limits: Limits = field(default_factory=Limits)
    decoders: int | None = None
    poll_s: float = 5.0
    versions: tuple[str, ...] = ()
    ready: str = "any"

    def __post_init__(self) -> None:
        """Check the version policies."""
        parse_version_policies(self.versions)

    @property
    def policies(self) -> VersionPolicies:
        """Which versions of each model are served."""
        return parse_version_policies(self.versions)
