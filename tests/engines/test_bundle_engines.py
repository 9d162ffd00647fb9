import hashlib
from dataclasses import replace

import bundle_parts as parts
import numpy as np
import pytest

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.bundle_engines import (
    engine_file,
    engine_variants,
    fits,
    fitting_engine,
    library_here,
    no_engine_reason,
    open_engine,
    unused_plans,
)
from regnet_deploy.errors import BundleError, UsageError

pytestmark = pytest.mark.parametrize("machine", ["11.4.0.106"], indirect=True)


def of(key: str, onnx: str = "a", file: str = "x.plan"):
    made = parts.engine(key=key, file=file)
    return made.replace(identity=made.identity.replace(onnx_sha256=onnx))


class TestWithEngine:
    def test_another_machines_engine_stays_and_the_same_key_is_replaced(self, machine):
        variant = parts.engine_variant()
        for engine in (of("one"), of("two"), of("one", file="new.plan")):
            variant = variant.with_engine(engine)
        assert [(one.key, one.file) for one in variant.engines] == [("two", "x.plan"), ("one", "new.plan")]
        assert variant.source == "onnx-fp16"

    def test_engines_of_another_file_go(self, machine):
        variant = parts.engine_variant(of("one"), of("two", onnx="b")).with_engine(of("three", onnx="b"))
        assert [one.key for one in variant.engines] == ["two", "three"]


def test_plans_that_no_variant_has_any_more_are_named(machine, with_engine):
    bundle = open_bundle(with_engine(machine))
    variants = bundle.variants
    assert unused_plans(bundle, variants) == ()
    only_onnx = {"onnx-fp16": variants["onnx-fp16"]}
    assert unused_plans(bundle, only_onnx) == (variants["trt-fp16"].engines[0].file,)


def test_the_engine_that_fits_is_opened_and_gives_the_logits_of_its_file(machine, with_engine, a100, images):
    with_engine(machine, gpu=a100)
    bundle = open_bundle(with_engine(machine))
    reasons = [engine.unsupported_reason for engine in fits(bundle, "trt-fp16", machine.library, machine.gpu)]
    assert reasons[1] is None
    assert "A100" in reasons[0]
    assert "H100" in reasons[0]
    assert no_engine_reason(bundle, "trt-fp16") is None
    session = open_engine(bundle, "trt-fp16")
    import onnxruntime

    data = bundle.read("onnx-fp16.onnx")
    wanted = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
    np.testing.assert_allclose(session.run(images), wanted, atol=1e-5)


def test_a_proved_engine_comes_before_others_and_a_later_one_before_earlier_ones(machine, with_engine):
    with_engine(machine, proof=None)
    bundle = open_bundle(with_engine(machine, EngineOptions.up_to(2)))
    assert fitting_engine(bundle, "trt-fp16", machine.library, machine.gpu).identity.options.max_batch == 2
    bundle = open_bundle(with_engine(machine, EngineOptions.up_to(1), proof=None))
    assert fitting_engine(bundle, "trt-fp16", machine.library, machine.gpu).identity.options.max_batch == 2
    bundle = open_bundle(with_engine(machine, EngineOptions.up_to(3)))
    assert fitting_engine(bundle, "trt-fp16", machine.library, machine.gpu).identity.options.max_batch == 3


def test_an_engine_of_another_onnx_file_than_the_bundle_has_now_never_fits(machine, with_engine, onnx_of):
    path = with_engine(machine)
    update_bundle(path, {}, {"onnx-fp16.onnx": onnx_of("fp16", "x")})
    bundle = open_bundle(path)
    assert "was built from another onnx-fp16 (" in no_engine_reason(bundle, "trt-fp16")
    with pytest.raises(
        UsageError, match=r"no engine of trt-fp16 runs here: .* `regnet-deploy export --trt \S+` builds one"
    ):
        open_engine(bundle, "trt-fp16")
    variants = bundle.parts["variants"]
    del variants["onnx-fp16"]
    update_bundle(path, {"variants": variants})
    assert "is not in the bundle any more" in no_engine_reason(open_bundle(path), "trt-fp16")


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_plan_with_one_byte_changed_is_refused_before_it_is_loaded(machine, with_engine, monkeypatch, at):
    bundle = open_bundle(with_engine(machine))
    path = bundle.stored_path(bundle.parts["variants"]["trt-fp16"]["engines"][0]["file"])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(machine.trt, "Runtime", pytest.fail)  # TensorRT never sees it
    with pytest.raises(BundleError, match="is damaged: its sha256 is not") as caught:
        open_engine(bundle, "trt-fp16")
    assert "\n" not in str(caught.value)


def test_a_plan_that_was_cut_short_or_is_gone_is_refused(machine, with_engine):
    bundle = open_bundle(with_engine(machine))
    path = bundle.stored_path(bundle.parts["variants"]["trt-fp16"]["engines"][0]["file"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="is damaged"):
        open_engine(bundle, "trt-fp16")
    path.unlink()
    with pytest.raises(BundleError, match="cannot read"):
        open_engine(bundle, "trt-fp16")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda monkeypatch, machine: vars(machine.trt).update(__version__="11.3.0.99"),
            "machine has tensorrt 11.3",
        ),
        (
            lambda monkeypatch, machine: monkeypatch.setattr(
                "regnet_deploy.engines.bundle_engines.find_gpu", lambda: None
            ),
            "the NVIDIA driver shows no GPU",
        ),
        (
            lambda monkeypatch, machine: monkeypatch.setattr(
                "regnet_deploy.engines.bundle_engines.find_gpu", lambda: replace(machine.gpu, name="NVIDIA L4")
            ),
            "this machine has NVIDIA L4",
        ),
    ],
)
def test_another_version_no_gpu_and_another_gpu_are_one_line(machine, with_engine, monkeypatch, change, says):
    path = with_engine(machine)
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
    change(monkeypatch, machine)
    with pytest.raises(UsageError, match=says) as caught:
        open_engine(open_bundle(path), "trt-fp16")
    assert "\n" not in str(caught.value)
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()} == before


def test_a_library_that_is_not_to_be_had_is_the_reason_of_every_engine(machine, with_engine, monkeypatch):
    import importlib.util

    bundle = open_bundle(with_engine(machine))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = library_here("tensorrt")
    assert "tensorrt is not installed" in reason
    assert fits(bundle, "trt-fp16", reason, machine.gpu)[0].unsupported_reason == reason
    assert no_engine_reason(bundle, "trt-fp16") == reason


def test_a_version_compatible_engine_is_opened_with_its_own_lean_runtime(
    machine, with_engine, fakes, monkeypatch, tmp_path, images
):
    path = with_engine(machine, EngineOptions.up_to(4, version_compatible=True))
    lean = tmp_path / "libnvinfer_lean.so.11"
    lean.write_text("11.4.0.106")
    machine.trt.__dict__["__version__"] = "11.9.0.1"
    monkeypatch.setattr("regnet_deploy.engines.identity.lean_runtime", lambda version: lean)
    monkeypatch.setattr("regnet_deploy.engines.bundle_engines.lean_runtime", lambda version: lean)
    loaded = []
    load = machine.trt.Runtime.load_runtime
    monkeypatch.setattr(machine.trt.Runtime, "load_runtime", lambda self, path: loaded.append(path) or load(self, path))
    assert open_engine(open_bundle(path), "trt-fp16").run(images[:1]).shape == (1, 5)
    assert loaded == [str(lean)]


def test_a_name_that_is_no_engine_is_suggested(machine, with_engine):
    bundle = open_bundle(with_engine(machine))
    with pytest.raises(UsageError, match=r"no engines 'trt-fp61' \(did you mean trt-fp16\?\); there are trt-fp16"):
        open_engine(bundle, "trt-fp61")
    with pytest.raises(UsageError, match="no engines 'onnx-fp16'"):
        open_engine(bundle, "onnx-fp16")


def test_a_bundle_without_engines_says_which_command_builds_them(machine, tmp_path):
    bundle = create_bundle(tmp_path / "bundle", {})
    assert engine_variants(bundle) == {}
    with pytest.raises(UsageError, match=r"no engines 'trt-fp16'; run `regnet-deploy export --trt \S+`"):
        open_engine(bundle, "trt-fp16")


def test_a_variant_without_an_engine_is_one_line(machine, with_engine):
    path = with_engine(machine)
    variants = open_bundle(path).variants
    variants["trt-fp16"] = variants["trt-fp16"].replace(engines=())
    assert no_engine_reason(update_bundle(path, Manifest(variants=variants)), "trt-fp16") == "it has no engine"


def test_files_are_named_by_variant_and_key(machine, with_engine):
    bundle = open_bundle(with_engine(machine))
    (engine,) = fits(bundle, "trt-fp16", machine.library, machine.gpu)
    assert engine.file == engine_file("trt-fp16", engine.identity.key) == f"trt-fp16-{engine.identity.key[:12]}.plan"
    assert engine.engine.key == engine.identity.key
