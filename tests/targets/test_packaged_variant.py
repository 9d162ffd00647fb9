"""Which variant is packaged, and what is known of it."""

from __future__ import annotations

import pytest
from bundle_parts import candidate, choice, latency, openvino_variant

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.errors import BundleError, MissingPart, UsageError
from regnet_deploy.runtimes.tuned_settings import machine_summary
from regnet_deploy.targets.packaged_variant import choose_packaged_variant


def test_names_and_shapes_are_those_of_the_file(exported_bundle):
    bundle = open_bundle(exported_bundle)
    planes = choose_packaged_variant(bundle, "onnx-fp32", gpu=False)
    assert (planes.input_name, planes.output_name, planes.dtype, planes.image) == (
        *("images", "logits", "float32"),
        (3, 24, 24),
    )
    pixels = choose_packaged_variant(bundle, "onnx-fp32-uint8", gpu=False)
    assert (pixels.dtype, pixels.image) == ("uint8", (24, 24, 3))
    assert pixels.labels == ("ant", "bee", "cat", "dog", "eel", "fox")
    assert not pixels.engines


def test_a_variant_that_does_not_exist_is_one_line(exported_bundle):
    with pytest.raises(UsageError, match="did you mean onnx-fp32"):
        choose_packaged_variant(open_bundle(exported_bundle), "onx-fp32", gpu=False)


def test_an_unproved_variant_is_refused(exported_bundle):
    variants = open_bundle(exported_bundle).parts["variants"]
    for variant in variants.values():
        variant["proof"]["passed"] = False
    bundle = update_bundle(exported_bundle, {"variants": variants})
    with pytest.raises(UsageError, match="not proved"):
        choose_packaged_variant(bundle, None, gpu=False)


def test_a_bundle_without_exports_names_the_command(tmp_path):
    with pytest.raises(MissingPart, match="regnet-deploy export"):
        choose_packaged_variant(create_bundle(tmp_path / "b", {}), None, gpu=False)


def test_a_damaged_file_is_not_packaged(exported_bundle):
    bundle = open_bundle(exported_bundle)
    bundle.stored_path("onnx-fp32.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="damaged"):
        choose_packaged_variant(bundle, "onnx-fp32", gpu=False)


def test_an_engine_for_another_machine_is_packaged_when_it_is_named(with_h100_engine, computer, monkeypatch):
    from regnet_deploy.engines import bundle_engines

    monkeypatch.setattr(bundle_engines, "find_gpu", lambda: None)
    subject = choose_packaged_variant(open_bundle(with_h100_engine), "trt-fp32", gpu=True)
    assert [engine.identity.compute_capability for engine in subject.engines] == ["9.0"]
    assert (subject.input_name, subject.output_name, subject.onnx) == ("images", "logits", "onnx-fp32.onnx")


def test_engines_need_a_gpu_to_be_asked_for(with_h100_engine):
    with pytest.raises(UsageError, match="add --gpu"):
        choose_packaged_variant(open_bundle(with_h100_engine), "trt-fp32", gpu=False)


def test_an_engine_of_other_weights_or_without_proof_is_refused(with_h100_engine):
    variants = open_bundle(with_h100_engine).parts["variants"]
    variants["trt-fp32"]["engines"][0]["proof"]["passed"] = False
    bundle = update_bundle(with_h100_engine, {"variants": variants})
    with pytest.raises(UsageError, match="its engine is not proved"):
        choose_packaged_variant(bundle, "trt-fp32", gpu=True)
    variants["trt-fp32"]["source"] = "onnx-fp32-uint8"
    variants["trt-fp32"]["engines"][0]["proof"]["passed"] = True
    bundle = update_bundle(with_h100_engine, {"variants": variants})
    with pytest.raises(UsageError, match="built from another onnx-fp32-uint8"):
        choose_packaged_variant(bundle, "trt-fp32", gpu=True)


def test_a_variant_of_engines_that_has_none_names_the_command(without_engine):
    with pytest.raises(UsageError, match=r"it has no engine; run `regnet-deploy export --trt \S+/bundle`"):
        choose_packaged_variant(open_bundle(without_engine), "trt-fp32", gpu=True)


def test_what_was_tuned_on_this_machine_is_taken(exported_bundle):
    settings = {"runtime": "onnxruntime", "variant": "onnx-fp32-uint8", "executors": 2, "threads": 1, "batch": 4}
    part = {"machine": machine_summary(), "p99_ms": 20.0, "rate": 1.0, "settings": {**settings, "max_delay_ms": 1.0}}
    bundle = update_bundle(exported_bundle, {"serving": part})
    subject = choose_packaged_variant(bundle, None, gpu=False)
    assert subject.variant == "onnx-fp32-uint8"
    assert subject.tuned is not None
    assert subject.tuned.settings.batch == 4
    assert choose_packaged_variant(bundle, "onnx-fp32", gpu=False).tuned is None


def test_a_gray_network_takes_one_channel(gray_bundle):
    bundle = open_bundle(gray_bundle)
    assert choose_packaged_variant(bundle, "onnx-fp32", gpu=False).image == (1, 24, 24)
    assert choose_packaged_variant(bundle, "onnx-fp32-uint8", gpu=False).image == (24, 24, 1)


def test_what_runs_in_openvino_is_not_packaged(exported_bundle):
    """Triton and the containers use ONNX Runtime."""
    bundle = open_bundle(exported_bundle)
    fast = candidate("openvino-fp32", latency("openvino-fp32", 1, 1.0, runtime="openvino 2026.4.1"))
    slow = candidate("onnx-fp32", latency("onnx-fp32", 1, 2.0))
    variants = {**bundle.variants, "openvino-fp32": openvino_variant(bundle)}
    update_bundle(exported_bundle, Manifest(variants=variants, choice=choice(slow, fast)))
    bundle = open_bundle(exported_bundle)
    assert choose_packaged_variant(bundle, None, gpu=False).variant == "onnx-fp32"
    with pytest.raises(UsageError, match=r"runs in OpenVINO, and Triton .*: choose --variant onnx-fp32"):
        choose_packaged_variant(bundle, "openvino-fp32", gpu=False)
