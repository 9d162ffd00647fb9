"""Exports a bundle: golden set, ONNX variants and TensorRT engines, each judged; what is good is written at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.cores import available_cores
from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.engines.library import Library, find_library
from regnet_deploy.errors import DataError, MissingExtra, ProofError, RegnetDeployError, UsageError
from regnet_deploy.exporting.accuracy import reference_of, validation_of
from regnet_deploy.exporting.calibration_images import CalibrationSet, calibration_set
from regnet_deploy.exporting.candidates import candidate_precisions, measured_candidates
from regnet_deploy.exporting.choice import Candidate, Outcome, choose
from regnet_deploy.exporting.earlier import earlier_variants
from regnet_deploy.exporting.engine_variants import EngineVariant, make_engine_variant
from regnet_deploy.exporting.golden_set import GoldenSet, golden_set
from regnet_deploy.exporting.judge import Judge
from regnet_deploy.exporting.onnx_variants import Calibration, OnnxVariant, Reporter, make_onnx_variants
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.source import Source, source_of
from regnet_deploy.exporting.wish import Wish
from regnet_deploy.instructions import describe
from regnet_deploy.profiling.machine import describe_machine, environment
from regnet_deploy.serving.golden import FILE as GOLDEN
from regnet_deploy.serving.runtime import installed_onnxruntime

Variants = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Exported:
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


class _Work:
    """What was made so far."""

    def __init__(self) -> None:
        self.onnx: dict[str, OnnxVariant] = {}
        self.engines: dict[str, EngineVariant] = {}
        self.refused: dict[str, RegnetDeployError] = {}

    def entries(self) -> Variants:
        """Return what the manifest will say of the variants."""
        return {
            **{name: one.entry for name, one in self.onnx.items()},
            **{name: one.entry for name, one in self.engines.items()},
        }

    def files(self) -> dict[str, bytes]:
        """Return the files by their logical names."""
        return {
            **{one.entry["file"]: one.data for one in self.onnx.values()},
            **{one.file: one.plan for one in self.engines.values()},
        }

    def keep(self, names: set[str]) -> None:
        """Drop every variant but these."""
        self.onnx = {name: one for name, one in self.onnx.items() if name in names}
        self.engines = {name: one for name, one in self.engines.items() if name in names}


def export(path: str | Path, wish: Wish, reporter: Reporter) -> Exported:
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
    source = source_of(bundle)
    reporter.step("reference logits of the golden set")
    golden = golden_set(bundle, source.model, source.preprocessing, wish.images)
    judge = _judge(bundle, source, golden, wish, reporter)
    images = partial(_calibration_images, bundle, source, golden, wish, reporter)
    work = _Work()
    _make_onnx(work, source, Calibration(images, source, reporter), judge, wish, library, gpu, reporter)
    if hindrance is not None:
        work.refused["engines"] = hindrance
    elif library is not None:
        _make_engines(work, bundle, source, library, gpu, judge, wish, reporter)
    choice = _choose(work, source, wish, reporter) if wish.auto else None
    made = work.entries()
    files = {GOLDEN: golden.data, **work.files()}
    kept, stale = earlier_variants(
        bundle, golden, source.preprocessing, judge.gates, made, files, _lost(choice), reporter.step
    )
    reporter.step("writing the bundle")
    parts = {"golden": golden.part, "variants": {**kept, **made}, "environment": environment("export")}
    if choice is not None:
        parts["choice"] = choice
    written = update_bundle(path, parts, files, drop=tuple(stale), expect=bundle)
    # What lost an election is no error, and why is in its record; that nothing builds the engines asked for is one.
    refused = {name: error for name, error in work.refused.items() if not wish.auto or name == "engines"}
    return Exported(written, made, golden.part, golden.left_out, choice, refused)


def _library(wish: Wish, gpu: Gpu | None) -> tuple[Library | None, RegnetDeployError | None]:
    """Return what builds engines, where they are wanted, or why nothing does."""
    if not wish.engines and not (wish.auto and gpu is not None):
        return None, None
    try:
        return find_library(gpu), None
    except (MissingExtra, UsageError) as error:
        return None, error if wish.engines else None


def _judge(bundle: Bundle, source: Source, golden: GoldenSet, wish: Wish, reporter: Reporter) -> Judge:
    validation = reference = None
    if wish.data is not None:
        reporter.step("validation images")
        validation = validation_of(wish.data, bundle, source.preprocessing, reporter.advance)
        reporter.step("the model on the validation images")
        reference = reference_of(source.model, validation, reporter.advance)
    return Judge(golden.golden, source.preprocessing, wish.gates, validation, reference, wish.max_drop)


def _calibration_images(
    bundle: Bundle, source: Source, golden: GoldenSet, wish: Wish, reporter: Reporter
) -> CalibrationSet:
    folder = wish.calibration or wish.data
    assert folder is not None  # Wish refuses what would be quantised without
    return calibration_set(
        folder,
        bundle,
        source.preprocessing,
        golden.golden.images,
        count=wish.calibration_images,
        seed=wish.seed,
        advance=reporter.advance,
    )


def _make_onnx(
    work: _Work,
    source: Source,
    calibration: Calibration,
    judge: Judge,
    wish: Wish,
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

    def add(precision: Precision) -> None:
        work.onnx.update((one.name, one) for one in make(precision))

    add(PRECISIONS["fp32"])
    named = {precision.name for precision in wish.precisions}
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
    work: _Work,
    bundle: Bundle,
    source: Source,
    library: Library,
    gpu: Gpu | None,
    judge: Judge,
    wish: Wish,
    reporter: Reporter,
) -> None:
    before = bundle.parts.get("variants", {})
    for onnx in list(work.onnx.values()):
        precision = PRECISIONS[onnx.entry["precision"]]
        if onnx.entry["input"] != "float32" or not precision.for_engines:
            continue
        name = library.variant(precision.name)
        try:
            work.engines[name] = make_engine_variant(
                library, gpu, onnx, source, wish.options, before.get(name), judge, reporter
            )
        except RegnetDeployError as error:
            work.refused[name] = error


def _choose(work: _Work, source: Source, wish: Wish, reporter: Reporter) -> dict[str, Any]:
    """Measure what can run here, keep the winners, and return the part ``choice``."""
    runnable = {
        one.name: (one.session, one.entry)
        for one in work.onnx.values()
        if one.entry["input"] == "float32" and not one.entry["exact"]
    }
    engines = {
        one.name: (one.session, one.entry | {"accuracy": one.accuracy})
        for one in work.engines.values()
        if one.session is not None
    }
    reporter.step("measuring")
    threads = available_cores()
    measured = measured_candidates(
        {**runnable, **engines}, wish.batches, wish.seconds, source.preprocessing.crop, threads, reporter.advance
    )
    refused = [
        Candidate(name, name.partition("-")[2], reason=str(error))
        for name, error in work.refused.items()
        if name != "engines"
    ]
    unmeasured = [
        Candidate(one.name, one.entry["precision"], accuracy=one.entry.get("accuracy"))
        for one in work.onnx.values()
        if one.entry["exact"] and one.entry["precision"] in {precision.name for precision in wish.precisions}
    ]
    unmeasured += [
        Candidate(one.name, one.entry["precision"]) for one in work.engines.values() if one.session is None
    ]
    outcomes = choose([*measured, *unmeasured, *refused])
    work.keep(_kept(work, outcomes))
    return {
        "max_drop": wish.max_drop,
        "batches": list(wish.batches),
        "seconds": wish.seconds,
        "cpu_instructions": describe(),
        "machine": describe_machine().to_json(),
        "candidates": [outcome.to_json() for outcome in outcomes],
    }


def _kept(work: _Work, outcomes: list[Outcome]) -> set[str]:
    """Return the winners, fp32 to fall back to, what engines are rebuilt from, and what was asked for by name."""
    names = {one.candidate.name for one in outcomes if one.result in ("kept", "unmeasured")} | {"onnx-fp32"}
    names |= {work.engines[name].entry["source"] for name in names if name in work.engines}
    return names | {f"{name}-uint8" for name in names}


def _lost(choice: dict[str, Any] | None) -> set[str]:
    """Return the variants that an election took out: an earlier export's of the same name go too."""
    candidates = choice["candidates"] if choice else ()
    return {one["variant"] for one in candidates if one["result"] in ("slower", "refused")} - {"onnx-fp32"}
