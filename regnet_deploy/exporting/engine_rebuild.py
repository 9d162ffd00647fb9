"""Engines for this machine from the ONNX files that another machine exported, proved here. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.engines.bundle_engines import add_engine, engine_variants, find_engine_variant, remaining_files
from regnet_deploy.engines.engine_builder import rebuild_engine
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import RegnetDeployError, UsageError
from regnet_deploy.exporting.proof import prove
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.runtimes.default_variant import needs_engine_build
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import load_golden


@dataclass(frozen=True)
class RebuildResult:
    """What came of it: the bundle as it is now, the engines that were added, and why others were not, by variant."""

    bundle: Bundle
    made: dict[str, dict[str, Any]]
    refused: dict[str, RegnetDeployError]


def rebuild_engines(
    path: str | Path, step: Callable[[str], None], phase: Callable[[int, str], None], note: Callable[[str], None]
) -> RebuildResult:
    """Build every engine that a bundle has for other machines and not for this one, prove it, and add it.

    Args:
        path: folder of the bundle.
        step: is told what is done next.
        phase: is told the phases of a build.
        note: is told what did not work and is not needed, in a line.

    Raises:
        BundleError: missing, damaged, changed meanwhile or not writable.
        MissingPart: there is no golden set to prove engines on.
    """
    bundle = open_bundle(path)
    golden, preprocessing = load_golden(bundle), Preprocessing.from_json(bundle.part("preprocessing"))
    variants: dict[str, dict[str, Any]] = dict(bundle.part("variants"))
    made: dict[str, dict[str, Any]] = {}
    refused: dict[str, RegnetDeployError] = {}
    files: dict[str, bytes] = {}
    for name in engine_variants(bundle):
        if not needs_engine_build(bundle, name):
            continue
        step(f"{name}: building")
        try:
            engine = rebuild_engine(bundle, name, find_gpu(), phase, note)
            if engine.session is None:
                raise UsageError(f"{name} was built and is not added: {engine.entry['note']}")
            step(f"{name}: proving on {engine.session.device}")
            precision = find_engine_variant(bundle, name)["precision"]
            proof = prove(name, engine.session, golden, preprocessing, gate_of(precision), precision)
            engine.entry["proof"] = proof
        except RegnetDeployError as error:
            refused[name] = error
            continue
        variants[name] = add_engine(variants[name], engine.entry)
        files[engine.entry["file"]], made[name] = engine.plan, engine.entry
    if made:
        bundle = update_bundle(
            path, {"variants": variants}, files, drop=remaining_files(bundle, variants), expect=bundle
        )
    return RebuildResult(bundle, made, refused)
