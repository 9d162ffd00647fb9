"""Variants of earlier exports of the same weights: which of them stay in the bundle beside those of a new export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import (
    Engine,
    EngineVariant,
    OnnxVariant,
    OpenvinoVariant,
    TensorrtRtxVariant,
    TensorrtVariant,
    Variant,
)
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import MissingExtra, ProofError, UsageError
from regnet_deploy.exporting.golden_images import NewGoldenSet
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.proof import open_for_proof, prove
from regnet_deploy.exporting.state import ExportContext
from regnet_deploy.runtimes.gates import gate_to_serve
from regnet_deploy.runtimes.golden_set import FILE as GOLDEN
from regnet_deploy.runtimes.openvino_session import open_by_openvino

#: Note of a variant of OpenVINO that was proved on another golden set.
_UNPROVED = "not proved on the present golden set: export --openvino again"

EngineVariants = dict[str, TensorrtVariant | TensorrtRtxVariant]


@dataclass(frozen=True)
class ExistingVariants:
    """The variants of earlier exports.

    Attributes:
        variants: those that stay.
        unused_files: logical names of files that no variant refers to any more.
        rejected: name of a variant that is removed -> why it does not agree with the model on the new golden set.
    """

    variants: dict[str, Variant]
    unused_files: tuple[str, ...]
    rejected: dict[str, ProofError]


def existing_variants(
    context: ExportContext,
    new: Mapping[str, Variant],
    files: Mapping[str, bytes],
    removed: Collection[str],
    runs_here: Callable[[Engine], bool],
) -> ExistingVariants:
    """Return the bundle's other variants.

    If the golden set is a new one, ONNX variants are proved again, with the gate of this export or the one that they
    passed before, whichever is looser, and removed where they fail; so are variants of OpenVINO where it computes their
    types here. Engines, and variants of OpenVINO that do not run here, lose their proof. A removed variant stays if an
    engine of another machine needs it: its engines for other machines, and the ONNX file that they are built from. A
    variant of OpenVINO goes with the file that it was proved with.

    Args:
        context: of the export.
        new: the variants of this export.
        files: their files by logical name.
        removed: names of variants that this export removes on this machine.
        runs_here: tells whether an engine is one for this machine.
    """
    bundle, golden = context.bundle, context.golden
    before = bundle.manifest.variants
    engines: EngineVariants = {}
    for name, variant in stored_engines(bundle, golden).items():
        left = tuple(engine for engine in variant.engines if name not in removed or not runs_here(engine))
        if name not in new and left:
            engines[name] = variant.replace(engines=left)
    in_openvino = {
        name: one
        for name, one in before.items()
        if isinstance(one, OpenvinoVariant) and name not in new and name not in removed
    }
    sources = {variant.source for variant in (*engines.values(), *in_openvino.values())}
    variants: dict[str, Variant] = {}
    rejected: dict[str, ProofError] = {}
    for name, one in before.items():
        if not isinstance(one, OnnxVariant) or name in new or (name in removed and name not in sources):
            continue
        try:
            variants[name] = _proved_again(context, name, one) if _is_new(bundle, golden) else one
        except ProofError as error:
            rejected[name] = error
    onnx = {
        name: _sha256(one.file, bundle, files)
        for name, one in {**variants, **new}.items()
        if isinstance(one, OnnxVariant)
    }
    for name, variant in engines.items():
        left = tuple(engine for engine in variant.engines if engine.identity.onnx_sha256 == onnx.get(variant.source))
        if left:
            variants[name] = variant.replace(engines=left)
    for name, run in in_openvino.items():
        if run.onnx_sha256 != onnx.get(run.source):
            continue
        try:
            variants[name] = _proved_again_in_openvino(context, name, run) if _is_new(bundle, golden) else run
        except ProofError as error:
            rejected[name] = error
    used = {file for one in (*variants.values(), *new.values()) for file in files_of(one)}
    unused = [file for one in before.values() for file in files_of(one) if file not in used and file in bundle.files]
    return ExistingVariants(variants, tuple(unused), rejected)


def stored_engines(bundle: Bundle, golden: NewGoldenSet) -> EngineVariants:
    """Return the bundle's variants of engines, without proofs if the golden set is a new one."""
    stored = bundle.manifest.variants.items()
    engines: EngineVariants = {
        name: one for name, one in stored if isinstance(one, TensorrtVariant | TensorrtRtxVariant)
    }
    if not _is_new(bundle, golden):
        return engines
    note = "not proved on the present golden set: export --trt or engines --build again"
    return {
        name: one.replace(engines=tuple(engine.replace(proof=None, note=note) for engine in one.engines))
        for name, one in engines.items()
    }


def files_of(variant: Variant) -> list[str]:
    """Return the logical names of a variant's files."""
    if isinstance(variant, EngineVariant):
        return [engine.file for engine in variant.engines]
    return [variant.file] if isinstance(variant, OnnxVariant) else []


def _sha256(file: str, bundle: Bundle, files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(files[file]).hexdigest() if file in files else bundle.files[file].sha256


def _is_new(bundle: Bundle, golden: NewGoldenSet) -> bool:
    stored = bundle.files.get(GOLDEN)
    return stored is not None and stored.sha256 != hashlib.sha256(golden.data).hexdigest()


def _proved_again(context: ExportContext, name: str, variant: OnnxVariant) -> OnnxVariant:
    """Return an ONNX variant with a proof on the new golden set."""
    passed = gate_to_serve(variant.precision, variant.proof)  # raises for a precision of a later version
    context.progress.step(f"{name}: proving on the new golden set")
    precision, gate = PRECISIONS[variant.precision], context.gate
    session = open_for_proof(context.bundle.read(variant.file), precision, "cpu")
    limits = gate.gates[precision.name].looser(passed)
    proof = prove(name, session, gate.golden, gate.preprocessing, limits, precision.name)
    return variant.replace(proof=proof)


def _proved_again_in_openvino(context: ExportContext, name: str, variant: OpenvinoVariant) -> OpenvinoVariant:
    """Return a variant of OpenVINO with a proof on the new golden set, or without one where it does not run here."""
    gate, precision = context.gate, PRECISIONS[variant.precision]
    limits = gate.gates[precision.name].looser(gate_to_serve(variant.precision, variant.proof))
    context.progress.step(f"{name}: proving on the new golden set")
    source = context.bundle.manifest.variants[variant.source]
    assert isinstance(source, OnnxVariant)  # its file is among those of the bundle
    data = context.bundle.read(source.file)
    try:
        session = open_by_openvino(data, threads=available_cores(), compute=variant.compute)
    except (MissingExtra, UsageError):
        return variant.replace(proof=None, note=_UNPROVED)
    proof = prove(name, session, gate.golden, gate.preprocessing, limits, precision.name)
    return variant.replace(proof=proof, note=None)
