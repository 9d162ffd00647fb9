import hashlib
import os
import re
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from bundle_parts import calibration, engine, engine_variant, onnx_variant

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions, rtx_capabilities
from regnet_deploy.engines.builder_log import BuilderLog
from regnet_deploy.engines.engine_builder import EngineSource, build_engine, build_plan, rebuild_engine
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.engines.inspection import check_types, is_squeeze_excitation
from regnet_deploy.engines.library import Library, find_library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.errors import ProofError, RegnetDeployError, UsageError
from regnet_deploy.progress import NoProgress
from regnet_deploy.runtimes.runtime import open_onnx

FOUR = EngineOptions.up_to(4)


def make(machine, onnx, convolutions, options=FOUR, **more):
    source = EngineSource("trt-fp16", onnx, 32, "fp16", convolutions, options, **more)
    return build_engine(machine.library, machine.gpu, source)


def test_the_entry_says_what_the_engine_is_and_its_session_runs(machine, onnx_of, types_of, images):
    onnx, asked = onnx_of("fp16"), types_of("fp16")
    made = make(machine, onnx, asked)
    identity = made.engine.identity
    assert made.engine.key == identity.key
    assert made.engine.file == f"trt-fp16-{identity.key[:12]}.plan"
    assert identity.onnx_sha256 == hashlib.sha256(onnx).hexdigest()
    assert (identity.gpu, identity.options) == (machine.gpu.name, FOUR)
    assert made.engine.bytes == len(made.plan)
    assert made.engine.types == {"fp16": len(asked)}
    assert (made.engine.proof, made.engine.note) == (None, None)
    assert not made.engine.unaccounted
    assert made.session.run(images).shape == (11, 5)


def test_a_convolution_in_another_type_than_asked_is_refused(machine, onnx_of, types_of):
    asked = types_of("fp16")
    name = sorted(asked)[0]
    machine.trt.convolutions = lambda convolution, kind: "Float" if convolution == name else kind
    with pytest.raises(ProofError, match=rf"^1 of {len(asked)} convolutions .*{name} \(fp16 required, fp32 built\)"):
        make(machine, onnx_of("fp16"), asked)


def test_a_file_that_is_typed_otherwise_than_its_name_says_is_refused(machine, onnx_of, types_of):
    """The graph itself is broken: it is the FP32 one."""
    asked = types_of("fp16")
    wrong = sum(not is_squeeze_excitation(name) for name in asked)  # a gate in a wider float is none of them
    with pytest.raises(ProofError, match=rf"{wrong} of {len(asked)} convolutions do not compute in the type required"):
        make(machine, onnx_of("fp32"), asked)


def test_a_convolution_that_the_report_does_not_name_is_refused_unless_that_is_accepted(machine, onnx_of, types_of):
    asked = {**types_of("fp16"), "s9.b1.f.a": "fp16"}
    with pytest.raises(ProofError, match=r"which type 1 of \d+ convolutions .*: s9\.b1\.f\.a; .*--accept-unaccounted"):
        make(machine, onnx_of("fp16"), asked)
    made = make(machine, onnx_of("fp16"), asked, accept_unaccounted=True)
    assert made.engine.unaccounted == ("s9.b1.f.a",)


@pytest.mark.parametrize("options", [FOUR, EngineOptions(min_batch=2, tuned_batch=2, max_batch=2)])
def test_tensorrt_logs_layers_without_types_and_the_inspector_has_them(
    machine, onnx_of, types_of, monkeypatch, options
):
    logged = []
    with monkeypatch.context() as patch:
        patch.setattr(BuilderLog, "add_line", lambda self, is_error, text: logged.append(text))
        built = build_plan(machine.library, machine.gpu, onnx_of("fp16"), 32, options)
    assert built.layers is None
    (lines,) = [text for text in logged if text.startswith("Layers:")]
    assert ("N/A due to dynamic shapes" in lines) == (options is FOUR)
    assert make(machine, onnx_of("fp16"), types_of("fp16"), options).engine.types == {"fp16": len(types_of("fp16"))}


def test_the_layers_that_tensorrt_rtx_logs_go_before_those_of_its_inspector(
    machine, fakes, onnx_of, types_of, monkeypatch
):
    library = Library(fakes.fake_tensorrt("11.4.0.106", machine.cuda, rtx=True), "tensorrt-rtx")
    options = FOUR.replace(compute_capabilities=("8.9",))
    source = EngineSource("rtx-fp16", onnx_of("fp16"), 32, "fp16", types_of("fp16"), options)
    monkeypatch.setattr(EngineSession, "layers", lambda self: pytest.fail("the inspector is asked"))
    made = build_engine(library, replace(machine.gpu, compute_capability="8.9"), source)
    assert made.engine.types == {"fp16": len(types_of("fp16"))}
    assert made.session is not None


def test_a_version_compatible_engine_is_proved_by_the_lean_runtime_where_that_is_installed(
    machine, onnx_of, types_of, monkeypatch, tmp_path
):
    from regnet_deploy.engines import engine_builder

    lean, loaded, load = tmp_path / "libnvinfer_lean.so", [], machine.trt.Runtime.load_runtime
    lean.write_text(machine.trt.__version__)
    monkeypatch.setattr(
        engine_builder, "lean_runtime", lambda version: lean if version == machine.trt.__version__ else None
    )
    monkeypatch.setattr(machine.trt.Runtime, "load_runtime", lambda self, path: loaded.append(path) or load(self, path))
    options = FOUR.replace(version_compatible=True)
    made = make(machine, onnx_of("fp16"), types_of("fp16"), options=options)
    make(machine, onnx_of("fp16"), types_of("fp16"))
    assert loaded == [str(lean)]
    assert made.session.is_lean
    # The lean runtime has no inspector: the types are those that the full one reports.
    assert made.engine.types == {"fp16": len(types_of("fp16"))}
    with pytest.raises(ProofError, match=r"not known, because the runtime of tensorrt .* has no engine inspector"):
        made.session.layers()


def test_kernels_are_timed_once(machine, onnx_of, types_of, tmp_path):
    make(machine, onnx_of("fp16"), types_of("fp16"))
    (cache,) = (tmp_path / "cache" / "regnet-deploy" / "timing").glob("*.timing")
    assert "H100" in cache.name


def test_without_a_gpu_tensorrt_rtx_builds_and_says_that_nothing_is_proved(rtx, onnx_of, types_of):
    asked = types_of("fp16")
    made = build_engine(rtx, None, EngineSource("rtx-fp16", onnx_of("fp16"), 32, "fp16", asked, FOUR))
    assert made.session is None
    assert "built without a GPU and not proved" in made.engine.note
    assert set(made.engine.types) == {"fp16"}
    assert made.engine.identity.options.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")


def test_tensorrt_rtx_beside_a_gpu_that_it_is_not_for_proves_nothing_and_says_why(rtx, h100, onnx_of, types_of):
    source = EngineSource("rtx-fp16", onnx_of("fp16"), 32, "fp16", types_of("fp16"), FOUR)
    made = build_engine(rtx, h100, source)
    assert made.session is None
    assert made.engine.note.startswith("not proved: it was built for ")
    assert "H100" in made.engine.note


class TestRemake:
    """An engine for this machine, as those of other machines were built."""

    def test_the_options_are_those_of_the_others(self, machine, with_engine, prepared):
        path = with_engine(machine, EngineOptions.up_to(2, tf32=True), gpu=replace(machine.gpu, name="NVIDIA L4"))
        made = rebuild_engine(prepared(path), "trt-fp16", machine.gpu)
        identity = made.engine.identity
        assert identity.options == EngineOptions.up_to(2, tf32=True)
        assert identity.gpu == machine.gpu.name
        assert made.session is not None

    def test_a_variant_without_engines_is_built_with_the_usual_options(self, machine, with_engine, prepared):
        bundle = prepared(with_engine(machine), engines=[])
        made = rebuild_engine(bundle, "trt-fp16", machine.gpu)
        assert made.engine.identity.options == EngineOptions()

    def test_the_calibration_is_part_of_the_identity(self, machine, with_engine, prepared):
        bundle = prepared(with_engine(machine), calibrated=calibration().replace(digest="abc"))
        made = rebuild_engine(bundle, "trt-fp16", machine.gpu)
        assert made.engine.identity.calibration == "abc"

    def test_the_types_are_held_against_what_the_variant_says(self, machine, with_engine, prepared):
        machine.trt.convolutions = lambda convolution, kind: "Float"
        with pytest.raises(ProofError, match=r"fp16 required, fp32 built"):
            rebuild_engine(prepared(with_engine(machine)), "trt-fp16", machine.gpu)

    def test_what_the_report_leaves_out_is_accepted_where_it_was_of_the_others(self, machine, with_engine, prepared):
        bundle = prepared(with_engine(machine))
        variants = bundle.parts["variants"]
        variants["trt-fp16"]["convolutions"]["s9.b1.f.a"] = "fp16"
        bundle = update_bundle(bundle.path, {"variants": variants})
        with pytest.raises(ProofError, match=r"is not known.*s9\.b1\.f\.a"):
            rebuild_engine(bundle, "trt-fp16", machine.gpu)
        variants["trt-fp16"]["engines"][-1]["unaccounted"] = ["s9.b1.f.a"]
        bundle = update_bundle(bundle.path, {"variants": variants})
        made = rebuild_engine(bundle, "trt-fp16", machine.gpu)
        assert made.engine.unaccounted == ("s9.b1.f.a",)

    def test_no_gpu_no_source_and_no_such_variant_are_one_line(self, machine, with_engine, prepared):
        bundle = prepared(with_engine(machine))
        with pytest.raises(UsageError, match="trt-fp16 is built for the GPU that runs it, and the NVIDIA driver shows"):
            rebuild_engine(bundle, "trt-fp16", None)
        with pytest.raises(UsageError, match=r"no engines 'trt-fp61' \(did you mean trt-fp16\?\)"):
            rebuild_engine(bundle, "trt-fp61", machine.gpu)
        variants = bundle.parts["variants"]
        del variants["onnx-fp16"]
        bundle = update_bundle(bundle.path, {"variants": variants})
        with pytest.raises(UsageError, match=r"onnx-fp16, which it is built from, is not in .*export --trt"):
            rebuild_engine(bundle, "trt-fp16", machine.gpu)

    @pytest.fixture
    def prepared(self, types_of):
        """Return a function that gives a bundle what export says of its variants."""

        def prepare(path, engines=None, calibrated=None):
            bundle = open_bundle(path)
            variants = bundle.parts["variants"]
            variants["trt-fp16"]["convolutions"] = types_of("fp16")
            if engines is not None:
                variants["trt-fp16"]["engines"] = engines
            if calibrated:
                variants["onnx-fp16"]["calibration"] = calibrated
            return update_bundle(path, {"variants": variants, "preprocessing": {"resize": 32, "crop": 32}})

        return prepare


@pytest.mark.parametrize(("capability", "built_for"), [("8.9", ("8.0", "8.9")), ("12.0", ("12.0",))])
def test_tensorrt_rtx_builds_for_this_gpu_where_the_others_are_not_for_it(
    rtx, h100, monkeypatch, tmp_path, onnx_of, types_of, capability, built_for
):
    from regnet_deploy.bundle import create_bundle
    from regnet_deploy.engines import engine_builder
    from regnet_deploy.engines.identity import identify

    options = EngineOptions.up_to(4, compute_capabilities=("8.0", "8.9"))
    onnx, path = onnx_of("fp16"), tmp_path / "bundle"
    other = identify(hashlib.sha256(onnx).hexdigest(), "fp16", None, rtx, None, options)
    variants = {
        "onnx-fp16": onnx_variant("onnx-fp16", precision="fp16"),
        "rtx-fp16": engine_variant(engine(identity=other), runtime="tensorrt-rtx"),
    }
    create_bundle(path, {"preprocessing": {"resize": 32, "crop": 32}})
    bundle = update_bundle(path, {"variants": variants}, {"onnx-fp16.onnx": onnx})
    seen = []
    monkeypatch.setattr(
        engine_builder, "build_engine", lambda library, gpu, source, progress: seen.append(source.options)
    )
    rebuild_engine(bundle, "rtx-fp16", replace(h100, compute_capability=capability))
    assert seen[0].compute_capabilities == built_for


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8-1x1"])
def test_on_a_gpu_an_engine_is_built_in_its_types_and_gives_the_logits_of_the_file(
    onnx_of, types_of, images, runtime, precision
):
    gpu = find_gpu()
    if gpu is None:
        pytest.skip("needs a CUDA device")
    if runtime == "tensorrt":
        pytest.importorskip("tensorrt", reason="needs TensorRT (extra [trt])")
    else:
        pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    library = find_library(gpu, runtime)
    variant = library.variant(precision)
    built = build_engine(
        library, gpu, EngineSource(variant, onnx_of(precision), 32, precision, types_of(precision), FOUR)
    )
    assert sum(built.engine.types.values()) + len(built.engine.unaccounted) == len(types_of(precision))
    if built.session is None:  # TensorRT-RTX does not run on every GPU
        assert built.engine.note.startswith("not proved")
        return
    wanted = open_onnx(onnx_of("fp32" if precision == "bf16" else precision), device="cpu").run(images)
    bound = {"fp32": 1e-4, "fp16": 2e-2}.get(precision, 2e-1)
    for _ in range(3):  # plain, captured, replayed
        assert np.abs(built.session.run(images) - wanted).max() < bound * max(1.0, np.abs(wanted).max())
    assert built.session.uncaptured == {}


# TensorRT-RTX really builds; what it cannot do without a GPU is driven through the fake of TensorRT 10 and 11.


SIDE = 32


def with_capabilities(*capabilities):
    return EngineOptions.up_to(4, compute_capabilities=capabilities)


@pytest.mark.parametrize("kind", ["x", "y"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8-1x1", "fp8-1x1"])
def test_tensorrt_rtx_builds_every_precision_and_its_convolutions_compute_in_the_type_asked(
    rtx, onnx_of, types_of, precision, kind
):
    options = with_capabilities(*rtx_capabilities(precision))
    built = build_plan(rtx, None, onnx_of(precision, kind), SIDE, options)
    asked = types_of(precision, kind)
    checked = check_types(asked, built.layers)
    # A gate of two channels may become a few multiplications in a generated kernel, which is no convolution any more.
    assert all(name.endswith("se.f_ex.2") for name in checked.unaccounted)
    found = [asked[name] for name in asked if name not in checked.unaccounted]
    assert checked.counts == {type_: found.count(type_) for type_ in set(found)}


def test_a_file_of_another_precision_than_asked_is_found_in_the_engine(rtx, onnx_of, types_of):
    built = build_plan(rtx, None, onnx_of("fp32"), SIDE, FOUR)
    asked = types_of("fp16")
    with pytest.raises(ProofError, match=rf"of {len(asked)} convolutions do not .*\(fp16 required, fp32 built\)"):
        check_types(asked, built.layers)


def test_int8_that_the_builder_does_not_fuse_and_computes_in_fp16_is_found(rtx, onnx_of, types_of):
    """Scales of one element where scalars belong: the parser takes them and the fusion does not know them."""
    import onnx

    model = onnx.load_from_string(onnx_of("int8"))
    for constant in model.graph.initializer:
        if not constant.dims:
            constant.dims.append(1)
    built = build_plan(rtx, None, model.SerializeToString(), SIDE, FOUR)
    with pytest.raises(ProofError, match=r"convolutions do not .* stem\.conv \(int8 required, fp16 built\)"):
        check_types(types_of("int8"), built.layers)


#: What TensorRT-RTX has no kernels for: its own words, in part.
REFUSED = {
    ("fp32", "7.5"): "FP32 GEMM is not supported",
    ("bf16", "7.5"): "HW-specific datatypes: b16",
    **{("fp8-1x1", one): "HW-specific datatypes: fp8" for one in ("7.5", "8.0", "8.6")},
}


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8-1x1", "fp8-1x1"])
def test_tensorrt_rtx_builds_for_every_gpu_or_says_why_not(rtx, onnx_of, precision, capability):
    options, onnx = with_capabilities(capability), onnx_of(precision)
    reason = REFUSED.get((precision, capability))
    if reason is None:
        assert len(build_plan(rtx, None, onnx, SIDE, options).plan) > 10_000
    else:
        with pytest.raises(RegnetDeployError, match=reason) as caught:
            build_plan(rtx, None, onnx, SIDE, options)
        assert "\n" not in str(caught.value)
        assert ".cpp" not in str(caught.value)


def test_every_gpu_that_tensorrt_rtx_knows_is_among_these(rtx):
    known = {name for name in rtx.module.ComputeCapability.__members__ if name.startswith("SM")}
    assert known == {"SM75", "SM80", "SM86", "SM89", "SM120", "SM121"}


def test_a_gpu_that_tensorrt_rtx_does_not_build_for_is_one_line(rtx, onnx_of):
    with pytest.raises(UsageError, match=r"does not build for compute capability 9\.0; it builds for 7\.5, 8\.0"):
        build_plan(rtx, None, onnx_of(), SIDE, with_capabilities("9.0"))


def test_int8_with_zero_points_is_onnx_runtimes_alone(rtx, onnx_of):
    with pytest.raises(RegnetDeployError, match=r"does not parse the network: .*[Zz]ero point"):
        build_plan(rtx, None, onnx_of("int8-cpu"), SIDE, FOUR)


def test_what_the_parser_refuses_is_one_line_with_the_node(rtx, onnx_of):
    broken = onnx_of().replace(b"Sigmoid", b"Sigmoxd")
    with pytest.raises(RegnetDeployError, match=r"does not parse the network: s1\.b1\.f\.se\.f_ex\.3: ") as caught:
        build_plan(rtx, None, broken, SIDE, FOUR)
    assert str(caught.value).count("f_ex.3") <= 3
    assert "\n" not in str(caught.value)


def test_what_is_no_onnx_is_one_line(rtx):
    with pytest.raises(RegnetDeployError, match="does not parse the network: the file: "):
        build_plan(rtx, None, b"not onnx", SIDE, FOUR)


def test_a_build_that_fails_gives_the_reason_of_the_error_recorder(rtx, onnx_of):
    with pytest.raises(RegnetDeployError, match=r"does not build the network: .*profile has min=24.*tensor has 32"):
        build_plan(rtx, None, onnx_of(), 24, FOUR)


def test_progress_has_the_phases_of_the_build(rtx, onnx_of, recorded_progress):
    recorded_progress.step("building")
    build_plan(rtx, None, onnx_of(), SIDE, FOUR, recorded_progress)
    notes = [note for *_, note in recorded_progress.updates]
    assert notes
    assert all(re.fullmatch(r".+ \(\d+\)", note) for note in notes)


class Interrupting(NoProgress):
    """Ctrl-C once, which reaches the main thread, while the build runs in another.

    A second one could arrive when the first has ended the build, and would end the tests.
    """

    def __init__(self):
        self.sent = False

    def update(self, completed, total=None, note=""):
        assert threading.current_thread() is not threading.main_thread()
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)


class Failing(NoProgress):
    def update(self, completed, total=None, note=""):
        raise BrokenPipeError("nobody listens")


def test_ctrl_c_in_the_middle_ends_a_build_of_tensorrt_rtx(rtx, onnx_of):
    with pytest.raises(KeyboardInterrupt):
        build_plan(rtx, None, onnx_of(), SIDE, FOUR, Interrupting())
    assert len(build_plan(rtx, None, onnx_of(), SIDE, FOUR).plan) > 10_000  # the next one is not disturbed


def test_what_progress_raises_ends_the_build_and_is_raised(rtx, onnx_of):
    with pytest.raises(BrokenPipeError, match="nobody listens"):
        build_plan(rtx, None, onnx_of(), SIDE, FOUR, Failing())


def test_ctrl_c_in_the_middle_cancels_the_build_through_the_monitor(machine, onnx_of, tmp_path):
    asked = []

    def step():
        asked.append(1)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)

    machine.trt.step, machine.trt.steps = step, 100_000
    path = tmp_path / "h100.timing"
    with pytest.raises(KeyboardInterrupt):
        machine.build(onnx_of(), timing_cache=path)
    assert len(asked) < 100_000
    assert not path.exists()


def test_tensorrt_builds_strongly_typed_with_what_the_options_say(machine, onnx_of):
    options = EngineOptions(2, 16, 1, 2**28, 4, version_compatible=True, hardware_compatible="ampere+")
    machine.build(onnx_of(), options)
    (config,) = machine.trt.built
    flags = {flag.name for flag in config._flags}
    assert flags == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}  # and no TF32, and no precision
    assert config._pools == {"WORKSPACE": 2**28}
    assert config.builder_optimization_level == 4
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config._profiles[0]._shapes == {"images": tuple((batch, 3, SIDE, SIDE) for batch in (1, 2, 16))}


def test_strong_typing_is_asked_for_by_name_whatever_its_number(machine, onnx_of, monkeypatch):
    flags = []
    create = machine.trt.Builder.create_network
    monkeypatch.setattr(
        machine.trt.Builder, "create_network", lambda self, flag: flags.append(flag) or create(self, flag)
    )
    machine.build(onnx_of())
    assert flags == [1 << {"10": 1, "11": 0}[machine.trt.__version__[:2]]]
    monkeypatch.delattr(machine.trt, "NetworkDefinitionCreationFlag")
    machine.trt.NetworkDefinitionCreationFlag = type("NetworkDefinitionCreationFlag", (), {})  # one without it
    machine.build(onnx_of())
    assert flags[1:] == [0]


def test_tf32_stays_on_where_it_is_asked_for(machine, onnx_of):
    machine.build(onnx_of(), EngineOptions.up_to(4, tf32=True))
    assert {flag.name for flag in machine.trt.built[0]._flags} == {"TF32"}


def test_options_of_the_other_runtime_are_one_line(machine, rtx, onnx_of):
    with pytest.raises(UsageError, match="for tensorrt-rtx only"):
        machine.build(onnx_of(), with_capabilities("8.9"))
    with pytest.raises(UsageError, match="hardware_compatible is an option of tensorrt"):
        build_plan(rtx, None, onnx_of(), SIDE, EngineOptions.up_to(4, hardware_compatible="ampere+"))


@pytest.mark.parametrize(
    "reason",
    [
        "OutOfMemory (Requested size was 8589934592 bytes.)",
        "Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (2147483648 bytes) could not be allocated.",
    ],
)
def test_memory_that_runs_out_in_a_build_is_one_line_that_says_so(machine, onnx_of, reason):
    machine.trt.error = reason
    with pytest.raises(RegnetDeployError) as caught:
        machine.build(onnx_of())
    line = str(caught.value)
    assert "the GPU's memory is too small or in use: NVIDIA H100 80GB HBM3 has 80.0 GiB; stop other programs" in line
    assert reason.split("(")[0].strip() in line
    assert "\n" not in line


def test_a_gpu_that_is_full_is_found_before_the_build(machine, onnx_of, monkeypatch):
    monkeypatch.setattr("regnet_deploy.engines.engine_builder.free_memory", lambda: 10_000)
    with pytest.raises(
        UsageError, match=r"H100 80GB HBM3 has 0 MiB of its 81920 MiB free and the weights and a batch of 4"
    ):
        machine.build(onnx_of())
    assert machine.trt.built == []
    monkeypatch.setattr("regnet_deploy.engines.engine_builder.free_memory", lambda: None)  # the driver does not tell
    assert machine.build(onnx_of())


def test_a_driver_that_cannot_be_used_is_one_line(machine, onnx_of):
    machine.trt.starts = False
    with pytest.raises(RegnetDeployError, match="does not start: CUDA initialization failure with error: 35"):
        machine.build(onnx_of())


def test_a_failure_without_a_reason_says_so(machine, onnx_of):
    machine.trt.Builder.build_serialized_network = lambda self, network, config: None
    with pytest.raises(RegnetDeployError, match="does not build the network: no reason given"):
        machine.build(onnx_of())


def test_timings_are_kept_and_used_by_the_next_build(machine, onnx_of, tmp_path, recorded_progress):
    path = tmp_path / "cache" / "h100.timing"
    recorded_progress.step("building")
    machine.build(onnx_of("fp32"), progress=recorded_progress, timing_cache=path)
    first = path.read_bytes()
    machine.build(onnx_of("fp16"), progress=recorded_progress, timing_cache=path)
    assert len(machine.trt.built[1]._cache._entries) == 2  # those of the first build, and its own
    assert path.read_bytes() != first
    assert recorded_progress.messages == []


def test_tensorrt_rtx_is_not_asked_for_timings(rtx, onnx_of, tmp_path):
    path = tmp_path / "rtx.timing"
    build_plan(rtx, None, onnx_of(), SIDE, FOUR, timing_cache=path)
    assert not path.exists()


def test_a_library_of_another_version_with_the_same_interface_builds(fakes, h100, onnx_of, monkeypatch):
    monkeypatch.setattr("regnet_deploy.engines.engine_builder.free_memory", lambda: None)
    library = Library(fakes.fake_tensorrt("11.0.0.114"), "tensorrt")
    assert build_plan(library, h100, onnx_of(), SIDE, FOUR).plan
