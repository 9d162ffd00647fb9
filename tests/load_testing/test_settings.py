"""What there is to choose from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from bundle_parts import choice, openvino_variant
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet_deploy.bundle import Manifest, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import ChoiceCandidate
from regnet_deploy.bundle.measurements import ServerSetting
from regnet_deploy.errors import MissingPart, UsageError
from regnet_deploy.load_testing.settings import executor_layouts, runnable_pairs, serve_options


def test_layouts_of_two_cores():
    assert executor_layouts(2) == [(1, 2), (2, 1), (1, 1)]
    assert executor_layouts(2, 1) == [(1, 2), (1, 1)]
    assert executor_layouts(1) == [(1, 1)]


@settings(max_examples=60, deadline=None)
@given(cores=st.integers(1, 128), most=st.none() | st.integers(1, 128))
def test_layouts_fit_the_cores_and_differ(cores, most):
    found = executor_layouts(cores, most)
    assert len(set(found)) == len(found) >= 1
    assert all(executors * threads <= cores and executors <= (most or cores) for executors, threads in found)
    assert found[0] == (1, cores)


def test_options_are_those_of_serve():
    words = serve_options(ServerSetting("openvino", "onnx-fp32", 2, 1, 8, 0.5))
    wanted = "--runtime openvino --variant onnx-fp32 --executors 2 --threads 1 --batch 8 --max-delay 0.5"
    assert words == wanted.split()


def test_every_proved_variant_by_every_runtime_that_is_here(exported_bundle: Path):
    pairs, _ = runnable_pairs(open_bundle(exported_bundle), runtime="onnxruntime")
    assert pairs == [("onnxruntime", "onnx-fp32"), ("onnxruntime", "onnx-fp32-uint8")]
    pairs, _ = runnable_pairs(open_bundle(exported_bundle), "onnx-fp32-uint8")
    assert ("onnxruntime", "onnx-fp32-uint8") in pairs
    assert {variant for _, variant in pairs} == {"onnx-fp32-uint8"}


def test_what_is_not_proved_is_left_out_and_why(exported_bundle: Path):
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-fp32"]["proof"]["passed"] = False
    bundle = update_bundle(exported_bundle, {"variants": variants})
    pairs, refused = runnable_pairs(bundle, runtime="onnxruntime")
    assert pairs == [("onnxruntime", "onnx-fp32-uint8")]
    assert "not proved" in refused["onnx-fp32 by onnxruntime"]
    with pytest.raises(UsageError, match="not proved"):
        runnable_pairs(bundle, "onnx-fp32")


def test_nothing_to_choose_from_is_one_line(exported_bundle: Path):
    with pytest.raises(UsageError, match=r"did you mean onnx-fp32\?"):
        runnable_pairs(open_bundle(exported_bundle), "onnx-fp3")
    with pytest.raises(UsageError, match="tensorrt"):
        runnable_pairs(open_bundle(exported_bundle), runtime="tensorrt")
    with pytest.raises(UsageError, match="--device cpu was requested"):
        runnable_pairs(open_bundle(exported_bundle), runtime="tensorrt", device="cpu")
    bundle = update_bundle(exported_bundle, {}, drop=("variants",))
    with pytest.raises(MissingPart, match="export --onnx"):
        runnable_pairs(bundle)


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")
def test_each_way_to_run_a_file_in_openvino_is_tried_once(exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    by_file = [("onnxruntime", "onnx-fp32"), ("openvino", "onnx-fp32")]
    by_file += [("onnxruntime", "onnx-fp32-uint8"), ("openvino", "onnx-fp32-uint8")]
    assert runnable_pairs(bundle)[0] == by_file

    update_bundle(exported_bundle, Manifest(variants={**bundle.variants, "openvino-fp32": openvino_variant(bundle)}))
    by_file.remove(("openvino", "onnx-fp32"))
    assert runnable_pairs(open_bundle(exported_bundle))[0] == [*by_file, ("openvino", "openvino-fp32")]
    assert runnable_pairs(open_bundle(exported_bundle), "onnx-fp32", "openvino")[0] == [("openvino", "onnx-fp32")]


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO (extra [openvino])")
def test_what_an_export_measured_as_slower_in_openvino_is_not_tried(exported_bundle: Path):
    slower = ChoiceCandidate(
        variant="openvino-fp32", precision="fp32", result="slower", reason="slower", accuracy=None, latency=()
    )
    update_bundle(exported_bundle, Manifest(choice=choice(slower)))
    assert [name for runtime, name in runnable_pairs(open_bundle(exported_bundle))[0] if runtime == "openvino"] == []
