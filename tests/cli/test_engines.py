import importlib.util
import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bundle_parts import proof

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.engines.identity import identify
from regnet_deploy.engines.library import Library

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
TRT = Library(SimpleNamespace(__version__="11.4.0.106"), "tensorrt")


@pytest.fixture
def with_engines(exported_bundle, monkeypatch):
    """A bundle with an engine for this machine, one for another GPU and one of TensorRT-RTX."""
    bundle = open_bundle(exported_bundle)
    source = bundle.files["onnx-fp32.onnx"].sha256
    made, files = {}, {}
    rtx = Library(SimpleNamespace(__version__="1.7.1.116"), "tensorrt-rtx")
    for library, gpu, proved in (
        (TRT, H100, proof()),
        (TRT, replace(H100, name="NVIDIA L4", compute_capability="8.9"), None),
        (rtx, None, None),
    ):
        identity = identify(source, "fp32", None, library, gpu, EngineOptions.up_to(4))
        name = library.variant("fp32")
        file = f"{name}-{identity.key[:12]}.plan"
        files[file] = b"x" * 2**20
        variant = {"runtime": library.runtime, "precision": "fp32", "input": "float32", "source": "onnx-fp32"}
        made.setdefault(name, {**variant, "opset": 18, "convolutions": {}, "engines": []})["engines"].append(
            {"key": identity.key, "file": file, "bytes": 2**20, "identity": identity.to_json(), "proof": proved}
        )
    update_bundle(exported_bundle, {"variants": {**bundle.parts["variants"], **made}}, files)
    monkeypatch.setattr("regnet_deploy.engines.gpu.find_gpu", lambda: H100)
    there = {"tensorrt": TRT, "tensorrt-rtx": "tensorrt-rtx is not installed: pip install it"}
    monkeypatch.setattr("regnet_deploy.engines.bundle_engines.library_here", there.__getitem__)
    return exported_bundle


def test_the_table_says_of_each_engine_what_it_is_for_and_whether_it_runs_here(cli, with_engines):
    done = cli("engines", with_engines)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "3 engines; this machine has NVIDIA H100 80GB HBM3 (compute capability 9.0)" in text
    rows = [line for line in done.stdout.splitlines() if line.strip().startswith(("trt-", "rtx-"))]
    assert len(rows) == 3
    assert "tensorrt 11.4.0.106" in rows[1]
    assert rows[1].split().count("yes") == 2
    assert rows[0].split().count("yes") == rows[2].split().count("yes") == 0
    assert "1 to 4, tuned for 4" in text
    assert "it was built for NVIDIA L4" in text
    assert "tensorrt-rtx is not installed" in text


def test_json_has_what_the_manifest_has_and_why_not(cli, with_engines):
    done = cli("engines", with_engines, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert [(one["variant"], one["fits"]) for one in document["engines"]] == [
        ("rtx-fp32", False),
        ("trt-fp32", True),
        ("trt-fp32", False),
    ]
    assert document["gpu"]["multiprocessors"] == 132
    assert document["libraries"]["tensorrt"] == "tensorrt 11.4.0.106"
    assert document["engines"][1]["why_not"] is None
    assert "NVIDIA L4" in document["engines"][2]["why_not"]
    assert document["engines"][0]["identity"]["options"]["max_batch"] == 4
    assert open_bundle(with_engines).files[document["engines"][0]["file"]].bytes == 2**20


def test_a_bundle_without_engines_says_which_command_builds_them(cli, exported_bundle):
    done = cli("engines", exported_bundle)
    assert done.returncode == 0
    assert f"has no engines: `regnet-deploy export --trt {exported_bundle}` builds them" in done.stdout
    assert json.loads(cli("engines", exported_bundle, "--json").stdout)["engines"] == []


def test_no_bundle_is_one_line(cli_error, tmp_path):
    assert "no bundle at" in cli_error("engines", tmp_path / "nowhere")


def test_nothing_heavy_is_imported(cli_process, with_engines):
    prelude = "import sys\nfor name in ('torch', 'onnx', 'onnxruntime'): sys.modules[name] = None"
    assert cli_process("engines", with_engines, prelude=prelude).returncode == 0


class TestBuild:
    """``--build`` adds what is missing for this machine's GPU, or nothing."""

    def test_what_is_missing_is_built_proved_and_listed(self, cli, without_engine, computer):
        done = cli("engines", without_engine, "--build", "--json")
        assert done.returncode == 0, done.stderr
        assert "trt-fp32: built for this machine" in done.stderr
        (engine,) = json.loads(done.stdout)["engines"]
        assert (engine["fits"], engine["proof"]["passed"]) == (True, True)
        assert open_bundle(without_engine).parts["variants"]["trt-fp32"]["engines"][0]["key"] == engine["key"]

    def test_where_nothing_is_missing_nothing_is_built(self, cli, with_h100_engine, computer, snapshot):
        before, built = snapshot(with_h100_engine), len(computer.trt.built)
        done = cli("engines", with_h100_engine, "--build")
        assert (done.returncode, len(computer.trt.built)) == (0, built)
        assert snapshot(with_h100_engine) == before

    def test_one_of_another_machine_stays_and_is_listed(self, cli, with_h100_engine, computer, fake_machine):
        computer.driver.gpu = fake_machine.A100
        done = cli("engines", with_h100_engine, "--build", "--json")
        assert [(one["identity"]["gpu"], one["fits"]) for one in json.loads(done.stdout)["engines"]] == [
            (fake_machine.H100.name, False),
            (fake_machine.A100.name, True),
        ]

    def test_one_that_disagrees_exits_3_with_one_line_and_leaves_the_bundle(
        self, cli, without_engine, computer, fake_machine, monkeypatch, snapshot
    ):
        fake_machine.shifted(computer, monkeypatch, lambda logits: logits + 0.5)
        before = snapshot(without_engine)
        done = cli("engines", without_engine, "--build")
        assert (done.returncode, done.stdout) == (3, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("regnet-deploy: trt-fp32 does not agree with the model")
        assert ": |error| 0.5" in line
        assert snapshot(without_engine) == before

    def test_of_several_errors_the_proof_decides_the_exit_code(self, cli, without_engine, computer):
        variants = open_bundle(without_engine).parts["variants"]
        variants["trt-bf16"] = {**variants["trt-fp32"], "precision": "bf16", "source": "onnx-bf16"}
        variants["trt-fp16"] = {**variants["trt-fp32"], "precision": "fp16", "convolutions": {"stem.conv": "fp16"}}
        update_bundle(without_engine, {"variants": variants})
        done = cli("engines", without_engine, "--build")
        assert (done.returncode, done.stdout) == (3, "")
        last = done.stderr.splitlines()[-1]
        assert "trt-bf16 cannot be built: onnx-bf16, which it is built from, is not in" in last
        assert "trt-fp16: 1 of 1 convolutions do not compute in the type required" in last
        assert open_bundle(without_engine).parts["variants"]["trt-fp32"]["engines"]

    def test_without_a_gpu_it_is_one_line(self, cli_error, without_engine, computer):
        computer.driver.gpu = None
        assert "the NVIDIA driver shows none" in cli_error("engines", without_engine, "--build")

    def test_without_tensorrt_it_is_one_line(self, cli_error, without_engine, computer, monkeypatch):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))
        variants = open_bundle(without_engine).parts["variants"]
        update_bundle(without_engine, {"variants": {**variants, "trt-fp16": variants["trt-fp32"]}})
        line = cli_error("engines", without_engine, "--build")
        assert "trt-fp16, trt-fp32: tensorrt is not installed: " in line
        assert line.count("not installed") == 1

    def test_ctrl_c_leaves_the_bundle(self, cli, without_engine, computer, snapshot):
        before = snapshot(without_engine)
        computer.trt.steps = 1000

        def step():
            if not computer.trt.stopped:
                computer.trt.stopped = True
                signal.raise_signal(signal.SIGINT)

        computer.trt.stopped, computer.trt.step = False, step
        done = cli("engines", without_engine, "--build")
        assert (done.returncode, done.stderr.strip()) == (130, "regnet-deploy: interrupted")
        assert snapshot(without_engine) == before
