import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.cpu import available_cores
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.errors import BundleError, MissingExtra, MissingPart, ProofError, UsageError
from regnet_deploy.runtimes import runtime, tensorrt_provider
from regnet_deploy.runtimes.default_variant import default_variant
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.runtimes.runtime import (
    classify_pixels,
    installed_onnxruntime,
    open_onnx,
    open_variant,
    runtime_unsupported_reason,
)
from regnet_deploy.runtimes.verification import verify

GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-fp32-uint8"])
def test_every_input_gives_the_golden_logits(exported_bundle: Path, name: str):
    bundle = open_bundle(exported_bundle)
    session, golden = open_variant(bundle, name), load_golden(bundle)
    logits = classify_pixels(session, golden.images, Preprocessing.from_json(bundle.parts["preprocessing"]))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-5, atol=1e-5)
    assert session.runtime == f"onnxruntime {metadata.version('onnxruntime')}"
    assert (session.device, session.input) == ("cpu", "uint8" if name.endswith("uint8") else "float32")
    assert (session.input_name, session.output_name) == ("images", "logits")


def test_two_onnxruntimes_are_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    install(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    bundle = open_bundle(exported_bundle)
    with pytest.raises(UsageError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        open_onnx(bundle.read("onnx-fp32.onnx"))
    assert "overwrite each other" in str(runtime_unsupported_reason(bundle, "onnx-fp32"))


def test_no_onnxruntime_names_both_extras(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    install(monkeypatch)
    with pytest.raises(MissingExtra, match=r"regnet-deploy\[cpu\].*regnet-deploy\[gpu\]"):
        installed_onnxruntime()
    assert "regnet-deploy[cpu]" in str(runtime_unsupported_reason(bundle, "onnx-fp32"))


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_is_never_quietly_the_cpu(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path, device: str):
    data = open_bundle(exported_bundle).read("onnx-fp32.onnx")
    with pytest.raises(UsageError, match="onnxruntime-gpu"):
        open_onnx(data, device=device)
    # With the name of the GPU build and the files of the CPU build, as a half-installed machine has them.
    install(monkeypatch, onnxruntime_gpu="1.31.1")
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    monkeypatch.setattr(tensorrt_provider, "find_gpu", lambda: GPU)
    with pytest.raises(UsageError, match=r"without its \w+ExecutionProvider.*--device cpu"):
        open_onnx(data, device=device)
    monkeypatch.setattr(runtime, "find_gpu", lambda: GPU)
    with pytest.raises(UsageError, match="without its CUDAExecutionProvider"):
        open_onnx(data)


def test_the_gpu_build_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    install(monkeypatch, onnxruntime_gpu="1.31.1")
    monkeypatch.setattr(runtime, "find_gpu", lambda: None)
    assert open_onnx(open_bundle(exported_bundle).read("onnx-fp32.onnx")).device == "cpu"


def test_a_variant_for_cpus_takes_the_cpu_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-int8-cpu"] = {**variants["onnx-fp32"], "precision": "int8-cpu"}
    bundle = update_bundle(exported_bundle, {"variants": variants})
    install(monkeypatch, onnxruntime_gpu="1.31.1")
    monkeypatch.setattr(runtime, "find_gpu", lambda: GPU)
    assert open_variant(bundle, "onnx-int8-cpu").device == "cpu"
    with pytest.raises(UsageError, match="CUDAExecutionProvider"):
        open_variant(bundle, "onnx-fp32")


def test_an_unknown_device_is_one_line_with_those_there_are(exported_bundle: Path):
    with pytest.raises(UsageError, match=r"'cudda' \(did you mean cuda\?\); there are auto, cpu, cuda, tensorrt"):
        open_onnx(open_bundle(exported_bundle).read("onnx-fp32.onnx"), device="cudda")


@pytest.mark.parametrize("exact", [False, True])
def test_exact_switches_graph_optimisations_off(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path, exact: bool):
    import onnxruntime

    real, seen = onnxruntime.InferenceSession, []

    def recorded(data, options, **others):
        seen.append(options.graph_optimization_level)
        return real(data, options, **others)

    monkeypatch.setattr("onnxruntime.InferenceSession", recorded)
    bundle = open_bundle(exported_bundle)
    session, golden = open_variant(bundle, "onnx-fp32", exact=exact), load_golden(bundle)
    level = onnxruntime.GraphOptimizationLevel
    assert seen == [level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL]
    logits = classify_pixels(session, golden.images, Preprocessing.from_json(bundle.parts["preprocessing"]))
    np.testing.assert_allclose(logits, golden.logits, rtol=1e-5, atol=1e-5)


def test_exact_is_not_for_tensorrt(monkeypatch: pytest.MonkeyPatch, exported_bundle: Path):
    install(monkeypatch, onnxruntime_gpu="1.31.1")
    with pytest.raises(UsageError, match="TensorRT always fuses operators"):
        open_onnx(open_bundle(exported_bundle).read("onnx-fp32.onnx"), device="tensorrt", exact=True)


def test_a_changed_byte_is_found_before_the_file_is_opened(exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    path = bundle.stored_path("onnx-fp32.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        open_variant(bundle, "onnx-fp32")


def test_unknown_and_missing_variants_say_what_there_is(exported_bundle: Path):
    bundle = open_bundle(exported_bundle)
    with pytest.raises(UsageError, match=r"did you mean onnx-fp32\?.*onnx-fp32-uint8"):
        open_variant(bundle, "onnx-fp23")
    without = update_bundle(exported_bundle, {}, drop=("variants",))
    with pytest.raises(MissingPart, match="export --onnx"):
        open_variant(without, "onnx-fp32")


def test_a_manifest_that_states_another_input_is_an_error(exported_bundle: Path):
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-fp32"]["input"] = "uint8"
    with pytest.raises(BundleError, match="takes float32 images"):
        open_variant(update_bundle(exported_bundle, {"variants": variants}), "onnx-fp32")


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"nonsense" * 20])
def test_a_file_that_is_no_network_is_one_line(data: bytes):
    with pytest.raises(BundleError) as error:
        open_onnx(data)
    assert "\n" not in str(error.value)


def test_a_network_with_other_ends_is_refused():
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BundleError, match="does not map one batch of images"):
        open_onnx(model.SerializeToString())


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 5, 5), np.float32), np.zeros((1, 3, 24, 24), np.float64), np.zeros((1, 3), np.float32)]
)
def test_images_that_do_not_fit_are_a_proof_error(exported_bundle: Path, images: np.ndarray):
    session = open_variant(open_bundle(exported_bundle), "onnx-fp32")
    with pytest.raises(ProofError, match="cannot run images"):
        session.run(images)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"runtime": "tensorrt", "source": "onnx-fp32-uint8", "convolutions": {}, "engines": []}, "it has no engine"),
        (
            {"runtime": "tensorrt-rtx", "source": "onnx-fp32-uint8", "convolutions": {}, "engines": []},
            "it has no engine",
        ),
        ({"precision": "bf16"}, "ONNX Runtime has no BF16 convolutions; the file is for building TensorRT engines"),
    ],
)
def test_what_is_not_run_here_says_so(exported_bundle: Path, fields: dict[str, Any], says: str):
    variants = open_bundle(exported_bundle).parts["variants"]
    variants["onnx-fp32"] |= fields
    bundle = update_bundle(exported_bundle, {"variants": variants})
    assert runtime_unsupported_reason(bundle, "onnx-fp32") == says
    with pytest.raises(UsageError, match="variant onnx-fp32 cannot be run here: "):
        open_variant(bundle, "onnx-fp32")
    assert runtime_unsupported_reason(bundle, "onnx-fp32-uint8") is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"runtime": "qnn"}, "runtime 'qnn' is not known to this version: pip install --upgrade regnet-deploy"),
        ({"precision": "fp4"}, "precision 'fp4' is not known to this version: pip install --upgrade regnet-deploy"),
    ],
)
def test_a_variant_of_a_later_version_cannot_be_used_and_the_others_can(
    exported_bundle: Path, fields: dict[str, str], reason: str
):
    variants = open_bundle(exported_bundle).parts["variants"]
    later = {**variants["onnx-fp32"], **fields, "layout": ["of", "a", "later", "version"]}
    bundle = update_bundle(exported_bundle, {"variants": {"later": later, **variants}})
    assert runtime_unsupported_reason(bundle, "later") == reason
    with pytest.raises(UsageError, match=f"^variant later cannot be run here: {reason}"):
        open_variant(bundle, "later")
    with pytest.raises(UsageError, match=f"variant later of .* cannot be served: {reason}"):
        default_variant(bundle, "later")
    assert default_variant(bundle) in variants
    (check,) = [
        check for check in verify(bundle, lambda bundle: open_variant(bundle, "onnx-fp32")) if check.subject == "later"
    ]
    assert check.detail.endswith(reason)
    kept = update_bundle(exported_bundle, open_bundle(exported_bundle).manifest)
    assert kept.parts["variants"]["later"] == later


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "250000 100000"}, 3),
        ({"/sys/fs/cgroup/cpu.max": "5000 100000"}, 1),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        # Two threads a core: CPUs 0 and 4 are one core, and so on.
        (
            {f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)},
            4,
        ),
    ],
)
def test_threads_follow_affinity_cores_and_quota(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("regnet_deploy.cpu._text", files.get)
    assert available_cores() == cores


def test_serving_never_imports_torch(exported_bundle: Path, without_torch: dict[str, str]):
    code = """
import json, sys
from regnet_deploy.bundle import open_bundle
from regnet_deploy.runtimes import classifier, verification
from regnet_deploy.serving import app, server
from regnet_deploy.serving.model_version import load_version
load_version(open_bundle(sys.argv[1])).prove()
print(json.dumps([name for name in ("torch", "onnx", "pickle5", "matplotlib") if name in sys.modules]))
"""
    command = [sys.executable, "-c", code, str(exported_bundle)]
    done = subprocess.run(command, env=without_torch, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_onnxruntime_reports_nothing_and_leaves_nothing_at_home(exported_bundle: Path, tmp_path: Path):
    code = """
import sys
from regnet_deploy.bundle import open_bundle
from regnet_deploy.serving.model_version import load_version
load_version(open_bundle(sys.argv[1])).prove()
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    subprocess.run([sys.executable, "-c", code, str(exported_bundle)], env=environment, check=True)
    assert list(home.rglob("*")) == []
