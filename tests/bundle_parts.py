"""Parts of manifests for tests: small, whole records of which a test changes what it is about."""

from __future__ import annotations

from typing import Any

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.manifest import Choice, ChoiceCandidate
from regnet_deploy.bundle.measurements import ClosedForm, ComplexityRecord, Latency, Machine, Profile
from regnet_deploy.bundle.training import Autotune, BestEpoch, Epoch, Execution, Lineage, Training, TrainingData
from regnet_deploy.bundle.variants import (
    ENGINE_VARIANTS,
    Accuracy,
    Calibration,
    CalibrationResult,
    Engine,
    EngineIdentity,
    EngineVariant,
    OnnxVariant,
    OpenvinoVariant,
    Proof,
)
from regnet_deploy.runtimes.gates import gate_of

MACHINE = Machine(cpu="a CPU", cores=2, memory_bytes=2**30, system="Linux", python="3.12", gpus=(), versions={})
COMPLEXITY = ComplexityRecord(
    macs=1000,
    parameters=100,
    activations=10,
    fvcore_total=1010,
    resolution=32,
    classes=3,
    closed_form=ClosedForm(macs=1000, parameters=100, activations=10, equal=True),
    stages=(),
    operators=(),
)


def proof(precision: str = "fp32", **changes: Any) -> Proof:
    """A proof that passed the precision's gate."""
    figures = Proof(
        images=16,
        max_abs_error=2e-6,
        mean_abs_error=3e-7,
        relative_error=2e-5,
        cosine=1.0,
        top1_agreement=1.0,
        top1_decided=1.0,
        gate=gate_of(precision),
        passed=True,
        runtime="onnxruntime 1.32.0",
        device="cpu",
    )
    return figures.replace(**changes)


def onnx_variant(name: str = "onnx-fp32", **changes: Any) -> OnnxVariant:
    """A proved ONNX variant."""
    precision = changes.get("precision", "fp32")
    variant = OnnxVariant(
        file=f"{name}.onnx", bytes=1000, precision=precision, input="float32", opset=18, proof=proof(precision)
    )
    return variant.replace(**changes)


def accuracy(**changes: Any) -> Accuracy:
    """Half a point lost on 3720 images."""
    measured = Accuracy(
        images=3720,
        top1=0.9,
        reference_top1=0.905,
        drop=0.5,
        low=-0.1,
        high=1.1,
        agreement=0.99,
        max_abs_error=0.1,
        mean_abs_error=0.01,
        cosine=0.999,
    )
    return measured.replace(**changes)


def calibration() -> Calibration:
    """Two methods, of which the second was better."""
    return Calibration(
        method="entropy",
        tried={"minmax": CalibrationResult(0.8, 0.2), "entropy": CalibrationResult(0.9, 0.1)},
        images=512,
        source="training images",
        folder="cats",
        seed=0,
        digest="cd" * 32,
    )


def engine(**changes: Any) -> Engine:
    """An engine that is not proved."""
    identity = EngineIdentity(
        onnx_sha256="ab" * 32,
        precision="fp16",
        calibration=None,
        runtime="tensorrt",
        version="11.4.0.106",
        toolkit="cu13",
        gpu="NVIDIA H100",
        compute_capability="9.0",
        multiprocessors=132,
        driver="590.11",
        cuda="13.1",
        system="linux-x86_64",
        options=EngineOptions(),
    )
    made = Engine(key=identity.key, file=f"trt-fp16-{identity.key[:12]}.plan", bytes=1000, identity=identity)
    return made.replace(**changes)


def engine_variant(*engines: Engine, runtime: str = "tensorrt", precision: str = "fp16") -> EngineVariant:
    """A variant with these engines."""
    return ENGINE_VARIANTS[runtime](
        precision=precision,
        input="float32",
        opset=18,
        source=f"onnx-{precision}",
        convolutions={"stem.conv": precision},
        engines=engines,
    )


def latency(variant: str | None, batch: int, p50_ms: float, **changes: Any) -> Latency:
    """A measured latency."""
    row = Latency(
        runtime="onnxruntime 1.32.0",
        variant=variant,
        device="cpu",
        precision="fp32",
        layout="channels_first",
        threads=2,
        batch=batch,
        p50_ms=p50_ms,
        p95_ms=p50_ms,
        p99_ms=p50_ms,
        images_per_second=1000 * batch / p50_ms,
        repetitions=100,
        warmup_repetitions=10,
    )
    return row.replace(**changes)


def profile(*rows: Latency) -> Profile:
    """A profile with these rows."""
    return Profile(complexity=COMPLEXITY, latency=rows, machine=MACHINE.replace(busy_cores=0.0))


def openvino_variant(bundle: Bundle, source: str = "onnx-fp32") -> OpenvinoVariant:
    """An ONNX variant of a bundle as OpenVINO runs it, in FP32."""
    onnx = bundle.variants[source]
    assert isinstance(onnx, OnnxVariant)
    return OpenvinoVariant(
        precision=onnx.precision,
        input=onnx.input,
        opset=onnx.opset,
        source=source,
        onnx_sha256=bundle.files[onnx.file].sha256,
        compute="fp32",
        proof=onnx.proof,
    )


def choice(*candidates: ChoiceCandidate) -> Choice:
    """What ``--precision auto`` found of these candidates."""
    return Choice(
        max_drop=1.0, batches=(1, 8), seconds=1.0, cpu_instructions="AVX2", machine=MACHINE, candidates=candidates
    )


def candidate(variant: str, *rows: Latency, **changes: Any) -> ChoiceCandidate:
    """A candidate that was kept."""
    kept = ChoiceCandidate(variant=variant, precision="fp32", result="kept", reason="", accuracy=None, latency=rows)
    return kept.replace(**changes)


def training_data(**changes: Any) -> TrainingData:
    """Images of a training."""
    data = TrainingData(
        folder="cats",
        classes=3,
        train_images=300,
        val_images=60,
        split="val/",
        digest="ab" * 32,
        rejected={},
        unreadable={},
        in_memory=True,
    )
    return data.replace(**changes)


def training(val_top1: float = 0.9, **changes: Any) -> Training:
    """A training of two epochs."""
    epoch = Epoch(
        epoch=1,
        lr=0.1,
        train_loss=1.0,
        train_top1=0.4,
        val_loss=0.9,
        val_top1=0.5,
        val_images=60,
        images_per_s=100.0,
        seconds=6.0,
    )
    trained = Training(
        recipe={"epochs": 2, "learning_rate": 0.1},
        data=training_data(),
        seed=0,
        device="cpu",
        execution=Autotune(execution=Execution("cpu"), step_ms={}, reason="asked for", threads=2),
        history=(
            epoch,
            epoch.replace(epoch=2, train_loss=0.5, train_top1=0.8, val_loss=0.4, val_top1=val_top1),
        ),
        best=BestEpoch(epoch=2, val_top1=val_top1, val_loss=0.4, val_images=60),
        seconds=12.0,
        lineage=Lineage(start="random weights of seed 0", start_sha256=None, versions={}),
    )
    return trained.replace(**changes)
