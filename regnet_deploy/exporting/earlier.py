"""What an export leaves of earlier ones: variants of the same weights that still hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.exporting.golden_set import GoldenSet
from regnet_deploy.exporting.onnx_variants import open_for_proof
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.proof import prove
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.serving.gates import Gate
from regnet_deploy.serving.golden import FILE as GOLDEN

Variants = dict[str, dict[str, Any]]


def earlier_variants(
    bundle: Bundle,
    golden: GoldenSet,
    preprocessing: Preprocessing,
    gates: Mapping[str, Gate],
    made: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, bytes],
    lost: Iterable[str],
    step: Callable[[str], None],
) -> tuple[Variants, list[str]]:
    """Return the bundle's other variants, and the files that nothing names any more.

    Where the golden set is a new one, proofs are made again on it; what cannot run here has none then.

    Args:
        bundle: as it was read.
        golden: the golden set of this export.
        preprocessing: of the bundle.
        gates: by the name of the precision.
        made: the variants of this export.
        files: its files by logical name.
        lost: names of variants that are to go.
        step: is told what is done next.

    Raises:
        ProofError: one does not agree with the new golden set.
    """
    before: Variants = bundle.parts.get("variants", {})
    gone = {*made, *lost}
    others = {name: one for name, one in before.items() if name not in gone and "engines" not in one}
    sources = {name: _sha256(one["file"], bundle, files) for name, one in {**others, **made}.items() if "file" in one}
    for name, one in before.items():
        engines = [
            each for each in one.get("engines", ()) if each["identity"]["onnx_sha256"] == sources.get(one["source"])
        ]
        if name not in gone and engines:
            others[name] = one | {"engines": engines}
    old = bundle.files.get(GOLDEN)
    if old is not None and old.sha256 != hashlib.sha256(golden.data).hexdigest():
        for name, variant in others.items():
            others[name] = _proved_again(bundle, name, variant, golden, preprocessing, gates, step)
    named = {file for one in (*others.values(), *made.values()) for file in files_of(one)}
    stale = [file for one in before.values() for file in files_of(one) if file not in named and file in bundle.files]
    return others, stale


def files_of(variant: Mapping[str, Any]) -> list[str]:
    """Return the logical names of a variant's files."""
    return [variant["file"]] if "file" in variant else [engine["file"] for engine in variant["engines"]]


def _sha256(file: str, bundle: Bundle, files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(files[file]).hexdigest() if file in files else bundle.files[file].sha256


def _proved_again(
    bundle: Bundle,
    name: str,
    variant: dict[str, Any],
    golden: GoldenSet,
    preprocessing: Preprocessing,
    gates: Mapping[str, Gate],
    step: Callable[[str], None],
) -> dict[str, Any]:
    note = "not proved on the present golden set"
    if "engines" in variant:
        engines = [one | {"proof": None, "note": f"{note}: export --trt again"} for one in variant["engines"]]
        return variant | {"engines": engines}
    step(f"{name}: proving on the new golden set")
    precision = PRECISIONS[variant["precision"]]
    session = open_for_proof(bundle.read(variant["file"]), precision, "cpu")
    proof = prove(name, session, golden.golden, preprocessing, gates[precision.name], precision.name)
    return variant | {"proof": proof}
