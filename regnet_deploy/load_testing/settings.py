"""Settings of a server that decide its speed, and which of them can be tried on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.measurements import ServerSetting, ServingRuntime
from regnet_deploy.bundle.variants import EngineVariant, OpenvinoVariant, Variant
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.runtimes.default_variant import not_default_reason, variant_unsupported_reason
from regnet_deploy.runtimes.runtime import Device, Runtime, find_variant


@dataclass(frozen=True)
class SearchSpace:
    """The settings to try; the others are compared with the first of each.

    Attributes:
        pairs: runtimes and variants.
        layouts: numbers of executors and of threads of each.
        max_batch: largest batch size.
        delays_ms: delays in the order in which they are tried, each if the one before was better.
    """

    pairs: Sequence[tuple[ServingRuntime, str]]
    layouts: Sequence[tuple[int, int]]
    max_batch: int = 32
    delays_ms: Sequence[float] = (1.0, 2.0, 5.0)


def serve_options(setting: ServerSetting) -> list[str]:
    """Return the options of `serve` for a setting."""
    words = {"runtime": setting.runtime, "variant": setting.variant, "executors": setting.executors}
    words |= {"threads": setting.threads, "batch": setting.batch, "max-delay": f"{setting.max_delay_ms:g}"}
    return [part for name, value in words.items() for part in (f"--{name}", str(value))]


def runnable_pairs(
    bundle: Bundle, variant: str | None = None, runtime: Runtime = "auto", device: Device = "auto"
) -> tuple[list[tuple[ServingRuntime, str]], dict[str, str]]:
    """Return the pairs of runtime and proved variant that can run here, and the reasons for the others.

    Args:
        bundle: an exported bundle.
        variant: only this variant.
        runtime: only this runtime; ``auto`` is each.
        device: device to run on.

    Returns:
        Pairs of runtime and variant, and ``variant by runtime`` -> the reason why it cannot be served.

    Raises:
        MissingPart: nothing has been exported.
        UsageError: there is no variant with this name, or nothing can be served.
    """
    variants = bundle.manifest.variants
    if not variants:
        raise MissingPart(
            f"{bundle.path} has no exported variants yet: run `regnet-deploy export --onnx{bundle.argument}`"
        )
    if variant is not None:
        find_variant(bundle, variant)
    pairs, refused = [], {}
    for name, one in variants.items():
        if variant not in (None, name):
            continue
        for candidate in get_args(ServingRuntime):
            if runtime not in ("auto", candidate) or (runtime == "auto" and not _is_way(bundle, name, one, candidate)):
                continue
            try:
                # A variant that is named may have been proved with a looser gate than that of its precision.
                unsupported = variant_unsupported_reason if variant else not_default_reason
                reason = unsupported(bundle, name, device, candidate)
            except UsageError as error:
                reason = str(error)
            if reason is None:
                pairs.append((candidate, name))
            else:
                refused[f"{name} by {candidate}"] = reason
    if not pairs:
        listed = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UsageError(f"no variant of {bundle.path} can be served here - {listed}")
    return pairs, refused


def _is_way(bundle: Bundle, name: str, variant: Variant, runtime: ServingRuntime) -> bool:
    """Tell whether a runtime is one for a variant, and no other variant is the same way to run the network."""
    if isinstance(variant, EngineVariant):
        return runtime == "tensorrt"
    if isinstance(variant, OpenvinoVariant):
        return runtime == "openvino"
    if runtime == "openvino":
        choice = bundle.manifest.choice
        own = name.replace("onnx-", "openvino-", 1)
        # A candidate of `export` was proved and measured as such: it is in the bundle, or was slower or refused.
        candidates = {one.variant for one in choice.candidates} if choice else set()
        return own not in bundle.manifest.variants and own.removesuffix("-uint8") not in candidates
    return runtime == "onnxruntime"


def executor_layouts(cores: int, max_executors: int | None = None) -> list[tuple[int, int]]:
    """Return numbers of executors and of threads of each to try: from one executor with all cores to one per core.

    Two layouts leave one core to the rest of the server.

    Args:
        cores: number of cores that this process may use.
        max_executors: maximum number of executors; by default the number of cores.
    """
    counts = {1, cores, *(count for count in (2, 4, 8, 16, 32) if count < cores)}
    full = [(count, max(1, cores // count)) for count in sorted(counts)]
    spare = [(1, max(1, cores - 1)), (max(1, cores - 1), 1)]
    found = dict.fromkeys([*full, *spare])
    return [layout for layout in found if layout[0] <= (max_executors or cores)]
