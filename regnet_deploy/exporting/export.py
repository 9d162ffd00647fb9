"""Exports a bundle in stages: source, golden set, gate, variants, choice, commit."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Choice, Manifest
from regnet_deploy.bundle.variants import Engine, OnnxVariant, OpenvinoVariant, Variant
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.engines.identity import engine_unsupported_reason
from regnet_deploy.engines.library import find_library
from regnet_deploy.errors import MissingExtra, ProofError, UsageError
from regnet_deploy.exporting.accuracy import reference_logits, undecided_drops
from regnet_deploy.exporting.accuracy_gate import AccuracyGate, check_reference_accuracy
from regnet_deploy.exporting.calibration import CalibrationSet, Calibrator, make_calibration_set
from regnet_deploy.exporting.existing_variants import existing_variants
from regnet_deploy.exporting.golden_images import NewGoldenSet, make_golden_set
from regnet_deploy.exporting.model_source import ModelSource, load_model_source
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.state import EngineBuilder, ExportContext, ExportResult, ExportState
from regnet_deploy.exporting.training_dataset import load_training_dataset
from regnet_deploy.exporting.validation import load_validation_set
from regnet_deploy.exporting.variant_choice import choose_variants, removed_names
from regnet_deploy.exporting.variants import make_variants
from regnet_deploy.images.dataset import ImageDataset
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.profiling.latency import check_memory
from regnet_deploy.profiling.machine import describe_machine, environment
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.golden_set import FILE as GOLDEN
from regnet_deploy.runtimes.openvino_session import installed_openvino
from regnet_deploy.runtimes.runtime import installed_onnxruntime


def export(path: str | Path, options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Export the bundle at ``path``.

    Every variant is evaluated before anything is written. A variant that is not accurate enough, or cannot be exported,
    is left out: the others are written, and its error is in the result.

    Args:
        path: folder of the bundle.
        options: what to export.
        progress: receives steps and messages.

    Raises:
        BundleError: the bundle is missing, damaged, changed meanwhile or not writable.
        DataError: images for the golden set, the calibration or the validation cannot be used.
        MissingExtra: ONNX Runtime, which runs the variants, is not installed.
        UsageError: it is installed twice, or a requested precision would change nothing in this network.
        ProofError: the fp32 variant does not agree with the model; nothing is written.
    """
    progress = progress or NoProgress()
    bundle = open_bundle(path)
    installed_onnxruntime()  # raises before the minutes that reference logits can take
    if options.openvino:
        installed_openvino()
    builder = _find_builder(options)

    source = load_model_source(bundle)
    for precision in options.precisions:
        source.check_has_effect(precision)
    if options.auto:
        memory = describe_machine().memory_bytes
        check_memory(source.network, source.preprocessing.crop, max(options.batches), memory)

    progress.step("reference logits of the golden set")
    golden = make_golden_set(bundle, source.model, source.preprocessing, options.images)

    dataset = _load_dataset(bundle, options, progress)
    gate = _make_gate(bundle, source, golden, dataset, options, progress)

    calibrator = Calibrator(lambda: _calibration_images(bundle, gate, dataset, options, progress), source, progress)
    context = ExportContext(bundle, options, source, golden, gate, calibrator, builder, progress)
    state = make_variants(context)

    choice = None
    if options.auto:
        state, choice = choose_variants(context, state)
    undecided = undecided_drops(state.accuracies, options.max_drop)
    if undecided:
        progress.message(undecided)

    return _commit(context, state, choice)


def _find_builder(options: ExportOptions) -> EngineBuilder:
    """Return what builds engines, if they are requested or ``auto`` can run them, or why nothing can."""
    gpu = find_gpu()
    if not options.engines and not (options.auto and gpu is not None):
        return EngineBuilder(None, gpu)
    try:
        return EngineBuilder(find_library(gpu), gpu)
    except (MissingExtra, UsageError) as error:
        return EngineBuilder(None, gpu, error if options.engines else None)


def _load_dataset(bundle: Bundle, options: ExportOptions, progress: Progress) -> ImageDataset | None:
    """Return the training dataset, split as training split it. It is loaded once, because all files may be read."""
    if options.data is None:
        return None
    progress.step("validation images")
    return load_training_dataset(options.data, bundle, progress)


def _make_gate(
    bundle: Bundle,
    source: ModelSource,
    golden: NewGoldenSet,
    dataset: ImageDataset | None,
    options: ExportOptions,
    progress: Progress,
) -> AccuracyGate:
    validation = reference = None
    if dataset is not None and options.data is not None:
        validation = load_validation_set(dataset, bundle, source.preprocessing, progress)
        progress.step("the model on the validation images")
        reference = reference_logits(source.model, validation, progress)
        unreadable = validation.check_unreadable()
        if unreadable:
            progress.message(unreadable)
        if len(validation.unreadable) > 1:  # one of them is in the line above
            for line in left_out_lines("of the validation images cannot be read", validation.unreadable):
                progress.message(line)
        check_reference_accuracy(reference, bundle, options.data, progress)
    return AccuracyGate(golden.golden, source.preprocessing, options.gates, validation, reference, options.max_drop)


def _calibration_images(
    bundle: Bundle, gate: AccuracyGate, dataset: ImageDataset | None, options: ExportOptions, progress: Progress
) -> CalibrationSet:
    given = dataset if options.calibration in (None, options.data) else options.calibration
    assert given is not None  # ExportOptions requires one of the folders for quantized precisions
    return make_calibration_set(
        given,
        bundle,
        gate.preprocessing,
        gate.golden.images,
        count=options.calibration_images,
        seed=options.seed,
        excluded=gate.reference.fingerprints if gate.reference else (),
        progress=progress,
    )


def _commit(context: ExportContext, state: ExportState, choice: Choice | None) -> ExportResult:
    """Write the variants, those of earlier exports that stay, the golden set and the choice at once."""
    bundle, options, golden, progress = context.bundle, context.options, context.golden, context.progress
    new = _with_known_accuracies(bundle, state)
    files = {GOLDEN: golden.data, **state.files}
    removed = removed_names(choice, state.rejected, remove_refused=options.remove_refused)
    existing = existing_variants(context, new, files, removed, lambda engine: _runs_here(engine, context.builder))
    for name in bundle.manifest.variants:
        if name not in new and name not in existing.variants:
            progress.message(f"{name} of an earlier export is removed")
    for name, error in state.rejected.items():
        if name in existing.variants and isinstance(error, ProofError):
            progress.message(
                f"{name} of an earlier export stays, with the gate that it passed then: --remove-refused removes it"
            )
    outdated = _outdated_choice(bundle, files, new) if choice is None else ()
    progress.step("writing the bundle")
    parts = Manifest(
        golden=golden.record,
        variants={**existing.variants, **new},
        choice=choice,
        environment=environment("export"),
    )
    written = update_bundle(bundle.path, parts, files, drop=(*existing.unused_files, *outdated), expect=bundle)
    # A candidate of `auto` that is not kept is no error, and its reason is in the choice; a requested variant is one.
    rejected = {name: error for name, error in state.rejected.items() if not options.auto or options.requests(name)}
    return ExportResult(written, new, golden.record, golden.skipped, choice, {**rejected, **existing.rejected})


def _with_known_accuracies(bundle: Bundle, state: ExportState) -> dict[str, Variant]:
    """Return the records of the variants; an accuracy that an earlier export measured for the same bytes is kept."""
    for name, one in state.onnx.items():
        before = bundle.manifest.variants.get(name)
        if not isinstance(before, OnnxVariant) or before.accuracy is None or one.accuracy is not None:
            continue
        if _has_bytes(bundle, one.file, one.data):
            state = state.with_accuracy(name, before.accuracy)
    for name, run in state.openvino.items():
        earlier = bundle.manifest.variants.get(name)
        if not isinstance(earlier, OpenvinoVariant) or earlier.accuracy is None or run.accuracy is not None:
            continue
        if (earlier.onnx_sha256, earlier.compute) == (run.variant.onnx_sha256, run.variant.compute):
            state = state.with_accuracy(name, earlier.accuracy)
    return {name: one.variant for name, one in state.variants.items()}


def _outdated_choice(bundle: Bundle, files: Mapping[str, bytes], new: Collection[str]) -> tuple[str, ...]:
    """Return the part ``choice`` if one of its candidates is replaced, or was refused and has passed now; else nothing.

    Args:
        bundle: as it was.
        files: new files by logical name.
        new: names of the new variants.
    """
    choice = bundle.manifest.choice
    for candidate in choice.candidates if choice else ():
        if candidate.result == "refused" and candidate.variant in new:
            return ("choice",)
        one = bundle.manifest.variants.get(candidate.variant)
        if isinstance(one, OnnxVariant) and one.file in files and not _has_bytes(bundle, one.file, files[one.file]):
            return ("choice",)
    return ()


def _has_bytes(bundle: Bundle, file: str, data: bytes) -> bool:
    stored = bundle.files.get(file)
    return stored is not None and stored.sha256 == hashlib.sha256(data).hexdigest()


def _runs_here(engine: Engine, builder: EngineBuilder) -> bool:
    """Tell whether an engine of the bundle is for this machine."""
    library, gpu = builder.library, builder.gpu
    return library is not None and engine_unsupported_reason(engine.identity, library, gpu) is None
