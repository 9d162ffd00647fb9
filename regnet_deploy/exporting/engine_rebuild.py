"""Builds engines for this machine from ONNX files that another machine exported, and proves them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Manifest
from regnet_deploy.bundle.variants import Engine, EngineVariant
from regnet_deploy.engines.bundle_engines import unused_plans
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
    """The bundle as it is now, the added engines, and the errors of the others, both by the name of the variant."""

    bundle: Bundle
    built: dict[str, Engine]
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
    golden, preprocessing = load_golden(bundle), bundle.preprocessing
    variants, built = dict(bundle.variants), dict[str, Engine]()
    rejected: dict[str, RegnetDeployError] = {}
    files: dict[str, bytes] = {}
    for name, variant in bundle.variants.items():
        if not isinstance(variant, EngineVariant) or not needs_engine_build(bundle, name):
            continue
        progress.step(f"{name}: building")
        try:
            rebuilt = rebuild_engine(bundle, name, find_gpu(), progress)
            engine = rebuilt.engine
            if rebuilt.session is None:
                raise UsageError(f"{name} was built and is not added: {engine.note}")
            progress.step(f"{name}: proving on {rebuilt.session.device}")
            gate = gate_of(variant.precision)
            proof = prove(name, rebuilt.session, golden, preprocessing, gate, variant.precision)
        except RegnetDeployError as error:
            rejected[name] = error
            continue
        built[name] = engine.replace(proof=proof)
        variants[name] = variant.with_engine(built[name])
        files[engine.file] = rebuilt.plan
    if built:
        unused = unused_plans(bundle, variants)
        bundle = update_bundle(path, Manifest(variants=variants), files, drop=unused, expect=bundle)
    return RebuildResult(bundle, built, rejected)
