"""TensorRT engines of proved ONNX files, proved where there is a GPU to run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regnet_deploy.engines.bundle_engines import add_engine
from regnet_deploy.engines.engine_builder import build_engine
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.library import Library
from regnet_deploy.engines.options import EngineOptions
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.onnx_variants import OnnxVariant, Reporter
from regnet_deploy.exporting.precision import PRECISIONS


@dataclass(frozen=True, eq=False)
class EngineVariant:
    """A plan, the variant that has it among its engines, and the session of it where there is a GPU."""

    name: str
    file: str
    plan: bytes
    entry: dict[str, Any]
    session: EngineSession | None

    @property
    def own_entry(self) -> dict[str, Any]:
        """Where its proof and its accuracy stand: the engine that was built now, the last of the variant."""
        entry: dict[str, Any] = self.entry["engines"][-1]
        return entry


def make_engine_variant(
    library: Library,
    gpu: Gpu | None,
    onnx: OnnxVariant,
    source: ModelSource,
    options: EngineOptions,
    before: Mapping[str, Any] | None,
    judge: AccuracyGate,
    reporter: Reporter,
    *,
    whole: bool = True,
    accept_unaccounted: bool = False,
) -> EngineVariant:
    """Build the engine of an ONNX variant and judge it.

    Args:
        library: that builds.
        gpu: of this machine, or None.
        onnx: what to build from.
        source: the network.
        options: of the build.
        before: the variant as the bundle has it, with the engines of other machines.
        judge: of golden set and accuracy.
        reporter: is told.
        whole: judge it on the validation images too.
        accept_unaccounted: take an engine whose report does not name every convolution.

    Raises:
        UsageError: an option does not fit the library, or the GPU has too little memory.
        ProofError: a convolution computes in another type than asked or an unknown one, or the engine does not agree
            with the model.
        RegnetDeployError: the build fails; the message has TensorRT's reason.
    """
    precision = PRECISIONS[onnx.entry["precision"]]
    name, convolutions = library.variant(precision.name), source.convolutions(precision)
    reporter.step(f"{name}: building with {library}")
    made = build_engine(
        library,
        gpu,
        name,
        onnx.data,
        precision.name,
        (onnx.entry.get("calibration") or {}).get("digest"),
        convolutions,
        source.preprocessing.crop,
        options,
        reporter.phase,
        reporter.note,
        accept_unaccounted=accept_unaccounted,
    )
    entry = made.entry
    if made.session is not None:
        reporter.step(f"{name}: proving on {made.session.device}")
        entry = entry | judge.judge(name, made.session, precision, reporter.advance, whole=whole)
    variant = {
        "runtime": library.runtime,
        "precision": precision.name,
        "input": "float32",
        "opset": precision.opset,
        "source": onnx.name,
        "convolutions": convolutions,
        "engines": list((before or {}).get("engines", ())),
    }
    variant = add_engine(variant, entry)
    return EngineVariant(name, entry["file"], made.plan, variant, made.session)
