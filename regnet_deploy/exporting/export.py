"""Exports a bundle: golden set, ONNX variants and TensorRT engines, each judged; what is good is written at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.engines.identity import EngineIdentity, engine_unsupported_reason
from regnet_deploy.engines.library import Library, find_library
from regnet_deploy.errors import BundleError, DataError, MissingExtra, ProofError, RegnetDeployError, UsageError
from regnet_deploy.exporting.accuracy import reference_logits, undecided_drops, validation_set
from regnet_deploy.exporting.accuracy_gate import AccuracyGate, ensure_same_images
from regnet_deploy.exporting.calibration_images import CalibrationSet, calibration_set
from regnet_deploy.exporting.candidate_precisions import candidate_precisions
from regnet_deploy.exporting.engine_variants import make_engine_variant
from regnet_deploy.exporting.existing_variants import existing_engines, existing_variants
from regnet_deploy.exporting.golden_images import NewGoldenSet, make_golden_set
from regnet_deploy.exporting.model_source import ModelSource, load_model_source
from regnet_deploy.exporting.onnx_variants import LazyCalibration, Reporter, make_onnx_variants
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.state import ExportState, Variants
from regnet_deploy.exporting.training_folder import training_folder
from regnet_deploy.exporting.variant_choice import choose_variants, rejected_variants
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.profiling.machine import describe_machine, environment
from regnet_deploy.profiling.memory_limit import check_memory
from regnet_deploy.runtimes.golden_set import FILE as GOLDEN
from regnet_deploy.runtimes.runtime import installed_onnxruntime


@dataclass(frozen=True)
class ExportResult:
    """What came of an export.

    Attributes:
        bundle: as it was written.
        made: the variants that this export added or replaced.
        golden: the part ``golden``.
        left_out: files for the golden set that could not be used.
        choice: what ``auto`` decided, the part ``choice``; None where it was not asked for.
        refused: name of a variant -> why it is not in the bundle, for the caller to raise.
    """

    bundle: Bundle
    made: Variants
    golden: dict[str, Any]
    left_out: tuple[str, ...]
    choice: dict[str, Any] | None
    refused: dict[str, RegnetDeployError]


def export(path: str | Path, wish: ExportOptions, reporter: Reporter) -> ExportResult:
    """Export the bundle at ``path``.

    Every variant is judged before anything is written. One that is not good enough, or cannot be made, is left out: the
    others are written, and its error is in the result.

    Args:
        path: folder of the bundle.
        wish: what to export.
        reporter: is told how it goes.

    Raises:
        BundleError: missing, damaged, changed meanwhile or not writable.
        DataError: images for the golden set, the calibration or the validation cannot be used.
        MissingExtra: ONNX Runtime, which proves the variants, is not installed.
        UsageError: it is installed twice.
        ProofError: the fp32 variant does not agree with the model; nothing was written.
    """
    bundle = open_bundle(path)
    installed_onnxruntime()  # before the minutes that reference logits may take
    gpu = find_gpu()
    library, hindrance = _library(wish, gpu)
    source = load_model_source(bundle)
    if wish.auto:  # not after the hours that judging may take
        memory = describe_machine().memory_bytes
        check_memory(source.network, source.preprocessing.crop, max(wish.batches), memory)
    reporter.step("reference logits of the golden set")
    golden = make_golden_set(bundle, source.model, source.preprocessing, wish.images)
    folder = _folder(bundle, wish, reporter)
    judge = _judge(bundle, source, golden, folder, wish, reporter)
    images = partial(_calibration_images, bundle, source, judge, folder, wish, reporter)
    work = ExportState()
    _make_onnx(work, source, LazyCalibration(images, source, reporter), judge, wish, library, gpu, reporter)
    if hindrance is not None:
        work.refused["engines"] = hindrance
    elif library is not None:
        before = existing_engines(bundle, golden)
        _make_engines(work, before, source, library, gpu, judge, wish, reporter)
    choice = choose_variants(work, judge, wish, reporter) if wish.auto else None
    doubt = undecided_drops(work.accuracies(), wish.max_drop)
    if doubt:
        reporter.note(doubt)
    made = _with_accuracy(bundle, work)
    files = {GOLDEN: golden.data, **work.files()}
    earlier = existing_variants(
        bundle,
        golden,
        source.preprocessing,
        judge.gates,
        made,
        files,
        rejected_variants(choice, work.refused),
        lambda engine: _runs_here(engine, library, gpu),
        reporter.step,
    )
    for name in bundle.parts.get("variants", {}):
        if name not in made and name not in earlier.variants:
            reporter.note(f"{name} of an earlier export is removed")
    outdated = _outdated_choice(bundle, files) if choice is None else ()
    reporter.step("writing the bundle")
    parts = {"golden": golden.part, "variants": {**earlier.variants, **made}, "environment": environment("export")}
    if choice is not None:
        parts["choice"] = choice
    written = update_bundle(path, parts, files, drop=(*earlier.stale, *outdated), expect=bundle)
    # What lost an election is no error, and why is in its record; what was asked for and cannot be had is one.
    refused = {name: error for name, error in work.refused.items() if not wish.auto or _is_asked(wish, name)}
    return ExportResult(written, made, golden.part, golden.left_out, choice, {**refused, **earlier.refused})


def _library(wish: ExportOptions, gpu: Gpu | None) -> tuple[Library | None, RegnetDeployError | None]:
    """Return what builds engines, where they are wanted, or why nothing does."""
    if not wish.engines and not (wish.auto and gpu is not None):
        return None, None
    try:
        return find_library(gpu), None
    except (MissingExtra, UsageError) as error:
        return None, error if wish.engines else None


def _folder(bundle: Bundle, wish: ExportOptions, reporter: Reporter) -> ImageDataset | None:
    """Return the folder that was trained on, split as it was then; once, for all its files may have to be read."""
    if wish.data is None:
        return None
    reporter.step("validation images")
    return training_folder(wish.data, bundle, reporter.advance)


def _judge(
    bundle: Bundle,
    source: ModelSource,
    golden: NewGoldenSet,
    folder: ImageDataset | None,
    wish: ExportOptions,
    reporter: Reporter,
) -> AccuracyGate:
    validation = reference = None
    if folder is not None and wish.data is not None:
        validation = validation_set(folder, bundle, source.preprocessing, reporter.advance)
        reporter.step("the model on the validation images")
        reference = reference_logits(source.model, validation, reporter.advance)
        unreadable = validation.warning()
        if unreadable:
            reporter.note(unreadable)
        ensure_same_images(reference, bundle, wish.data, reporter.note)
    return AccuracyGate(golden.golden, source.preprocessing, wish.gates, validation, reference, wish.max_drop)


def _calibration_images(
    bundle: Bundle,
    source: ModelSource,
    judge: AccuracyGate,
    folder: ImageDataset | None,
    wish: ExportOptions,
    reporter: Reporter,
) -> CalibrationSet:
    given = folder if wish.calibration in (None, wish.data) else wish.calibration
    assert given is not None  # Wish refuses what would be quantised without
    return calibration_set(
        given,
        bundle,
        source.preprocessing,
        judge.golden.images,
        count=wish.calibration_images,
        seed=wish.seed,
        excluded=judge.reference.digests if judge.reference else (),
        advance=reporter.advance,
    )


def _make_onnx(
    work: ExportState,
    source: ModelSource,
    calibration: LazyCalibration,
    judge: AccuracyGate,
    wish: ExportOptions,
    library: Library | None,
    gpu: Gpu | None,
    reporter: Reporter,
) -> None:
    make = partial(
        make_onnx_variants,
        source,
        calibration=calibration,
        judge=judge,
        device=wish.device,
        reporter=reporter,
        pixels=wish.uint8,
    )

    named = {"fp32", *(precision.name for precision in wish.precisions)}

    def add(precision: Precision) -> None:
        # Of an election's candidates those that win are judged on all validation images, when they have won.
        made = make(precision, whole=not wish.auto or precision.name in named)
        work.onnx.update((one.name, one) for one in made)

    add(PRECISIONS["fp32"])
    tried = list(wish.precisions)
    if wish.auto:
        cuda = work.onnx["onnx-fp32"].session.device.startswith("cuda")
        tried += candidate_precisions(cuda=cuda, engines=library is not None and gpu is not None)
    for precision in dict.fromkeys(tried):
        if precision.name == "fp32":
            continue
        try:
            add(precision)
        except ProofError as error:
            work.refused[f"onnx-{precision.name}"] = error
        except (DataError, UsageError) as error:  # too few images to calibrate with, say
            if precision.name in named:
                raise
            work.refused[f"onnx-{precision.name}"] = error


def _make_engines(
    work: ExportState,
    before: Variants,
    source: ModelSource,
    library: Library,
    gpu: Gpu | None,
    judge: AccuracyGate,
    wish: ExportOptions,
    reporter: Reporter,
) -> None:
    for onnx in list(work.onnx.values()):
        precision = PRECISIONS[onnx.entry["precision"]]
        if onnx.entry["input"] != "float32" or not precision.for_engines:
            continue
        name = library.variant(precision.name)
        try:
            work.engines[name] = make_engine_variant(
                library,
                gpu,
                onnx,
                source,
                wish.options,
                before.get(name),
                judge,
                reporter,
                whole=not wish.auto,
                accept_unaccounted=wish.accept_unaccounted,
            )
        except RegnetDeployError as error:
            work.refused[name] = error


def _is_asked(wish: ExportOptions, name: str) -> bool:
    """Tell whether a variant was asked for by name, or is an engine where engines were."""
    if name.startswith("onnx-"):
        return name in {f"onnx-{precision.name}" for precision in wish.precisions}
    return wish.engines


def _outdated_choice(bundle: Bundle, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the part ``choice`` where what it tells of is not in the bundle any more, else nothing."""
    told = {one["variant"] for one in (bundle.parts.get("choice") or {"candidates": ()})["candidates"]}
    for name, one in bundle.parts.get("variants", {}).items():
        file = one.get("file")
        if name in told and file in files and bundle.files[file].sha256 != hashlib.sha256(files[file]).hexdigest():
            return ("choice",)
    return ()


def _with_accuracy(bundle: Bundle, work: ExportState) -> Variants:
    """Return what the manifest will say; what an earlier export measured of the same bytes is still true."""
    made, before = work.entries(), bundle.parts.get("variants", {})
    for name, one in work.onnx.items():
        known = before.get(name, {}).get("accuracy")
        stored = bundle.files.get(one.entry["file"])
        if known and stored and "accuracy" not in one.entry and stored.sha256 == hashlib.sha256(one.data).hexdigest():
            made[name] = one.entry | {"accuracy": known}
    return made


def _runs_here(engine: Mapping[str, Any], library: Library | None, gpu: Gpu | None) -> bool:
    """Tell whether an engine of the bundle is one of this machine's; what cannot be read is nobody's."""
    try:
        identity = EngineIdentity.from_json(engine["identity"])
    except BundleError:
        return True
    return library is not None and engine_unsupported_reason(identity, library, gpu) is None
