import hashlib
from dataclasses import replace

import numpy as np
import pytest
from bundle_parts import calibration, engine, engine_variant, onnx_variant

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.builder_log import BuilderLog
from regnet_deploy.engines.engine_builder import EngineSource, build_engine, build_plan, rebuild_engine
from regnet_deploy.engines.gpu import find_gpu
from regnet_deploy.engines.inspection import is_squeeze_excitation
from regnet_deploy.engines.library import Library, find_library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.errors import ProofError, UsageError
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
