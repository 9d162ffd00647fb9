"""What an export leaves of earlier ones: variants of the same weights that still hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.engines.bundle_engines import is_engine
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting.golden_images import NewGoldenSet
from regnet_deploy.exporting.onnx_variants import open_for_proof
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.proof import prove
from regnet_deploy.images.preprocessing import Preprocessing
from regnet_deploy.runtimes.gates import Gate, gate_of
from regnet_deploy.runtimes.golden_set import FILE as GOLDEN

Variants = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ExistingVariants:
    """What is left.

    Attributes:
        variants: the bundle's other variants.
        stale: logical names of files that nothing names any more.
        refused: name of a variant -> why it goes: it does not agree with the model on the new golden set.
    """

    variants: Variants
    stale: tuple[str, ...]
    refused: dict[str, ProofError]


def existing_variants(
    bundle: Bundle,
    golden: NewGoldenSet,
    preprocessing: Preprocessing,
    gates: Mapping[str, Gate],
    made: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, bytes],
    lost: Collection[str],
    runs_here: Callable[[Mapping[str, Any]], bool],
    step: Callable[[str], None],
) -> ExistingVariants:
    """Return what the bundle has beside this export.

    Where the golden set is a new one, proofs are made again on it; what cannot run here has none then. What an election
    on this machine took out goes, but not the engines that others need, nor the ONNX file that those are built from.

    Args:
        bundle: as it was read.
        golden: the golden set of this export.
        preprocessing: of the bundle.
        gates: by the name of the precision.
        made: the variants of this export.
        files: its files by logical name.
        lost: names of variants that lost here.
        runs_here: tells of an engine's entry whether it is one of this machine's.
        step: is told what is done next.
    """
    before: Variants = bundle.parts.get("variants", {})
    engines: Variants = {}
    for name, one in existing_engines(bundle, golden).items():
        left = [each for each in one["engines"] if name not in lost or not runs_here(each)]
        if name not in made and left:
            engines[name] = one | {"engines": left}
    needed = {one["source"] for one in engines.values()}
    others: Variants = {}
    refused: dict[str, ProofError] = {}
    for name, one in before.items():
        if is_engine(one) or name in made or (name in lost and name not in needed):
            continue
        try:
            others[name] = _proved(bundle, name, one, golden, preprocessing, gates, step)
        except ProofError as error:
            refused[name] = error
    sources = {name: _sha256(one["file"], bundle, files) for name, one in {**others, **made}.items() if "file" in one}
    for name, one in engines.items():
        left = [each for each in one["engines"] if each["identity"]["onnx_sha256"] == sources.get(one["source"])]
        if left:
            others[name] = one | {"engines": left}
    named = {file for one in (*others.values(), *made.values()) for file in files_of(one)}
    stale = [file for one in before.values() for file in files_of(one) if file not in named and file in bundle.files]
    return ExistingVariants(others, tuple(stale), refused)


def existing_engines(bundle: Bundle, golden: NewGoldenSet) -> Variants:
    """Return the variants of engines as the bundle has them, without proofs where the golden set is a new one."""
    engines = {name: one for name, one in bundle.parts.get("variants", {}).items() if is_engine(one)}
    if not _is_new(bundle, golden):
        return engines
    unproved = {"proof": None, "note": "not proved on the present golden set: export --trt or engines --build again"}
    return {name: one | {"engines": [each | unproved for each in one["engines"]]} for name, one in engines.items()}


def files_of(variant: Mapping[str, Any]) -> list[str]:
    """Return the logical names of a variant's files."""
    return [variant["file"]] if "file" in variant else [engine["file"] for engine in variant["engines"]]


def _sha256(file: str, bundle: Bundle, files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(files[file]).hexdigest() if file in files else bundle.files[file].sha256


def _is_new(bundle: Bundle, golden: NewGoldenSet) -> bool:
    old = bundle.files.get(GOLDEN)
    return old is not None and old.sha256 != hashlib.sha256(golden.data).hexdigest()


def _proved(
    bundle: Bundle,
    name: str,
    variant: dict[str, Any],
    golden: NewGoldenSet,
    preprocessing: Preprocessing,
    gates: Mapping[str, Gate],
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Return an ONNX variant with a proof on the present golden set."""
    if not _is_new(bundle, golden):
        return variant
    gate_of(variant["precision"])  # a later version's is refused here
    step(f"{name}: proving on the new golden set")
    precision = PRECISIONS[variant["precision"]]
    session = open_for_proof(bundle.read(variant["file"]), precision, "cpu")
    proof = prove(name, session, golden.golden, preprocessing, gates[precision.name], precision.name)
    return variant | {"proof": proof}
