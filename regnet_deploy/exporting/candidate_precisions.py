"""Which precisions stand for election where the user leaves the choice to measurement, and how they are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.ranking import VariantCandidate
from regnet_deploy.profiling.latency import ROUNDS, measure_latency
from regnet_deploy.profiling.runners import session_runner
from regnet_deploy.runtimes.runtime import Session


def candidate_precisions(*, cuda: bool, engines: bool) -> list[Precision]:
    """Return what is tried beside what was asked for by name.

    Args:
        cuda: ONNX Runtime runs on a GPU here, where int8-cpu is not for.
        engines: TensorRT engines can be built and run here; without them its INT8 would only be slow.
    """
    return [
        precision
        for precision in PRECISIONS.values()
        if not precision.opt_in
        and not (cuda and precision.small == "uint8")
        and (engines or not precision.for_tensorrt)
    ]


def measured_candidates(
    runnable: Mapping[str, tuple[Session, dict[str, Any]]],
    batches: Sequence[int],
    seconds: float,
    resolution: int,
    threads: int,
    advance: Callable[[int, int], None],
) -> list[VariantCandidate]:
    """Measure variants in turns, as ``profile`` does.

    Args:
        runnable: name -> opened variant and its entry in the manifest.
        batches: images an inference.
        seconds: measured for each variant and batch size.
        resolution: pixels a side.
        threads: of the CPU.
        advance: is told what is done and what there is to do.
    """
    contenders, failed = [], dict[str, str]()
    for name, (session, entry) in runnable.items():
        contender = session_runner(session, name, entry, resolution, threads)
        try:
            contender.prepare(max(batches))()
        except RegnetDeployError as error:  # of a GPU whose memory is short, say: no reason to lose the others
            failed[name] = f"a batch of {max(batches)} images cannot be run: {error}"
        else:
            contenders.append(contender)
    steps, done = len(batches) * len(contenders) * (1 + ROUNDS), 0

    def told(what: str) -> None:
        nonlocal done
        advance(done, steps)
        done += 1

    rows = measure_latency(contenders, batches, seconds, told)
    return [
        VariantCandidate(
            name=name,
            precision=entry["precision"],
            reason=failed.get(name),
            accuracy=entry.get("accuracy"),
            measured=tuple(row for row in rows if row.variant == name),
        )
        for name, (_, entry) in runnable.items()
    ]
