"""Fixtures of more than one package: bundles with an exported network, small enough to build in every run."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, hub_server
from hypothesis import settings

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture, WeightsOrigin
from regnet_deploy.images.preprocessing import default_preprocessing, normalize, scale_and_shift
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import FILE, GoldenSet, compare, golden_to_bytes, load_golden
from regnet_deploy.space.network import Network

# The networks of the tests are tiny: more threads only wait for each other, the more so beside other processes. PyTorch
# is imported after this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that import ONNX Runtime themselves report nothing either; see runtimes/runtime.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# How long an example takes depends on what else the machine does.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

RESOLUTION = 24
LABELS = ["ant", "bee", "cat", "dog", "eel", "fox"]


def tiny_onnx(kind: str, seed: int = 1, channels: int = 3) -> bytes:
    """Conv, global average pool, Gemm; with ``uint8`` the normalisation is inside."""
    from onnx import TensorProto, checker, helper, numpy_helper

    draw = np.random.default_rng(seed)
    weights = {
        "w": draw.normal(size=(16, channels, 3, 3)),
        "b": draw.normal(size=16),
        "fc": draw.normal(size=(16, len(LABELS))) * 2,
        "fc_b": draw.normal(size=len(LABELS)),
    }
    image, nodes, last = [channels, RESOLUTION, RESOLUTION], [], "images"
    if kind == "uint8":
        image = [RESOLUTION, RESOLUTION, channels]
        scale, shift = scale_and_shift(default_preprocessing(RESOLUTION, channels))
        weights |= {"scale": scale.reshape(1, -1, 1, 1), "shift": shift.reshape(1, -1, 1, 1)}
        nodes = [
            helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["normalised"]),
        ]
        last = "normalised"
    nodes += [
        helper.make_node("Conv", [last, "w", "b"], ["conv"], name="stem.conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc", "fc_b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "images", getattr(TensorProto, {"uint8": "UINT8"}.get(kind, "FLOAT")), ["n", *image]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(LABELS)])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    return model.SerializeToString()


def tiny_pixels(count: int, seed: int = 2) -> np.ndarray:
    """Patches of different colours, ``(count, h, w, 3)``."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 256, (count, 1, 1, 3)) + draw.integers(-40, 40, (count, RESOLUTION, RESOLUTION, 3))
    return np.clip(colours, 0, 255).astype(np.uint8)


def tiny_network() -> Network:
    return Network((1, 1), (8, 16), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)


@pytest.fixture(scope="session", autouse=True)
def _own_user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests cache and measure out of the user's folders, and what those have out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("REGNET_DEPLOY_MEASUREMENTS", raising=False)
        yield


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_exported(tmp_path_factory.mktemp("exported") / "bundle", 3)


def _write_exported(folder: Path, channels: int) -> Path:
    import onnxruntime

    preprocessing = default_preprocessing(RESOLUTION, channels)
    network = replace(tiny_network(), input_channels=channels)
    architecture = Architecture.of(network, name="tiny", classes=len(LABELS), resolution=RESOLUTION)
    create_bundle(folder, {"architecture": architecture, "preprocessing": preprocessing.to_json(), "labels": LABELS})
    kinds = {"onnx-fp32": "float32", "onnx-fp32-uint8": "uint8"}
    networks = {name: (kind, tiny_onnx(kind, channels=channels)) for name, kind in kinds.items()}
    images = tiny_pixels(16)[..., :channels]
    session = onnxruntime.InferenceSession(networks["onnx-fp32"][1], providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"images": normalize(images, preprocessing)})[0]
    proof = {**compare(logits, logits, gate_of("fp32")).to_json(), "runtime": "onnxruntime", "device": "cpu"}
    update_bundle(
        folder,
        {
            "golden": {"images": 16, "source": "made by a test", "seed": None, "weights_sha256": None},
            "variants": {
                name: {
                    "file": f"{name}.onnx",
                    "bytes": len(data),
                    "runtime": "onnxruntime",
                    "precision": "fp32",
                    "input": kind,
                    "opset": 18,
                    "proof": proof,
                }
                for name, (kind, data) in networks.items()
            },
        },
        {
            **{f"{name}.onnx": data for name, (_, data) in networks.items()},
            "golden.safetensors": golden_to_bytes(GoldenSet(images, logits)),
        },
    )
    return folder


@pytest.fixture
def exported_bundle(_exported: Path, tmp_path: Path) -> Path:
    """A bundle with two ONNX variants and a golden set; the test may change it."""
    return Path(shutil.copytree(_exported, tmp_path / "bundle"))


@pytest.fixture
def gray_bundle(tmp_path: Path) -> Path:
    """A bundle like ``exported_bundle`` whose network takes gray images."""
    return _write_exported(tmp_path / "gray", 1)


@pytest.fixture
def non_commercial_bundle(exported_bundle: Path) -> Path:
    """A bundle whose weights are said to be imported ones that must not be used commercially."""
    origin = WeightsOrigin(
        file="w.pth",
        sha256="0" * 64,
        source="torchvision",
        container="torch zip",
        published="regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1",
        license="CC-BY-NC-4.0",
    )
    update_bundle(exported_bundle, Manifest(imported=origin))
    return exported_bundle


@pytest.fixture
def disagreeing_bundle(exported_bundle: Path) -> Path:
    """A bundle whose variants do not agree with its golden set, as on a machine on which they are computed wrongly."""
    golden = load_golden(open_bundle(exported_bundle))
    logits = golden.logits.copy()
    logits[7, 2] += 0.5
    update_bundle(exported_bundle, {}, {FILE: golden_to_bytes(GoldenSet(golden.images, logits))})
    return exported_bundle


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment for a subprocess in which torch, if it is installed, cannot be imported."""
    folder = tmp_path / "no-torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def fake_machine() -> ModuleType:
    """The module fake_machine, beside this one."""
    spec = importlib.util.spec_from_file_location("fake_machine", Path(__file__).parent / "fake_machine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def computer(fake_machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with an H100 and TensorRT 11 that are not there; see fake_machine.py."""
    return fake_machine.install(monkeypatch, tmp_path / "cache")


@pytest.fixture
def without_engine(exported_bundle: Path) -> Path:
    """A bundle with the variant ``trt-fp32``, whose engines are of no machine yet."""
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["trt-fp32"] = {
        "runtime": "tensorrt",
        "precision": "fp32",
        "input": "float32",
        "opset": 18,
        "source": "onnx-fp32",
        "convolutions": {"stem.conv": "fp32"},
        "engines": [],
    }
    return update_bundle(exported_bundle, {"variants": variants}).path


@pytest.fixture
def with_h100_engine(without_engine: Path, computer: Any) -> Path:
    """The same with an engine for the machine of ``computer``, proved."""
    from regnet_deploy.engines.engine_builder import rebuild_engine
    from regnet_deploy.exporting.proof import prove
    from regnet_deploy.runtimes.golden_set import load_golden

    bundle = open_bundle(without_engine)
    made = rebuild_engine(bundle, "trt-fp32", computer.gpu)
    proof = prove("trt-fp32", made.session, load_golden(bundle), bundle.preprocessing, gate_of("fp32"))
    variant = bundle.variants["trt-fp32"].with_engine(made.engine.replace(proof=proof))
    parts = Manifest(variants={**bundle.variants, "trt-fp32": variant})
    return update_bundle(without_engine, parts, {made.engine.file: made.plan}).path


@pytest.fixture
def snapshot() -> Any:
    """Return a function: the bytes of every file of a folder, by name."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class RecordedProgress:
    """Progress that keeps what it receives.

    Attributes:
        steps: description and total of each step.
        updates: description of the step, completed, total and note of each update.
        messages: the lines.
    """

    steps: list[tuple[str, float | None]] = field(default_factory=list)
    updates: list[tuple[str, float, float | None, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    _total: float | None = None

    def step(self, description: str, total: float | None = None) -> None:
        self.steps.append((description, total))
        self._total = total

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        self._total = self._total if total is None else total
        self.updates.append((self.steps[-1][0], completed, self._total, note))

    def message(self, line: str) -> None:
        self.messages.append(line)

    @property
    def text(self) -> str:
        """All messages, one a line."""
        return "\n".join(self.messages)


@pytest.fixture
def recorded_progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture
def short_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure latency after a warm-up that is no longer than it must be."""
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_S", 0.001)
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_WINDOW_S", 0.001)
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_LIMIT_S", 0.01)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the Chromium of this machine, headless."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub on this machine, with caches of the test alone, no token, and short pauses between attempts."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("regnet_deploy.importing.download._PAUSE_S", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
