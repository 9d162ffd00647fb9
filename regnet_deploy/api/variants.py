"""Exported variants: made, proved, measured and verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from regnet_deploy.api.arguments import PATH, expect, expect_each
from regnet_deploy.api.bundles import bundle_path
from regnet_deploy.bundle import DEFAULT_PATH, Bundle, ensure_writable, open_bundle
from regnet_deploy.errors import MissingPart, require
from regnet_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from regnet_deploy.bundle.measurements import Profile
    from regnet_deploy.evaluation.evaluate import EvaluationResult
    from regnet_deploy.evaluation.labeled_images import LabeledImages
    from regnet_deploy.exporting.options import ExportOptions
    from regnet_deploy.exporting.plain_file import PlainFile
    from regnet_deploy.exporting.state import ExportResult
    from regnet_deploy.runtimes.runtime import Device, Runtime, Session
    from regnet_deploy.runtimes.verification import VerificationCheck


def export(
    bundle: str | Path | Bundle,
    data: str | Path | None = None,
    *,
    precisions: str | Sequence[str] | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export the network of a bundle as ONNX and TensorRT variants, each proved to agree with the model.

    Args:
        bundle: the bundle, or its folder.
        data: the folder that was trained on, for accuracy on its validation images and for calibration.
        precisions: names such as ``fp16`` or ``int8-cpu``, in addition to ``fp32``; ``auto`` measures what this machine
            can run and keeps the fastest precision that is accurate enough. None is ``auto`` with ``data``, else
            ``fp32`` alone.
        options: everything else.
        progress: receives the progress.

    Returns:
        What was written and, in ``rejected``, the error of every variant that was not good enough.

    Raises:
        BundleError: the bundle is missing, damaged or not writable, or was changed by another program meanwhile.
        DataError: images for the golden set, the calibration or the validation cannot be used.
        UsageError: there is no such precision, or it needs images for its calibration.
        ProofError: the variant ``onnx-fp32`` does not agree with the model; nothing was written.
    """
    path = bundle_path(bundle)
    if data is not None:
        expect("data", data, PATH, "a folder of images")
    if isinstance(precisions, str):
        precisions = (precisions,)
    if precisions is not None:
        precisions = expect_each("precisions", precisions, str, "a name or several, such as ('fp16', 'int8')")
    ensure_writable(open_bundle(path))
    for module in ("torch", "safetensors", "onnx", "PIL"):
        require(module, "export")
    from regnet_deploy.exporting import export as exporting
    from regnet_deploy.exporting.options import ExportOptions
    from regnet_deploy.exporting.precision import find_precision

    options = ExportOptions() if options is None else options
    expect("options", options, ExportOptions, "ExportOptions such as rd.ExportOptions(engines=True)")
    if data is not None:
        options = replace(options, data=Path(data))
    if precisions is None:
        options = replace(options, auto=options.auto or (options.data is not None and not options.precisions))
    else:
        named = tuple(find_precision(name) for name in precisions if name != "auto")
        options = replace(options, precisions=named, auto="auto" in precisions)
    return exporting.export(path, options, progress)


def export_file(
    bundle: str | Path | Bundle,
    path: str | Path,
    *,
    variant: str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> PlainFile:
    """Write the network of a bundle as a plain file, with a JSON description and a Python program beside it.

    A bundle that is not exported yet is exported first, as ``onnx-fp32``. The golden set is replayed on the file.

    Args:
        bundle: the bundle, or its folder.
        path: the file, such as ``model.onnx``.
        variant: the ONNX variant to write; None is the one that would be served.
        target: ``onnx``, ``torchscript``, ``pt2`` or ``openvino``; None is the format of the suffix: ``.onnx``,
            ``.pt``, ``.pt2`` or ``.xml``.
        progress: receives the progress of the export.

    Returns:
        The files, the proof, and what their user has to know.

    Raises:
        BundleError: the bundle is missing or damaged.
        UsageError: there is no such format or variant, or the files cannot be written.
        ProofError: the file does not agree with the golden set; nothing was written.
    """
    expect("path", path, PATH, "a file such as 'model.onnx'")
    expect("variant", variant, (str, NoneType), "the name of a variant or None")
    expect("target", target, (str, NoneType), "onnx, torchscript, pt2, openvino or None")
    from regnet_deploy.exporting.plain_file import check_plain_file, is_exported, write_plain_file

    opened = open_bundle(bundle_path(bundle))
    check_plain_file(opened, path, variant, target)
    if not is_exported(opened):
        opened = export(opened, progress=progress).bundle
    return write_plain_file(opened, path, variant=variant, target=target)


def profile(
    bundle: str | Path | Bundle = DEFAULT_PATH,
    *,
    batches: Sequence[int] = (1, 8, 32),
    seconds: float = 5.0,
    threads: int | None = None,
    device: Device = "auto",
    compiled: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Count MACs, parameters and activations, measure latency on this machine, and write both into the bundle.

    Args:
        bundle: the bundle, or its folder.
        batches: images in an inference.
        seconds: measured for each runtime and batch size, without warm-up.
        threads: CPU threads; None is every core that this process may use.
        device: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``.
        compiled: also measure the PyTorch model by torch.compile, for comparison; it needs a C++ compiler.
        progress: receives the progress.

    Raises:
        BundleError: the bundle is missing, damaged or not writable.
        UsageError: torch.compile fails; or the device does not exist, or a batch does not fit into its memory.
        ProofError: the counts differ from the closed form.
    """
    path = bundle_path(bundle)
    sizes = expect_each("batches", batches, Integral, "whole numbers such as (1, 8, 32)")
    expect("seconds", seconds, Real, "a number of seconds")
    expect("threads", threads, (Integral, NoneType), "a number of CPU threads or None")
    expect("compiled", compiled, bool, "True or False")
    ensure_writable(open_bundle(path))
    for module in ("torch", "safetensors", "fvcore"):
        require(module, "profile")
    from regnet_deploy.profiling import profile as profiling

    options = profiling.ProfileOptions(sizes, seconds, threads, device, compiled)
    return profiling.profile(path, options, progress)


def verify(bundle: str | Path | Bundle = DEFAULT_PATH) -> list[VerificationCheck]:
    """Check every byte of a bundle, and its golden set on every network in it that this machine can run.

    Args:
        bundle: the bundle, or its folder.

    Returns:
        One entry for each check; its ``outcome`` is ``ok``, ``damaged``, ``disagrees`` or ``not run``.

    Raises:
        BundleError: the bundle is missing, or its manifest is damaged.
    """
    from regnet_deploy.bundle import read_bundle
    from regnet_deploy.runtimes import verification

    return read_bundle(
        bundle_path(bundle),
        lambda opened: verification.verify(opened, open_weights, _open_emulated),
        lambda checks: any(check.outcome == "damaged" for check in checks),
    )


def evaluate(
    bundle: str | Path | Bundle,
    data: str | Path,
    *,
    variants: str | Sequence[str] | None = None,
    split: str | None = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure the network and its exported variants on labeled images, such as a test set.

    Args:
        bundle: a bundle with class names, or its folder.
        data: a folder with class folders that are named as classes of the network, or with ``test/`` or ``val/``.
        variants: names of exported variants; None is every variant that this machine runs. The weights in PyTorch,
            called ``model``, are always the first.
        split: ``test``, ``val`` or ``train``; None is the first of ``test`` and ``val`` that exists, else the folder.
        device: where to run the variants.
        runtime: what runs them.
        progress: receives the progress.

    Returns:
        For each variant top-1 and top-5 with 95 % intervals, figures of every class, the confusion matrix, the expected
        calibration error, and the top-1 that it loses against the model.

    Raises:
        MissingPart: the bundle has no class names.
        DataError: the images cannot be used, or have other classes.
        UsageError: a variant does not exist or cannot be run on this machine.
        ProofError: a variant does not agree with its golden set on this machine, or gives logits that are not finite.
    """
    return evaluate_accepted(
        bundle, data, None, variants=variants, split=split, device=device, runtime=runtime, progress=progress
    )


def evaluate_accepted(
    bundle: str | Path | Bundle,
    data: str | Path,
    check_images: Callable[[LabeledImages], None] | None,
    *,
    variants: str | Sequence[str] | None,
    split: str | None,
    device: Device,
    runtime: Runtime,
    progress: Progress | None,
) -> EvaluationResult:
    """Do what :func:`evaluate` does, unless ``check_images`` refuses the images with an error, before it reads them."""
    expect("data", data, PATH, "a folder of images")
    names: Sequence[str] | None = (variants,) if isinstance(variants, str) else variants
    if names is not None:
        names = expect_each("variants", names, str, "a name or several, such as ('onnx-fp32',)")
    expect("split", split, (str, NoneType), "test, val, train or None")
    opened = open_bundle(bundle_path(bundle))
    if opened.manifest.imported is not None and not opened.manifest.labels:
        raise MissingPart(
            f"{opened.path} has no class names, by which folders of images are matched: `regnet-deploy import` the "
            f"weights again with --labels FILE, or fine-tune them: `regnet-deploy train{opened.argument} --data DIR`"
        )
    for module in ("torch", "safetensors", "PIL"):
        require(module, "export")
    from regnet_deploy.evaluation.evaluate import evaluate_sessions
    from regnet_deploy.evaluation.labeled_images import find_held_out_images, find_labeled_images
    from regnet_deploy.evaluation.record import MODEL
    from regnet_deploy.runtimes.checked_variant import open_checked_variant
    from regnet_deploy.runtimes.runtime import runtime_unsupported_reason

    if names is None:
        every = opened.manifest.variants
        names = [name for name in every if runtime_unsupported_reason(opened, name, device, runtime) is None]
    sessions = [(name, open_checked_variant(opened, name, device=device, runtime=runtime)) for name in names]
    held_out = find_held_out_images(data, opened, split, progress)
    images = held_out or find_labeled_images(data, opened.labels, split, progress)
    if check_images is not None:
        check_images(images)
    return evaluate_sessions([(MODEL, open_weights(opened)), *sessions], images, opened, progress or NoProgress())


def open_weights(bundle: Bundle) -> Session:
    """Open the weights of a bundle in PyTorch."""
    require("torch", "train")
    from regnet_deploy.models.torch_session import TorchSession

    return TorchSession(bundle)


def _open_emulated(bundle: Bundle, name: str) -> Session:
    """Open an ONNX variant for TensorRT as it was proved: emulated where ONNX Runtime does not compute as typed."""
    from regnet_deploy.bundle.variants import OnnxVariant
    from regnet_deploy.exporting.emulation import emulate, runs_as_typed
    from regnet_deploy.exporting.precision import find_precision
    from regnet_deploy.runtimes.runtime import find_variant, open_onnx, open_variant

    variant = find_variant(bundle, name)
    precision = find_precision(variant.precision)
    if not isinstance(variant, OnnxVariant) or runs_as_typed(precision):
        return open_variant(bundle, name)
    session = open_onnx(emulate(bundle.read(variant.file), precision), device="cpu", exact=True)
    session.runtime += ", which emulates its types,"
    return session
