"""What a server can be told to do its work with: which runtime and variant, how many at a time, in which batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.engines.bundle_engines import is_engine
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.runtime import RUNTIMES, Device, Runtime, find_variant

#: Batch and delay with which runtimes, variants and executors are compared: some room for a queue, no waiting.
FIRST_BATCH, FIRST_DELAY_MS = 4, 0.0


@dataclass(frozen=True)
class ServerSetting:
    """One setting of `serve`, in the form in which it stands in a bundle.

    Attributes:
        runtime: who runs the variant, never ``auto``.
        variant: its name.
        executors: inferences at a time.
        threads: of each.
        batch: most images of an inference.
        max_delay_ms: that an image waits for others at most.
    """

    runtime: str
    variant: str
    executors: int
    threads: int
    batch: int = FIRST_BATCH
    max_delay_ms: float = FIRST_DELAY_MS

    def options(self) -> list[str]:
        """Return the options of `serve`."""
        words = {"runtime": self.runtime, "variant": self.variant, "executors": self.executors}
        words |= {"threads": self.threads, "batch": self.batch, "max-delay": f"{self.max_delay_ms:g}"}
        return [part for name, value in words.items() for part in (f"--{name}", str(value))]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        delay = f"waiting {self.max_delay_ms:g} ms at most" if self.max_delay_ms else "no waiting"
        return (
            f"{self.variant} by {self.runtime}, {self.executors} x {self.threads} threads, batches of up to "
            f"{self.batch}, {delay}"
        )


def runnable_pairs(
    bundle: Bundle, variant: str | None = None, runtime: Runtime = "auto", device: Device = "auto"
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return who can run which proved variant here, and why others cannot.

    Args:
        bundle: that has been exported.
        variant: the only one to look at.
        runtime: the only one to look at; ``auto`` is each.
        device: where it is to run.

    Returns:
        Pairs of runtime and variant, and ``variant by runtime`` -> why it is not one of them.

    Raises:
        MissingPart: nothing has been exported.
        UsageError: no variant of this name, or none is left.
    """
    variants: Mapping[str, dict[str, Any]] = bundle.parts.get("variants") or {}
    if not variants:
        raise MissingPart(
            f"{bundle.path} has no exported variants yet: run `regnet-deploy export --onnx {bundle.path}`"
        )
    if variant is not None:
        find_variant(bundle, variant)
    pairs, refused = [], {}
    for name, one in variants.items():
        if variant not in (None, name):
            continue
        alone = replace(bundle, parts={**bundle.parts, "variants": {name: one}})
        for who in RUNTIMES[1:]:
            if runtime not in ("auto", who) or (runtime == "auto" and is_engine(one) != (who == "tensorrt")):
                continue
            try:
                # One that is asked for may be proved with a looser gate than is its precision's.
                default_variant(bundle if variant else alone, variant, device=device, runtime=who)  # type: ignore[arg-type]
            except UsageError as error:
                refused[f"{name} by {who}"] = str(error)
            else:
                pairs.append((who, name))
    if not pairs:
        raise UsageError(f"nothing of {bundle.path} can be served here - {'; '.join(refused.values())}")
    return pairs, refused


def executor_layouts(cores: int, most_executors: int | None = None) -> list[tuple[int, int]]:
    """Return executors and threads of each that are worth a try: all cores in one to one core each, and a core left.

    Args:
        cores: that this process may use.
        most_executors: of a layout; by default as many as cores.
    """
    counts = {1, cores, *(count for count in (2, 4, 8, 16, 32) if count < cores)}
    full = [(count, max(1, cores // count)) for count in sorted(counts)]
    spare = [(1, max(1, cores - 1)), (max(1, cores - 1), 1)]
    found = dict.fromkeys([*full, *spare])
    return [layout for layout in found if layout[0] <= (most_executors or cores)]
