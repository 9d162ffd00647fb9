"""Exports variants: writes the ONNX file of each precision, builds engines from them, and evaluates each one."""

from __future__ import annotations

from dataclasses import replace

from regnet_deploy.bundle.variants import ENGINE_VARIANTS, Engine, OnnxVariant
from regnet_deploy.cpu import describe_int8_support, int8_sums_saturate
from regnet_deploy.engines.engine_builder import EngineSource, build_engine
from regnet_deploy.errors import DataError, ProofError, RegnetDeployError, UsageError
from regnet_deploy.exporting.emulation import runs_as_typed
from regnet_deploy.exporting.existing_variants import stored_engines
from regnet_deploy.exporting.float_range import check_float_range
from regnet_deploy.exporting.openvino_variants import make_openvino_variants, makes_openvino_variants
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.proof import open_for_proof
from regnet_deploy.exporting.state import ExportContext, ExportedEngine, ExportedOnnx, ExportState
from regnet_deploy.exporting.variant_choice import candidate_precisions


def make_variants(context: ExportContext) -> ExportState:
    """Export fp32, the requested precisions and, with ``auto``, the candidates that this machine can run.

    Raises:
        DataError: a requested precision cannot be calibrated.
        UsageError: a requested precision cannot be exported with these options.
        ProofError: the fp32 variant does not agree with the model.
    """
    state = _make_onnx_variants(context)
    if makes_openvino_variants(context, state):
        state = make_openvino_variants(context, state)
    if context.builder.error is not None:
        return state.with_rejected("engines", context.builder.error)
    return _make_engine_variants(context, state)


def _make_onnx_variants(context: ExportContext) -> ExportState:
    options, builder = context.options, context.builder
    requested = {"fp32", *(precision.name for precision in options.precisions)}
    onnx: dict[str, ExportedOnnx] = {}
    rejected: dict[str, RegnetDeployError] = {}

    def add(precision: Precision) -> None:
        # The other candidates of `auto` run the validation images only if they are the fastest.
        validate = not options.auto or precision.name in requested
        onnx.update((one.name, one) for one in export_onnx(context, precision, validate=validate))

    add(PRECISIONS["fp32"])
    precisions = list(options.precisions)
    if options.auto:
        cuda = onnx["onnx-fp32"].session.device.startswith("cuda")
        engines = builder.library is not None and builder.gpu is not None
        precisions += candidate_precisions(cuda=cuda, engines=engines)
    for precision in dict.fromkeys(precisions):
        if precision.name == "fp32":
            continue
        try:
            add(precision)
        except ProofError as error:
            rejected[f"onnx-{precision.name}"] = error
        except (DataError, UsageError) as error:  # for example too few images for calibration
            if precision.name in requested:
                raise
            rejected[f"onnx-{precision.name}"] = error
    return ExportState(onnx=onnx, rejected=rejected)


def _make_engine_variants(context: ExportContext, state: ExportState) -> ExportState:
    library = context.builder.library
    if library is None:
        return state
    engines: dict[str, ExportedEngine] = {}
    rejected = dict(state.rejected)
    stored = stored_engines(context.bundle, context.golden)
    for onnx in state.onnx.values():
        precision = PRECISIONS[onnx.variant.precision]
        if onnx.variant.input != "float32" or not precision.tensorrt_supported:
            continue
        name = library.variant(precision.name)
        try:
            before = stored[name].engines if name in stored else ()
            engines[name] = export_engine(context, onnx, before, validate=not context.options.auto)
        except RegnetDeployError as error:
            rejected[name] = error
    return replace(state, engines=engines, rejected=rejected)


def export_onnx(context: ExportContext, precision: Precision, *, validate: bool = True) -> list[ExportedOnnx]:
    """Write and evaluate the ONNX file of a precision, and with ``--uint8`` also the one whose input is pixels.

    Args:
        context: of the export.
        precision: of the file.
        validate: also measure its accuracy on the validation images.

    Raises:
        DataError: there are too few images for calibration, or their classes are not the bundle's.
        UsageError: no images for calibration are given, or the precision changes nothing in this network.
        ProofError: it does not pass the gate; the message has the figures. Or a weight or an activation is beyond the
            range of its type; the message names it.
    """
    source, progress = context.source, context.progress
    source.check_has_effect(precision)
    ranges = calibration = weight_bits = None
    note, reduce_range = _note(precision), False
    check_float_range(source, context.golden.golden, precision)
    if precision.needs_ranges:
        # Only the kernels of ONNX Runtime saturate; TensorRT sums in 32 bits.
        reduce_range = precision.quantized_type == "uint8" and int8_sums_saturate()
        calibrated = context.calibrator.choose_ranges(precision, context.gate, reduce_range=reduce_range)
        ranges, calibration = calibrated.ranges, calibrated.calibration
        if precision.quantized_type == "uint8":
            weight_bits = 7 if reduce_range else 8
            note = f"weights of {weight_bits} bits, for {describe_int8_support()}"
    exported = []
    for pixels in (False, True) if context.options.uint8 else (False,):
        name = f"onnx-{precision.name}" + ("-uint8" if pixels else "")
        progress.step(f"{name}: writing")
        data = source.onnx(precision, ranges, pixels=pixels, reduce_range=reduce_range)
        session = open_for_proof(data, precision, context.options.device)
        progress.step(f"{name}: evaluating")
        evaluation = context.gate.evaluate(name, session, precision, progress, validate=validate)
        variant = OnnxVariant(
            file=f"{name}.onnx",
            bytes=len(data),
            precision=precision.name,
            input="uint8" if pixels else "float32",
            opset=precision.opset,
            exact=precision.tensorrt_only,
            note=note,
            weight_bits=weight_bits,
            calibration=calibration,
            proof=evaluation.proof,
            accuracy=evaluation.accuracy,
        )
        exported.append(ExportedOnnx(name, data, variant, session))
    return exported


def export_engine(
    context: ExportContext, onnx: ExportedOnnx, stored: tuple[Engine, ...] = (), *, validate: bool = True
) -> ExportedEngine:
    """Build the engine of an ONNX variant and, if there is a GPU, evaluate it.

    Args:
        context: of the export; its builder must have a library.
        onnx: to build from.
        stored: engines of the same variant in the bundle, for other machines.
        validate: also measure its accuracy on the validation images.

    Raises:
        UsageError: the library does not support an option, or the GPU has too little memory.
        ProofError: a convolution computes in another type than required, or in an unknown one, or the engine does not
            pass the gate.
        RegnetDeployError: the build fails; the message has TensorRT's reason.
    """
    options, progress, library = context.options, context.progress, context.builder.library
    assert library is not None
    precision, calibration = PRECISIONS[onnx.variant.precision], onnx.variant.calibration
    name, convolutions = library.variant(precision.name), context.source.convolution_types(precision)
    progress.step(f"{name}: building with {library}")
    source = EngineSource(
        variant=name,
        onnx=onnx.data,
        side=context.source.preprocessing.crop,
        precision=precision.name,
        convolutions=convolutions,
        options=options.engine,
        calibration=calibration.digest if calibration else None,
        accept_unaccounted=options.accept_unaccounted,
    )
    built = build_engine(library, context.builder.gpu, source, progress)
    engine = built.engine
    if built.session is not None:
        progress.step(f"{name}: evaluating on {built.session.device}")
        evaluation = context.gate.evaluate(name, built.session, precision, progress, validate=validate)
        engine = engine.replace(proof=evaluation.proof, accuracy=evaluation.accuracy)
    variant = ENGINE_VARIANTS[library.runtime](
        precision=precision.name,
        input="float32",
        opset=precision.opset,
        source=onnx.name,
        convolutions=convolutions,
        engines=stored,
    )
    return ExportedEngine(name, built.plan, variant.with_engine(engine), built.session)


def _note(precision: Precision) -> str | None:
    if precision.float_type == "bf16":
        return "proved with its rounding emulated in FP32: ONNX Runtime has no BF16 convolution on a CPU"
    if precision.tensorrt_only:
        note = "for TensorRT engines: ONNX Runtime runs it without optimization, which is slow"
        if precision.quantized_type == "int8":
            note += "; releases before 1.30 truncate where it quantizes FP16, so their answers are wrong"
        return note if runs_as_typed(precision) else f"{note}: proved with FP16 quantized in FP32"
    return None
