"""Small networks with batch norms that have seen something, and bundles of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_parts import training, training_data
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from regnet_deploy.bundle import Manifest, create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.exporting.accuracy import reference_logits
from regnet_deploy.exporting.accuracy_gate import AccuracyGate
from regnet_deploy.exporting.calibration import CalibrationSet, Calibrator
from regnet_deploy.exporting.golden_images import NewGoldenSet, make_golden_set
from regnet_deploy.exporting.model_source import ModelSource, load_model_source
from regnet_deploy.exporting.onnx_graph import activation_names, build_onnx
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.exporting.state import EngineBuilder, ExportContext
from regnet_deploy.exporting.validation import ValidationSet
from regnet_deploy.images.dataset import build_dataset
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.progress import NoProgress
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.space.network import Network

CLASSES, SIDE = 5, 32
LABELS = ["ant", "bee", "café", "dog", "eel"]


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch):
    """Other tests run at the same time, and take no cores from measurements."""
    monkeypatch.setattr("regnet_deploy.cpu_load.OtherLoad.contended_cores", lambda load: 0.0)


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small only wait for each other in several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_random_statistics(model: nn.Module, seed: int) -> nn.Module:
    """Give every batch norm a scale, shift, mean and variance, and the linear larger weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.3, 3.0, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


@pytest.fixture
def random_model():
    """Return a maker of models: network, classes, seed."""
    return lambda network, classes, seed: with_random_statistics(AnyNet(network, classes, seed=seed), seed)


@pytest.fixture
def network() -> Network:
    return Network((1, 2), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)


@pytest.fixture
def untrained(tmp_path, network):
    """A bundle as select leaves it."""
    architecture = Architecture.of(network, name="tiny", classes=CLASSES, resolution=SIDE)
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(SIDE).to_json()}
    return create_bundle(tmp_path / "bundle", parts).path


@pytest.fixture
def trained(untrained, network):
    """A bundle as train leaves it: weights, labels and samples."""
    from safetensors.numpy import save

    draw = np.random.default_rng(3)
    colours = draw.integers(0, 256, (40, 1, 1, 3)) + draw.integers(-60, 60, (40, SIDE, SIDE, 3))
    samples = {"images": np.clip(colours, 0, 255).astype(np.uint8), "labels": np.arange(40) % CLASSES}
    model = with_random_statistics(AnyNet(network, CLASSES, seed=1), seed=1)
    files = {"weights.safetensors": weights_to_bytes(model.state_dict()), "samples.safetensors": save(samples)}
    return update_bundle(untrained, {"labels": LABELS}, files).path


@pytest.fixture
def gray(tmp_path, network):
    """A bundle as train leaves it, of a network of gray images."""
    from safetensors.numpy import save

    network = replace(network, input_channels=1)
    architecture = Architecture.of(network, name="gray", classes=CLASSES, resolution=SIDE)
    parts = {
        "architecture": architecture,
        "preprocessing": default_preprocessing(SIDE, 1).to_json(),
        "labels": LABELS,
    }
    draw = np.random.default_rng(3)
    levels = draw.integers(0, 256, (40, 1, 1, 1)) + draw.integers(-60, 60, (40, SIDE, SIDE, 1))
    samples = {"images": np.clip(levels, 0, 255).astype(np.uint8), "labels": np.arange(40) % CLASSES}
    model = with_random_statistics(AnyNet(network, CLASSES, seed=1), seed=1)
    files = {"weights.safetensors": weights_to_bytes(model.state_dict()), "samples.safetensors": save(samples)}
    return create_bundle(tmp_path / "gray", parts, files).path


@st.composite
def _networks(draw):
    stages = draw(st.integers(1, 4))
    block = draw(st.sampled_from(["bottleneck", "bottleneck", "v", "vr"]))
    if block != "bottleneck":
        depths, widths = (tuple(draw(st.integers(1, most)) for _ in range(stages)) for most in (2, 24))
        stem = draw(st.sampled_from([1, 2])), draw(st.sampled_from([8, 32]))
        return Network(depths, widths, widths, (1.0,) * stages, 0.0, *stem, block=block)
    groups = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=stages, max_size=stages))
    return Network(
        depths=tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        widths=tuple(4 * group * draw(st.integers(1, 3)) for group in groups),
        group_widths=tuple(groups),
        bottlenecks=tuple(draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])) for _ in range(stages)),
        se_ratio=draw(st.sampled_from([0.0, 0.25])),
        stem_stride=draw(st.sampled_from([1, 2])),
        stem_width=draw(st.sampled_from([8, 32])),
    )


@pytest.fixture
def networks():
    """Return a strategy: small networks of every kind of block."""
    return _networks()


@pytest.fixture
def measured_ranges():
    """Return a function: the lowest and highest value of each tensor of a network on these images, in FP32."""

    def measure(network, weights, preprocessing, images):
        import onnx
        import onnxruntime

        names = [name for name in activation_names(network, weights) if name != "images"]
        model = onnx.load_from_string(build_onnx(network, weights, preprocessing))
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {"images": images, **dict(zip(names, session.run(names, {"images": images}), strict=True))}
        return {name: TensorRange(float(value.min()), float(value.max())) for name, value in values.items()}

    return measure


@pytest.fixture(scope="session")
def write_images():
    """Return a writer of small images, no two alike: folder, count, seed, names with a place for the number."""

    def write(folder: Path, count: int, seed: int = 0, name: str = "{:03}.png") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng((seed, len(folder.name)))
        for number in range(count):
            Image.fromarray(draw.integers(0, 256, (12, 14, 3), np.uint8)).save(folder / name.format(number))

    return write


@pytest.fixture
def trained_on():
    """Return a function that gives a bundle what training on a folder says of its images, and returns their split."""

    def train(bundle: Path, root: Path, share: float = 0.1, seed: int = 0):
        listing = list_images(root)
        folder = build_dataset(listing, check_images(listing.source), val_split=share, seed=seed)
        data = training_data(
            folder=root.name,
            train_images=len(folder.train),
            val_images=len(folder.val),
            split=folder.split,
            digest=folder.digest,
            rejected=dict(folder.rejected),
        )
        update_bundle(bundle, Manifest(labels=tuple(folder.classes), training=training(0.2, data=data, seed=seed)))
        return folder

    return train


@pytest.fixture
def data(trained, write_images, tmp_path):
    """A folder as one trains on, with the bundle's classes."""
    for number, label in enumerate(open_bundle(trained).parts["labels"]):
        write_images(tmp_path / "data" / "train" / label, 70, seed=number)
        write_images(tmp_path / "data" / "val" / label, 8, seed=100 + number)
    return tmp_path / "data"


@pytest.fixture
def interrupting_progress():
    """Progress that raises KeyboardInterrupt, as Ctrl-C does, at the first phase of an engine build."""

    class Interrupting(NoProgress):
        def update(self, completed, total=None, note=""):
            if note:
                raise KeyboardInterrupt

    return Interrupting()


@pytest.fixture
def source(trained) -> ModelSource:
    """The network of the trained bundle."""
    return load_model_source(open_bundle(trained))


@pytest.fixture
def golden(trained, source) -> NewGoldenSet:
    """Its golden set."""
    return make_golden_set(open_bundle(trained), source.model, source.preprocessing, ())


@pytest.fixture
def gate(source, golden) -> AccuracyGate:
    """A gate with the default limits and no validation images."""
    return AccuracyGate(golden.golden, source.preprocessing, GATES, None, None, 0.5)


@pytest.fixture
def validating_gate(gate, source) -> AccuracyGate:
    """A gate with 40 validation images, labeled with the model's own answers, so that all of these are correct."""
    pixels = np.random.default_rng(5).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    images = FolderSource(Path("none"), tuple(f"{number}.png" for number in range(40)))
    unlabelled = ValidationSet(
        images, tuple(range(40)), np.zeros(40, np.int64), np.arange(40), "made", source.preprocessing, pixels, {}
    )
    labels = reference_logits(source.model, unlabelled).logits.argmax(axis=1)
    validation = replace(unlabelled, labels=labels)
    return replace(gate, validation=validation, reference=reference_logits(source.model, validation))


@pytest.fixture
def context(trained, source, golden, gate) -> ExportContext:
    """The context of an export without options that calibrates on the golden images."""
    images = CalibrationSet(golden.golden.images, "golden images", "none", 0, "abc")
    progress = NoProgress()
    calibrator = Calibrator(lambda: images, source, progress)
    options = ExportOptions(device="cpu")
    return ExportContext(
        open_bundle(trained), options, source, golden, gate, calibrator, EngineBuilder(None, None), progress
    )


@pytest.fixture
def with_weights(source):
    """Return a function: the network with other weights, a deliberately broken one: name -> change of the array."""

    def broken(**changes) -> ModelSource:
        names = {name.replace("__", "."): change for name, change in changes.items()}
        return replace(source, weights={**source.weights, **{n: f(source.weights[n]) for n, f in names.items()}})

    return broken
