"""Exports a bundle: golden set, ONNX variants with their proof, TensorRT engine; all of it or nothing is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_deploy.bundle import Bundle, open_bundle, update_bundle
from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.exporting.golden_set import GoldenSet, golden_set
from regnet_deploy.exporting.graph import OPSET, build_onnx
from regnet_deploy.exporting.proof import prove
from regnet_deploy.exporting.tensorrt import EngineSession, Progress, build_engine, find_builder, identity
from regnet_deploy.images.preprocess import Preprocessing
from regnet_deploy.models.weights import model_of
from regnet_deploy.profiling.machine import environment
from regnet_deploy.serving.golden import FILE as GOLDEN
from regnet_deploy.serving.golden import Tolerance
from regnet_deploy.serving.runtime import installed_onnxruntime, open_onnx, open_variant, why_not_runnable
from regnet_deploy.space.network import Network

Variants = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Wish:
    """What to export.

    Attributes:
        uint8: also the variant that takes pixels and normalises them itself.
        trt: also a TensorRT engine.
        images: files and folders of the user's for the golden set; none takes those that training left.
        tolerance: how far a logit may lie from its reference.
        max_batch: largest batch of the engine.
    """

    uint8: bool
    trt: bool
    images: tuple[Path, ...]
    tolerance: Tolerance
    max_batch: int


@dataclass(frozen=True)
class Exported:
    """What was written, which files could not be used, and why an engine that was asked for was not made (or None)."""

    bundle: Bundle
    made: Variants
    golden: dict[str, Any]
    left_out: tuple[str, ...]
    missing_engine: RegnetDeployError | None


def export(path: str | Path, wish: Wish, step: Callable[[str], None], progress: Progress) -> Exported:
    """Export the bundle at ``path``.

    The ONNX variants are proved before anything is written. An engine that cannot be made, or does not agree, leaves
    them: the error is in the result, for the caller to raise.

    Args:
        path: folder of the bundle.
        wish: what to export.
        step: is told what is done next.
        progress: is told the phases of the engine's build and the steps of each.

    Raises:
        BundleError: missing, damaged, changed meanwhile or not writable.
        DataError: an image for the golden set cannot be used.
        MissingExtra: ONNX Runtime, which proves the variants, is not installed.
        UsageError: it is installed twice.
        ProofError: an ONNX variant does not agree with the model; nothing was written.
    """
    bundle = open_bundle(path)
    installed_onnxruntime()  # before the minutes that reference logits may take
    preprocessing = Preprocessing.from_json(bundle.part("preprocessing"))
    step("reference logits of the golden set")
    model = model_of(bundle)
    golden = golden_set(bundle, model, preprocessing, wish.images)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    network = Network.from_json(bundle.part("architecture"))
    files, made = {GOLDEN: golden.data}, Variants()
    for name, pixels in (("onnx-fp32", False), ("onnx-fp32-uint8", True))[: 1 + wish.uint8]:
        step(f"{name}: writing")
        data = build_onnx(network, weights, preprocessing, pixels=pixels, metadata=_metadata(bundle))
        step(f"{name}: proving")
        proof = prove(name, open_onnx(data, device="cpu"), golden.golden, preprocessing, wish.tolerance)
        files[f"{name}.onnx"] = data
        made[name] = _variant(f"{name}.onnx", data, "onnxruntime", proof) | {
            "input": "uint8" if pixels else "float32",
            "opset": OPSET,
        }
    kept = _proved_again(bundle, golden, preprocessing, wish.tolerance, set(made), step)
    missing_engine = None
    if wish.trt:
        try:
            name, plan, engine = _engine(files["onnx-fp32.onnx"], golden, preprocessing, wish, step, progress)
            files[f"{name}.plan"], made[name] = plan, engine
        except RegnetDeployError as error:
            missing_engine = error
    step("writing the bundle")
    parts = {"golden": golden.part, "variants": kept | made, "environment": environment("export")}
    return Exported(
        update_bundle(path, parts, files, expect=bundle), made, golden.part, golden.left_out, missing_engine
    )


def _engine(
    onnx: bytes,
    golden: GoldenSet,
    preprocessing: Preprocessing,
    wish: Wish,
    step: Callable[[str], None],
    progress: Progress,
) -> tuple[str, bytes, dict[str, Any]]:
    """Return the name, the plan and the variant of an engine, proved where there is a GPU."""
    builder = find_builder()
    step(f"{builder.variant}: building with {builder.runtime} {builder.version}")
    plan = build_engine(builder, onnx, preprocessing.crop, wish.max_batch, progress)
    proof = note = None
    if builder.gpu is None:
        note = (
            "built without a GPU and not proved: `regnet-deploy export --trt` on a machine with an NVIDIA GPU builds "
            "and proves one"
        )
    else:
        step(f"{builder.variant}: proving on {builder.gpu}")
        session = EngineSession(builder, plan, wish.max_batch)
        proof = prove(builder.variant, session, golden.golden, preprocessing, wish.tolerance)
    variant = _variant(f"{builder.variant}.plan", plan, builder.runtime, proof, note) | {
        "input": "float32",
        "opset": OPSET,
        "engine": identity(builder, hashlib.sha256(onnx).hexdigest(), wish.max_batch),
    }
    return builder.variant, plan, variant


def _proved_again(
    bundle: Bundle,
    golden: GoldenSet,
    preprocessing: Preprocessing,
    tolerance: Tolerance,
    replaced: set[str],
    step: Callable[[str], None],
) -> Variants:
    """Return the bundle's other variants; where the golden set is a new one, with proofs on that one."""
    others: Variants = {name: one for name, one in bundle.parts.get("variants", {}).items() if name not in replaced}
    old = bundle.files.get(GOLDEN)
    if old is None or old.sha256 == hashlib.sha256(golden.data).hexdigest():
        return others
    for name, variant in others.items():
        reason = why_not_runnable(variant)
        if reason is None:
            step(f"{name}: proving on the new golden set")
            session = open_variant(bundle, name, device="cpu")
            others[name] = variant | {"proof": prove(name, session, golden.golden, preprocessing, tolerance)}
        elif variant["proof"] is not None:
            others[name] = variant | {"proof": None, "note": f"not proved on the present golden set: {reason}"}
    return others


def _variant(
    file: str, data: bytes, runtime: str, proof: dict[str, Any] | None, note: str | None = None
) -> dict[str, Any]:
    return {"file": file, "bytes": len(data), "runtime": runtime, "precision": "fp32", "proof": proof, "note": note}


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Return what the file tells of itself to whoever finds it without its bundle."""
    parts = {name: bundle.parts[name] for name in ("architecture", "preprocessing", "labels") if name in bundle}
    return {name: json.dumps(value, sort_keys=True) for name, value in parts.items()}
