"""Networks and their files in every precision, and machines with a GPU that are not there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import engine_variant, onnx_variant, proof

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.bundle.variants import Engine
from regnet_deploy.engines.bundle_engines import engine_file
from regnet_deploy.engines.engine_builder import build_plan
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.identity import identify
from regnet_deploy.engines.library import Library
from regnet_deploy.engines.session import EngineSession
from regnet_deploy.space.network import Network

CLASSES, SIDE = 5, 32
NETWORKS = {
    "x": Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.0, stem_stride=1, stem_width=8),
    "y": Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8),
}


@pytest.fixture(scope="session")
def fakes(fake_machine) -> Any:
    """The module fake_tensorrt."""
    return fake_machine.load_fake("fake_tensorrt")


@pytest.fixture(scope="session")
def weights():
    torch = pytest.importorskip("torch")
    from regnet_deploy.models.anynet import AnyNet

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {
        name: {key: value.numpy() for key, value in AnyNet(network, CLASSES, seed=0).state_dict().items()}
        for name, network in NETWORKS.items()
    }
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="session")
def onnx_of(weights):
    """Return a maker of ONNX files: precision, and ``x`` or ``y``."""
    from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx
    from regnet_deploy.exporting.precision import find_precision
    from regnet_deploy.exporting.quantization import TensorRange
    from regnet_deploy.images.preprocessing import default_preprocessing

    def make(precision: str = "fp32", kind: str = "y") -> bytes:
        network, arrays = NETWORKS[kind], weights[kind]
        ranges = {name: TensorRange(-4.0, 4.0) for name in ["images", *activation_names(network, arrays)]}
        return build_onnx(network, arrays, default_preprocessing(SIDE), find_precision(precision), ranges)

    return make


@pytest.fixture(scope="session")
def types_of(weights):
    """Return a maker of what a precision asks for: convolution -> type."""
    from regnet_deploy.exporting.onnx_graph import convolution_types
    from regnet_deploy.exporting.precision import find_precision

    return lambda precision, kind="y": convolution_types(NETWORKS[kind], weights[kind], find_precision(precision))


@pytest.fixture
def h100(fake_machine) -> Gpu:
    return fake_machine.H100


@pytest.fixture
def a100(fake_machine) -> Gpu:
    return fake_machine.A100


@pytest.fixture
def rtx() -> Library:
    """TensorRT-RTX, which builds without a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (extra [trt-rtx])")
    from regnet_deploy.engines.library import load_library

    return load_library("tensorrt-rtx")


@dataclass
class Machine:
    """A machine with a GPU and TensorRT, neither of them real: see fake_tensorrt.py and fake_cuda.py."""

    trt: Any
    cuda: Any
    gpu: Gpu
    library: Library

    def build(self, onnx: bytes, options: EngineOptions | None = None, progress: Any = None, **more: Any):
        """Return a plan."""
        return build_plan(self.library, self.gpu, onnx, SIDE, options or EngineOptions.up_to(4), progress, **more).plan

    def session(self, onnx: bytes, options: EngineOptions | None = None) -> EngineSession:
        """Build and open."""
        options = options or EngineOptions.up_to(4)
        return EngineSession(self.library, self.gpu, self.build(onnx, options), options)


@pytest.fixture(params=["10.9.0.34", "11.4.0.106"])  # the oldest and the newest that are supported
def machine(request, fake_machine, h100, monkeypatch, tmp_path) -> Machine:
    """A machine whose TensorRT and GPU are fakes."""
    computer = fake_machine.install(monkeypatch, tmp_path / "cache", request.param)
    return Machine(computer.trt, computer.cuda, h100, computer.library)


@pytest.fixture
def rtx_machine(fakes, fake_machine, h100, monkeypatch, tmp_path) -> Machine:
    """A machine with an RTX GPU, whose TensorRT-RTX and GPU are fakes; it also runs what it builds."""
    computer = fake_machine.install(monkeypatch, tmp_path / "cache")
    trt = fakes.fake_tensorrt("11.4.0.106", computer.cuda, rtx=True)
    gpu = replace(h100, name="NVIDIA RTX 4090", compute_capability="8.9")
    return Machine(trt, computer.cuda, gpu, Library(trt, "tensorrt-rtx"))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((11, 3, SIDE, SIDE), dtype=np.float32)


@pytest.fixture
def with_engine(tmp_path, onnx_of):
    """Return a function that adds an engine of a machine to a bundle and returns its path."""
    path = tmp_path / "bundle"

    def add(machine: Machine, options: EngineOptions | None = None, gpu: Gpu | None = None, **entry: Any) -> Path:
        options, onnx = options or EngineOptions.up_to(4), onnx_of("fp16")
        if not path.exists():
            create_bundle(path, {})
            source = onnx_variant("onnx-fp16", precision="fp16")
            update_bundle(path, Manifest(variants={"onnx-fp16": source}), {"onnx-fp16.onnx": onnx})
        bundle = open_bundle(path)
        sha256, variants = bundle.files["onnx-fp16.onnx"].sha256, bundle.manifest.variants
        identity = identify(sha256, "fp16", None, machine.library, gpu or machine.gpu, options)
        name, plan = machine.library.variant("fp16"), machine.build(onnx, options)
        made = Engine(
            key=identity.key,
            file=engine_file(name, identity.key),
            bytes=len(plan),
            identity=identity,
            proof=proof("fp16"),
            types={"fp16": 1},
            unaccounted=(),
        ).replace(**entry)
        old = variants.get(name) or engine_variant(runtime=machine.library.runtime).replace(convolutions={})
        parts = Manifest(variants={**variants, name: old.with_engine(made)})
        update_bundle(path, parts, {made.file: plan})
        return path

    return add
