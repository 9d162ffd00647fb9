import importlib.util
import sys

import numpy as np
import pytest
import torch

from regnet_deploy.bundle import update_bundle
from regnet_deploy.errors import MissingExtra, RegnetDeployError, UsageError
from regnet_deploy.exporting import tensorrt
from regnet_deploy.exporting.graph import build_onnx
from regnet_deploy.exporting.tensorrt import EngineSession, build_engine, find_builder, identity, open_engine
from regnet_deploy.images.preprocess import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network


def onnx_of(network):
    weights = {name: value.numpy() for name, value in AnyNet(network, 5, seed=0).state_dict().items()}
    return build_onnx(network, weights, default_preprocessing(32))


@pytest.fixture
def installed(monkeypatch):
    """Pretend that only these of TensorRT's modules are installed, each an empty module."""

    def pretend(*names, gpu):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name in names or None if "tensorrt" in name else find(name)
        )
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
        for name in names:
            monkeypatch.setitem(sys.modules, name, type(sys)(name))

    return pretend


def test_with_neither_the_line_names_both_extras(installed):
    installed(gpu=None)
    with pytest.raises(
        MissingExtra, match=r"tensorrt is not installed.*regnet-deploy\[trt\].*regnet-deploy\[trt-rtx\]"
    ):
        find_builder()


def test_tensorrt_without_a_gpu_says_so(installed):
    installed("tensorrt", gpu=None)
    with pytest.raises(MissingExtra, match=r"installed but PyTorch sees no CUDA GPU.*regnet-deploy\[trt-rtx\]"):
        find_builder()


@pytest.mark.parametrize(
    ("names", "gpu", "variant"),
    [
        (("tensorrt",), "a GPU", "trt-fp32"),
        (("tensorrt", "tensorrt_rtx"), "a GPU", "trt-fp32"),
        (("tensorrt", "tensorrt_rtx"), None, "rtx-fp32"),
        (("tensorrt_rtx",), None, "rtx-fp32"),
        (("tensorrt_rtx",), "a GPU", "rtx-fp32"),
    ],
)
def test_tensorrt_builds_where_it_and_a_gpu_are_else_tensorrt_rtx(installed, names, gpu, variant):
    installed(*names, gpu=gpu)
    builder = find_builder()
    assert (builder.variant, builder.gpu) == (variant, gpu)


def test_a_module_whose_libraries_do_not_load_is_one_line(installed, monkeypatch):
    installed("tensorrt_rtx", gpu=None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match="tensorrt_rtx is installed but cannot be loaded"):
        find_builder()


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra [trt-rtx])")
    builder = find_builder()
    if builder.runtime != "tensorrt-rtx":
        pytest.skip("TensorRT is there and comes first")
    return builder


@pytest.mark.parametrize("se_ratio", [0.0, 0.25])
def test_x_and_y_networks_build_strongly_typed_and_progress_is_told(rtx, se_ratio):
    phases = []
    network = Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=se_ratio, stem_stride=1, stem_width=8)
    plan = build_engine(rtx, onnx_of(network), 32, 4, lambda steps, phase: phases.append((steps, phase)))
    assert len(plan) > 10_000
    assert phases
    assert all(steps >= 0 and phase for steps, phase in phases)


def test_what_the_parser_refuses_is_one_line_with_the_node(rtx, network):
    broken = onnx_of(network).replace(b"Sigmoid", b"Sigmoxd")
    with pytest.raises(RegnetDeployError, match=r"does not parse the network: s1\.b1\.f\.se\.f_ex\.3: ") as caught:
        build_engine(rtx, broken, 32, 4, lambda steps, phase: None)
    assert str(caught.value).count("f_ex.3") <= 3


def test_what_is_no_onnx_is_one_line(rtx):
    with pytest.raises(RegnetDeployError, match="does not parse the network: the file: "):
        build_engine(rtx, b"not onnx", 32, 4, lambda steps, phase: None)


def test_a_build_that_fails_gives_tensorrts_reason(rtx, network):
    with pytest.raises(RegnetDeployError, match=r"does not build the network: .*images"):
        build_engine(rtx, onnx_of(network), 24, 4, lambda steps, phase: None)  # the file's images have 32 pixels


def test_the_engines_identity_has_source_builder_and_options(rtx):
    made = identity(rtx, "abc", max_batch=4)
    assert made["onnx_sha256"] == "abc"
    assert made["builder"] == f"tensorrt-rtx {rtx.version}"
    assert made["options"] == {
        "strongly_typed": True,
        "tf32": False,
        "min_batch": 1,
        "tuned_batch": 4,
        "max_batch": 4,
    }


@pytest.mark.gpu
def test_an_engine_gives_the_logits_of_torch_in_any_batch(network):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    pytest.importorskip("tensorrt", reason="TensorRT is not installed (extra [trt])")
    builder = find_builder()
    session = EngineSession(builder, build_engine(builder, onnx_of(network), 32, 4, lambda steps, phase: None), 4)
    images = np.random.default_rng(0).standard_normal((9, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        wanted = AnyNet(network, 5, seed=0).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(images), wanted, atol=1e-4, rtol=1e-3)


def bundle_with_an_engine(path, **engine):
    made = {"builder": "tensorrt 10.9", "gpu": "H100", "compute_capabilities": ["9.0"], "options": {"max_batch": 4}}
    variant = {"runtime": "tensorrt", "file": "trt-fp32.plan", "engine": made | engine}
    return update_bundle(path, {"variants": {"trt-fp32": variant}}, {"trt-fp32.plan": b"plan"})


@pytest.mark.parametrize(
    ("modules", "gpu", "engine", "says"),
    [
        ((), "H100", {}, r"tensorrt is not installed: .*regnet-deploy\[trt\]"),
        (("tensorrt",), None, {}, "no CUDA GPU"),
        (
            ("tensorrt",),
            "H100",
            {"builder": "tensorrt 11.0"},
            "built by tensorrt 11.0 and this machine has tensorrt 10.9",
        ),
        (("tensorrt",), "A100", {}, "built for H100 and this machine has A100"),
    ],
)
def test_an_engine_that_this_machine_cannot_run_says_why(untrained, installed, monkeypatch, modules, gpu, engine, says):
    installed(*modules, gpu=gpu)
    for name in modules:
        monkeypatch.setattr(sys.modules[name], "__version__", "10.9", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises((MissingExtra, UsageError), match=says):
        open_engine(bundle_with_an_engine(untrained, **engine), "trt-fp32")


def test_an_engine_is_opened_with_its_plan_and_its_largest_batch(untrained, installed, monkeypatch):
    installed("tensorrt", gpu="H100")
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.9", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(tensorrt, "EngineSession", lambda builder, plan, most: (builder.version, plan, most))
    assert open_engine(bundle_with_an_engine(untrained), "trt-fp32") == ("10.9", b"plan", 4)
