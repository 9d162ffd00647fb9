"""Builds engines for this machine from ONNX files that another machine exported, and proves them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.engines.bundle_engines import add_engine, engine_variants, find_engine_variant, remaining_files
from regnet_deploy.engines.engine_builder import rebuild_engine
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.errors import RegnetDeployError, UsageError
from regnet_deploy.exporting.proof import prove
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.default_variant import needs_engine_build
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import load_golden


@dataclass(frozen=True)
class RebuildResult:
    """The bundle as it is now, the entries of the added engines, and the errors of the others, both by variant."""

    bundle: Bundle
    built: dict[str, dict[str, Any]]
    rejected: dict[str, RegnetDeployError]


def rebuild_engines(path: str | Path, progress: Progress | None = None) -> RebuildResult:
    """Build, prove and add every engine that a bundle has for other machines and not for this one.

    Args:
        path: folder of the bundle.
        progress: receives the steps and the phases of each build.

    Raises:
        BundleError: the bundle is missing, damaged, changed meanwhile or not writable.
        MissingPart: it has no golden set, so that engines cannot be proved.
    """
    progress = progress or NoProgress()
    bundle = open_bundle(path)
    golden, preprocessing = load_golden(bundle), Preprocessing.from_json(bundle.part("preprocessing"))
    variants: dict[str, dict[str, Any]] = dict(bundle.part("variants"))
    built: dict[str, dict[str, Any]] = {}
    rejected: dict[str, RegnetDeployError] = {}
    files: dict[str, bytes] = {}
    for name in engine_variants(bundle):
        if not needs_engine_build(bundle, name):
            continue
        progress.step(f"{name}: building")
        try:
            engine = rebuild_engine(
                bundle,
                name,
                find_gpu(),
                lambda steps, phase: progress.update(0, note=f"{phase} ({steps})"),
                progress.message,
            )
            if engine.session is None:
                raise UsageError(f"{name} was built and is not added: {engine.entry['note']}")
            progress.step(f"{name}: proving on {engine.session.device}")
            precision = find_engine_variant(bundle, name)["precision"]
            proof = prove(name, engine.session, golden, preprocessing, gate_of(precision), precision)
            engine.entry["proof"] = proof
        except RegnetDeployError as error:
            rejected[name] = error
            continue
        variants[name] = add_engine(variants[name], engine.entry)
        files[engine.entry["file"]], built[name] = engine.plan, engine.entry
    if built:
        bundle = update_bundle(
            path, {"variants": variants}, files, drop=remaining_files(bundle, variants), expect=bundle
        )
    return RebuildResult(bundle, built, rejected)
