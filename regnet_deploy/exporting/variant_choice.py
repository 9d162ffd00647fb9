"""The election between precisions: measured speed first, then accuracy of who would win."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regnet_deploy.cpu import available_cores, describe_int8_support
from regnet_deploy.errors import ProofError, RegnetDeployError
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.candidate_precisions import measured_candidates
from regnet_deploy.exporting.onnx_variants import Reporter
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.ranking import RankingResult, VariantCandidate, rank_variants
from regnet_deploy.exporting.state import ExportState
from regnet_deploy.profiling.machine import describe_machine


def choose_variants(work: ExportState, judge: AccuracyGate, wish: ExportOptions, reporter: Reporter) -> dict[str, Any]:
    """Measure what can run here, keep the fastest that are accurate enough, and return the part ``choice``.

    Only who would win is run on all validation images: where it loses too much, the next fastest is.

    Args:
        work: what was made; what does not win is dropped from it.
        judge: of accuracy.
        wish: of the user.
        reporter: is told.
    """
    runnable = {
        one.name: (one.session, one.entry)
        for one in work.onnx.values()
        if one.entry["input"] == "float32" and not one.entry["exact"]
    }
    engines = {
        one.name: (one.session, one.entry | {"accuracy": one.own_entry.get("accuracy")})
        for one in work.engines.values()
        if one.session is not None
    }
    reporter.step("measuring")
    threads = available_cores()
    measured = measured_candidates(
        {**runnable, **engines}, wish.batches, wish.seconds, judge.preprocessing.crop, threads, reporter.advance
    )
    refused = [
        VariantCandidate(name, name.partition("-")[2], reason=str(error))
        for name, error in work.refused.items()
        if name != "engines"
    ]
    unmeasured = [
        VariantCandidate(one.name, one.entry["precision"], accuracy=one.entry.get("accuracy"))
        for one in work.onnx.values()
        if one.entry["exact"] and one.entry["precision"] in {precision.name for precision in wish.precisions}
    ]
    unmeasured += [
        VariantCandidate(one.name, one.entry["precision"]) for one in work.engines.values() if one.session is None
    ]
    named = {f"onnx-{precision.name}" for precision in wish.precisions}
    candidates = [*measured, *unmeasured, *refused]
    while True:
        outcomes = rank_variants(candidates, named)
        unjudged = [one.candidate for one in outcomes if one.result == "kept" and one.candidate.accuracy is None]
        if not unjudged:
            break
        for one in unjudged:
            candidates[candidates.index(one)] = _judged(one, work, judge, reporter)
    work.keep(_kept(work, outcomes))
    return {
        "max_drop": wish.max_drop,
        "batches": list(wish.batches),
        "seconds": wish.seconds,
        "cpu_instructions": describe_int8_support(),
        "machine": describe_machine().to_json(),
        "candidates": [outcome.to_json() for outcome in outcomes],
    }


def _judged(
    candidate: VariantCandidate, work: ExportState, judge: AccuracyGate, reporter: Reporter
) -> VariantCandidate:
    """Return a candidate with its accuracy, or with the reason why it is out."""
    made = work.onnx.get(candidate.name) or work.engines[candidate.name]
    assert made.session is not None  # it was measured
    reporter.step(f"{candidate.name}: on the validation images")
    try:
        accuracy = judge.accuracy(candidate.name, made.session, PRECISIONS[candidate.precision], reporter.advance)
    except ProofError as error:
        work.refused[candidate.name] = error
        return replace(candidate, reason=str(error))
    made.own_entry["accuracy"] = accuracy
    return replace(candidate, accuracy=accuracy)


def _kept(work: ExportState, outcomes: list[RankingResult]) -> set[str]:
    """Return the winners, fp32 to fall back to, what engines are rebuilt from, and what was asked for by name."""
    names = {one.candidate.name for one in outcomes if one.result in ("kept", "unmeasured")} | {"onnx-fp32"}
    names |= {work.engines[name].entry["source"] for name in names if name in work.engines}
    return names | {f"{name}-uint8" for name in names}


def rejected_variants(choice: dict[str, Any] | None, refused: Mapping[str, RegnetDeployError]) -> set[str]:
    """Return the variants that lost an election or do not pass their gate: those of an earlier export go too.

    One that could not be made now, for want of images or memory, says nothing against the one that is there.
    """
    candidates = choice["candidates"] if choice else ()
    names = {one["variant"] for one in candidates if one["result"] == "slower"} - {"onnx-fp32"}
    names |= {name for name, error in refused.items() if isinstance(error, ProofError)}
    return names | {f"{name}-uint8" for name in names}
