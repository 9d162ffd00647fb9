"""The choice of ``--precision auto``: which precisions are candidates, how fast they are, and which ones are kept.

Speed decides first: the fastest accurate variant of each runtime and device is kept. Only variants that would be kept
run all validation images; if one of them loses too much, the next fastest is tried.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from regnet_deploy.bundle.manifest import Choice, ChoiceCandidate, Preprocessing
from regnet_deploy.bundle.measurements import Latency
from regnet_deploy.bundle.variants import Accuracy
from regnet_deploy.cpu import available_cores, describe_int8_support
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.errors import ProofError, RegnetDeployError
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.state import ExportContext, ExportState
from regnet_deploy.profiling.latency import measure_latency
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.profiling.runners import session_runner
from regnet_deploy.progress import Progress
from regnet_deploy.runtimes.runtime import Session

#: Share of its time by which a less precise variant must be faster than a more precise one to be kept.
_MIN_GAIN = 0.05


@dataclass(frozen=True)
class VariantCandidate:
    """A variant that can be kept.

    Attributes:
        name: of the variant.
        precision: its name.
        rejected: why it is rejected without regard to its speed, or None.
        accuracy: on the validation images, if it is measured.
        latency: for each batch size; empty if this machine cannot run it.
        inaccurate: whether it is rejected because it does not agree with the model; else it could not be made here.
    """

    name: str
    precision: str
    rejected: str | None = None
    accuracy: Accuracy | None = None
    latency: tuple[Latency, ...] = ()
    inaccurate: bool = True

    @property
    def ms_per_image(self) -> float:
        """Geometric mean over the batch sizes of the median latency per image, ms."""
        return math.exp(math.fsum(math.log(row.p50_ms / row.batch) for row in self.latency) / len(self.latency))

    def decided(self, result: Literal["kept", "slower", "refused", "unmeasured"], reason: str) -> ChoiceCandidate:
        """Return the record of the candidate with the decision."""
        return ChoiceCandidate(
            variant=self.name,
            precision=self.precision,
            result=result,
            reason=reason,
            accuracy=self.accuracy,
            latency=self.latency,
        )


def candidate_precisions(*, cuda: bool, engines: bool) -> list[Precision]:
    """Return the precisions that ``auto`` exports in addition to the requested ones.

    Args:
        cuda: ONNX Runtime runs on a GPU here; int8-cpu is not made for that.
        engines: TensorRT engines can be built and run here; without them the precisions for TensorRT are slow.
    """
    return [
        precision
        for precision in PRECISIONS.values()
        if not precision.opt_in
        and not (cuda and precision.quantized_type == "uint8")
        and (engines or not precision.tensorrt_only)
    ]


def choose_variants(context: ExportContext, state: ExportState) -> tuple[ExportState, Choice]:
    """Measure the variants and return the state with those that are kept, and the part ``choice``."""
    options, progress = context.options, context.progress
    measured, contended = _measured(context, state)
    candidates = [*measured, *_unmeasured(context, state), *_rejected(state)]
    requested = {f"onnx-{precision.name}" for precision in options.precisions}
    requested |= set(state.openvino) if options.openvino else set()
    sources = {name: one.variant.source for name, one in state.openvino.items()}
    while True:
        decisions = rank_variants(candidates, requested)
        unvalidated = {one.variant for one in decisions if one.result == "kept" and one.accuracy is None}
        if not unvalidated:
            break
        for index in range(len(candidates)):
            candidate = candidates[index]  # not by enumerate: one refused file refuses what runs it
            name, precision = candidate.name, PRECISIONS[candidate.precision]
            if name not in unvalidated or candidate.rejected is not None:
                continue
            session = state.variants[name].session
            assert session is not None  # it was measured
            progress.step(f"{name}: on the validation images")
            try:
                accuracy = context.gate.measure_accuracy(name, session, precision, progress)
            except ProofError as error:
                state = state.with_rejected(name, error)
                candidates[index] = replace(candidate, rejected=str(error))
                candidates = [_without_source(one, name, sources) for one in candidates]
            else:
                state = state.with_accuracy(name, accuracy)
                candidates[index] = replace(candidate, accuracy=accuracy)
    decisions = _with_sources(decisions, sources)
    choice = Choice(
        max_drop=options.max_drop,
        batches=options.batches,
        seconds=options.seconds,
        cpu_instructions=describe_int8_support(),
        machine=describe_machine(),
        candidates=tuple(decisions),
        contended_cores=contended,
    )
    if choice.is_disturbed:
        progress.message(
            f"other programs used {contended:.1f} of {choice.machine.cores} cores while the variants were measured: "
            "the slower ones of an earlier export stay; export again when the machine is idle"
        )
    return state.only(_kept_names(state, decisions)), choice


def rank_variants(candidates: Sequence[VariantCandidate], requested: Collection[str] = ()) -> list[ChoiceCandidate]:
    """Keep the fastest candidate of each runtime and device, and give the reason for every candidate.

    A less precise candidate is kept instead of a more precise one only if it takes at least 5 % less time.

    Args:
        candidates: any number.
        requested: names of variants that are kept although they are slower.
    """
    decisions: dict[str, ChoiceCandidate] = {}
    groups: dict[tuple[str, str], list[VariantCandidate]] = {}
    for one in candidates:
        if one.rejected is not None:
            decisions[one.name] = one.decided("refused" if one.inaccurate else "unmeasured", one.rejected)
        elif not one.latency:
            reason = "this machine cannot run it, so its latency is not known"
            decisions[one.name] = one.decided("unmeasured", reason)
        else:
            groups.setdefault((one.latency[0].runtime, one.latency[0].device), []).append(one)
    best = {place: _fastest(group) for place, group in groups.items()}
    first = min(best.values(), key=lambda one: one.ms_per_image, default=None)
    for (runtime, device), group in groups.items():
        fastest = best[runtime, device]
        for one in group:
            if one is fastest:
                reason = _kept_reason(fastest, group, runtime, device)
                elected = "; the fastest of all, which runs by default" if one is first and len(best) > 1 else ""
                decisions[one.name] = one.decided("kept", reason + elected)
            elif one.name in requested:
                reason = f"requested by name, although it {_slower_reason(one, fastest)}"
                decisions[one.name] = one.decided("kept", reason)
            else:
                decisions[one.name] = one.decided("slower", _slower_reason(one, fastest))
    return [decisions[one.name] for one in candidates]


def measure_candidates(
    sessions: Mapping[str, tuple[Session, str]],
    batches: Sequence[int],
    seconds: float,
    preprocessing: Preprocessing,
    progress: Progress,
) -> list[VariantCandidate]:
    """Measure variants in turns, as ``profile`` does, on all CPU cores; the accuracies of the result are None.

    Args:
        sessions: name -> session that runs the variant, and the name of its precision.
        batches: batch sizes.
        seconds: measured for each variant and batch size.
        preprocessing: of the images.
        progress: receives the measurements.
    """
    runners, errors = [], dict[str, str]()
    for name, (session, precision) in sessions.items():
        runner = session_runner(session, name, precision, preprocessing, available_cores())
        try:
            runner.prepare(max(batches))()
        except RegnetDeployError as error:  # for example too little GPU memory: the other variants are still measured
            errors[name] = f"a batch of {max(batches)} images cannot be run: {error}"
        else:
            runners.append(runner)
    rows = measure_latency(runners, batches, seconds, progress)
    return [
        VariantCandidate(
            name=name,
            precision=precision,
            rejected=errors.get(name),
            latency=tuple(row for row in rows if row.variant == name),
        )
        for name, (_, precision) in sessions.items()
    ]


def removed_names(
    choice: Choice | None, rejected: Mapping[str, RegnetDeployError], *, remove_refused: bool = False
) -> set[str]:
    """Return the variants whose files of an earlier export are removed.

    Args:
        choice: of ``auto``: the slower variants are removed, unless other programs disturbed the measurements.
        rejected: variants that this export does not add. The earlier ones stay, because they passed the gate of their
            export.
        remove_refused: also remove those that did not pass the gate of this export. A variant that could not be
            exported, for lack of images or memory, stays.
    """
    candidates = choice.candidates if choice else ()
    disturbed = choice is not None and choice.is_disturbed
    names = {one.variant for one in candidates if one.result == "slower" and not disturbed} - {"onnx-fp32"}
    if remove_refused:
        names |= {name for name, error in rejected.items() if isinstance(error, ProofError)}
    return names | {f"{name}-uint8" for name in names}


def _measured(context: ExportContext, state: ExportState) -> tuple[list[VariantCandidate], float | None]:
    """Return the variants that this machine can run, with their latency, and the cores that other programs took."""
    sessions: dict[str, tuple[Session, str]] = {
        one.name: (one.session, one.variant.precision)
        for one in state.onnx.values()
        if one.variant.input == "float32" and not one.variant.exact
    }
    sessions |= {
        one.name: (one.session, one.variant.precision)
        for one in state.openvino.values()
        if one.variant.input == "float32"
    }
    sessions |= {
        one.name: (one.session, one.variant.precision) for one in state.engines.values() if one.session is not None
    }
    options = context.options
    context.progress.step("measuring")
    load = OtherLoad()
    measured = measure_candidates(
        sessions, options.batches, options.seconds, context.source.preprocessing, context.progress
    )
    contended = load.contended_cores()
    return [replace(one, accuracy=state.variants[one.name].accuracy) for one in measured], contended


def _unmeasured(context: ExportContext, state: ExportState) -> list[VariantCandidate]:
    """Return the requested variants that this machine cannot run."""
    requested = {precision.name for precision in context.options.precisions}
    onnx = [
        VariantCandidate(one.name, one.variant.precision, accuracy=one.accuracy)
        for one in state.onnx.values()
        if one.variant.exact and one.variant.precision in requested
    ]
    engines = [
        VariantCandidate(one.name, one.variant.precision) for one in state.engines.values() if one.session is None
    ]
    return onnx + engines


def _rejected(state: ExportState) -> list[VariantCandidate]:
    return [
        VariantCandidate(name, name.partition("-")[2], rejected=str(error), inaccurate=isinstance(error, ProofError))
        for name, error in state.rejected.items()
        if name != "engines"
    ]


def _without_source(candidate: VariantCandidate, refused: str, sources: Mapping[str, str]) -> VariantCandidate:
    """Return a candidate, refused if it runs the file of a refused variant."""
    if candidate.rejected is not None or sources.get(candidate.name) != refused:
        return candidate
    return replace(candidate, rejected=f"it runs the file of {refused}, which is refused")


def _with_sources(decisions: Sequence[ChoiceCandidate], sources: Mapping[str, str]) -> list[ChoiceCandidate]:
    """Return the decisions, where an ONNX file that a kept variant of OpenVINO runs is kept too.

    Args:
        decisions: of all candidates.
        sources: name of a variant of OpenVINO -> that of the ONNX variant whose file it runs.
    """
    users = {sources[one.variant]: one.variant for one in decisions if one.result == "kept" and one.variant in sources}
    return [
        one.replace(result="kept", reason=f"{users[one.variant]} runs its file; by itself it {one.reason}")
        if one.result == "slower" and one.variant in users
        else one
        for one in decisions
    ]


def _kept_names(state: ExportState, decisions: Sequence[ChoiceCandidate]) -> set[str]:
    """Return the variants that stay: the kept ones, the fallback fp32, and the files that engines are built from."""
    names = {one.variant for one in decisions if one.result in ("kept", "unmeasured")} | {"onnx-fp32"}
    names |= {state.engines[name].variant.source for name in names if name in state.engines}
    names |= {state.openvino[name].variant.source for name in names if name in state.openvino}
    return names | {f"{name}-uint8" for name in names}


def _fastest(group: Sequence[VariantCandidate]) -> VariantCandidate:
    """Return the fastest; from the most precise one on, each must be faster by the minimum gain."""
    order = list(PRECISIONS)
    ranked = sorted(group, key=lambda one: order.index(one.precision))
    fastest = ranked[0]
    for one in ranked[1:]:
        if one.ms_per_image < (1 - _MIN_GAIN) * fastest.ms_per_image:
            fastest = one
    return fastest


def _kept_reason(kept: VariantCandidate, group: Sequence[VariantCandidate], runtime: str, device: str) -> str:
    others = [one for one in group if one is not kept]
    if not others:
        return f"the only one that {runtime} ran on {device}"
    ratios = {one.name: one.ms_per_image / kept.ms_per_image for one in others}
    comparisons = [
        f"{ratio:.2f} times as fast as {name}"
        if ratio >= 1
        else f"more precise than {name}, which is less than {_MIN_GAIN:.0%} faster"
        for name, ratio in ratios.items()
    ]
    return f"the best of {len(group)} on {runtime}, {device}: {', '.join(comparisons)}"


def _slower_reason(slower: VariantCandidate, kept: VariantCandidate) -> str:
    ratio = slower.ms_per_image / kept.ms_per_image
    if ratio >= 1:
        return f"takes {ratio:.2f} times as long as {kept.name}"
    return f"takes {1 - ratio:.1%} less time than {kept.name}, and a less precise variant must save {_MIN_GAIN:.0%}"
