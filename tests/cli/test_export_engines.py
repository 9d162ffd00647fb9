"""``export --trt`` beside a GPU and TensorRT that are not there; what it needs of them is in fake_machine.py."""

import json
import signal
from dataclasses import replace

import pytest

from regnet_deploy.bundle import create_bundle, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.weights import load_model, weights_to_bytes
from regnet_deploy.space.network import Network


@pytest.fixture
def bundle(tmp_path):
    """A bundle with labels, whose seeded weights stand for trained ones."""
    network = Network((1, 1), (8, 16), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
    architecture = Architecture.of(network, name="tiny", classes=3, resolution=32)
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(32).to_json()}
    made = create_bundle(tmp_path / "bundle", parts)
    weights = weights_to_bytes(load_model(made).state_dict())
    return update_bundle(made.path, {"labels": ["cat", "dog", "owl"]}, {"weights.safetensors": weights}).path


def test_engines_are_rows_with_their_proofs(cli, bundle, computer):
    done = cli("export", bundle, "--trt", "--precision", "fp16", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.strip().startswith("trt-")]
    assert len(rows) == 2
    assert all("tensorrt" in row and "100%" in row for row in rows)
    variants = open_bundle(bundle).parts["variants"]
    assert set(variants) == {"onnx-fp32", "onnx-fp16", "trt-fp32", "trt-fp16"}
    assert variants["trt-fp16"]["engines"][0]["identity"]["options"]["max_batch"] == 4


def test_options_of_the_build_reach_the_engine(cli, bundle, computer):
    done = cli(
        *("export", bundle, "--trt", "--workspace", "64", "--optimization-level", "5", "--tf32"),
        *("--hardware-compatible", "ampere+", "--version-compatible", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (engine,) = json.loads(done.stdout)["variants"]["trt-fp32"]["engines"]
    options = engine["identity"]["options"]
    assert (options["workspace_bytes"], options["optimization_level"], options["tf32"]) == (64 * 2**20, 5, True)
    assert (options["hardware_compatible"], options["version_compatible"]) == ("ampere+", True)


def test_an_engine_in_another_type_exits_3_and_the_rest_is_written(cli, bundle, computer):
    computer.trt.convolutions = lambda name, kind: "Float"
    done = cli("export", bundle, "--trt", "--precision", "fp16")
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last.startswith("regnet-deploy: trt-fp16: ")
    assert "convolutions do not compute in the type required: " in last
    assert "(fp16 required, fp32 built)" in last
    assert last.endswith("(the other variants are written)")
    assert set(open_bundle(bundle).parts["variants"]) == {"onnx-fp32", "onnx-fp16", "trt-fp32"}


def test_an_engine_that_does_not_agree_exits_3_with_the_figures(cli, bundle, computer, fake_machine, monkeypatch):
    fake_machine.shifted(computer, monkeypatch, lambda logits: logits + 0.5)
    done = cli("export", bundle, "--trt")
    assert done.returncode == 3
    assert "trt-fp32 does not agree with the model" in done.stderr.splitlines()[-1]
    assert ": |error| 0.5" in done.stderr.splitlines()[-1]
    assert set(open_bundle(bundle).parts["variants"]) == {"onnx-fp32"}


@pytest.mark.parametrize(
    ("version", "says"),
    [("10.8.0.43", "is older than what this version"), ("12.0.0.1", "is newer than what this version")],
)
def test_a_tensorrt_that_is_not_known_is_one_line_and_the_onnx_is_kept(cli, bundle, computer, version, says):
    computer.trt.__dict__["__version__"] = version
    done = cli("export", bundle, "--trt")
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert set(open_bundle(bundle).parts["variants"]) == {"onnx-fp32"}


def test_too_little_memory_of_the_gpu_is_one_line_and_the_onnx_is_kept(cli, bundle, computer):
    computer.driver.gpu = replace(computer.gpu, memory_bytes=2**30)
    done = cli("export", bundle, "--trt")
    assert done.returncode == 2
    assert "has 0 MiB of its 1024 MiB free" in done.stderr.splitlines()[-1]
    assert set(open_bundle(bundle).parts["variants"]) == {"onnx-fp32"}


@pytest.mark.parametrize("exported", [False, True])
def test_ctrl_c_in_the_middle_of_a_build_leaves_the_bundle_as_it_was(cli, bundle, computer, snapshot, exported):
    if exported:
        assert cli("export", bundle, "--trt").returncode == 0
    before = snapshot(bundle)
    seen = []

    def step():
        if not seen:
            seen.append(1)
            signal.raise_signal(signal.SIGINT)

    computer.trt.step, computer.trt.steps = step, 1000
    done = cli("export", bundle, "--trt", "--precision", "fp16")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "regnet-deploy: interrupted")
    assert seen
    assert snapshot(bundle) == before
