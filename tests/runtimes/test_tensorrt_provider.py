"""TensorRT's provider as far as it can be asked without a GPU: what is passed, where engines go, what is said."""

from __future__ import annotations

import dataclasses
import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from regnet_deploy.engines.gpu import Gpu, find_gpu
from regnet_deploy.errors import UsageError
from regnet_deploy.runtimes import tensorrt_provider
from regnet_deploy.runtimes.cuda_session import provider_file
from regnet_deploy.runtimes.onnx_session import create_session, session_options
from regnet_deploy.runtimes.tensorrt_provider import TENSORRT, engine_key, load_tensorrt, open_on_tensorrt
from tests.conftest import RESOLUTION, tiny_onnx

GPU = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
DATA = tiny_onnx("float32")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """A machine on which TensorRT opens: on the CPU in truth, writing an engine where it was told to."""
    seen: dict = {"batches": [], "built": 0}
    real = onnxruntime.InferenceSession

    class Recorded:
        def __init__(self, data, options, providers, enable_fallback):
            ((seen["provider"], seen["settings"]),) = providers
            seen["cpu"] = options.get_session_config_entry("session.disable_cpu_ep_fallback")
            engine = Path(seen["settings"]["trt_engine_cache_path"]) / "TensorrtExecutionProvider_main_0_sm90.engine"
            if seen.get("error"):
                engine.write_bytes(b"half of an eng")
                raise seen["error"]
            if not engine.exists():
                engine.write_bytes(b"engine")
                seen["built"] += 1
            self._session = real(data, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [seen.get("first", TENSORRT), "CPUExecutionProvider"]

        def run(self, names, feed):
            seen["batches"].append(len(feed["images"]))
            return self._session.run(names, feed)

        def __getattr__(self, name):
            return getattr(self._session, name)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setattr(tensorrt_provider, "find_gpu", lambda: GPU)
    monkeypatch.setattr(tensorrt_provider, "provider_file", lambda ort, provider, version: Path("provider.so"))
    monkeypatch.setattr(tensorrt_provider, "require_cuda_provider", lambda ort, provider, version: None)
    monkeypatch.setattr(tensorrt_provider, "load_tensorrt", lambda provider, version: "10.16.1")
    yield seen
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


def engines(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "regnet-deploy" / "onnxruntime-tensorrt").iterdir())


def test_it_is_told_the_types_the_batches_and_no_way_to_the_cpu(asked: dict):
    session = open_on_tensorrt(DATA, "1.31.1", threads=1)
    side = f"images:{{}}x3x{RESOLUTION}x{RESOLUTION}"
    folder = asked["settings"].pop("trt_engine_cache_path")
    assert asked["settings"] == {
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_int8_enable": "0",
        "trt_profile_min_shapes": side.format(1),
        "trt_profile_opt_shapes": side.format(8),
        "trt_profile_max_shapes": side.format(32),
        "trt_engine_cache_enable": "1",
    }
    assert (asked["provider"], asked["cpu"], Path(folder).is_absolute()) == (TENSORRT, "1", True)
    assert (session.runtime, session.device) == ("onnxruntime 1.31.1, TensorRT 10.16.1", "cuda:0")


def test_more_images_than_an_engine_takes_are_split(asked: dict):
    images = np.random.default_rng(0).standard_normal((70, 3, RESOLUTION, RESOLUTION), dtype=np.float32)
    logits = open_on_tensorrt(DATA, "1.31.1", threads=1).run(images)
    assert asked["batches"] == [32, 32, 6]
    np.testing.assert_array_equal(logits[32:64], open_on_tensorrt(DATA, "1.31.1", threads=1).run(images[32:64]))


def test_fp32_is_not_tf32_unless_asked(asked: dict, monkeypatch: pytest.MonkeyPatch):
    open_on_tensorrt(DATA, "1.31.1", threads=1, tf32=True)
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    open_on_tensorrt(DATA, "1.31.1", threads=1)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert asked["built"] == 2  # and neither is given the other's engine


def test_the_second_time_the_engine_is_there(asked: dict, tmp_path: Path):
    for _ in range(3):
        open_on_tensorrt(DATA, "1.31.1", threads=1)
    assert asked["built"] == 1
    (folder,) = engines(tmp_path)
    assert len(folder.name) == 32
    assert folder.stat().st_mode & 0o077 == 0


def test_other_weights_have_an_engine_of_their_own(asked: dict, tmp_path: Path):
    open_on_tensorrt(DATA, "1.31.1", threads=1)
    open_on_tensorrt(tiny_onnx("float32", seed=9), "1.31.1", threads=1)
    assert (asked["built"], len(engines(tmp_path))) == (2, 2)


@pytest.mark.parametrize("error", [RuntimeError("out of memory\nmore"), KeyboardInterrupt()])
def test_a_build_that_is_broken_off_leaves_nothing_to_load(asked: dict, tmp_path: Path, error: BaseException):
    asked["error"] = error
    with pytest.raises((KeyboardInterrupt, Exception)) as caught:
        open_on_tensorrt(DATA, "1.31.1", threads=1)
    assert "\n" not in str(caught.value)
    assert engines(tmp_path) == []
    asked["error"] = None
    open_on_tensorrt(DATA, "1.31.1", threads=1)
    assert asked["built"] == 1


def test_a_part_on_another_provider_is_an_error(asked: dict):
    asked["error"] = RuntimeError("nodes assigned to the default CPU EP, but fallback to CPU EP has been disabled")
    with pytest.raises(UsageError, match=r"does not support the whole network.*--device cuda"):
        open_on_tensorrt(DATA, "1.31.1", threads=1)
    asked.update(error=None, first="CPUExecutionProvider")
    with pytest.raises(UsageError, match="fell back to CPUExecutionProvider"):
        open_on_tensorrt(DATA, "1.31.1", threads=1)


def test_a_cache_that_cannot_be_written_is_one_line(asked: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be stored in .*Not a directory; set XDG_CACHE_HOME"):
        open_on_tensorrt(DATA, "1.31.1", threads=1)


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensorrt_provider, "find_gpu", lambda: None)
    with pytest.raises(UsageError, match=r"needs an NVIDIA GPU.*--device cpu"):
        open_on_tensorrt(DATA, "1.31.1", threads=1)


@pytest.mark.parametrize(
    "change",
    [
        {"data": DATA + b"\0"},
        {"settings": {"trt_fp16_enable": "1"}},
        {"version": "1.31.2"},
        {"tensorrt": "10.16.2"},
        *({"gpu": dataclasses.replace(GPU, **{name: value})} for name, value in {
            "name": "NVIDIA H200", "compute_capability": "8.9", "multiprocessors": 131, "driver": "580.95.06",
            "cuda": "13.1",
        }.items()),
    ],
    ids=str,
)  # fmt: skip
def test_each_ingredient_changes_the_key(change: dict):
    facts = {"data": DATA, "settings": {"trt_fp16_enable": "0"}, "version": "1.31.1", "tensorrt": "10.16.1", "gpu": GPU}
    assert engine_key(**facts) == engine_key(**facts)
    assert engine_key(**facts) != engine_key(**(facts | change))


def test_the_switch_of_tf32_changes_the_key(monkeypatch: pytest.MonkeyPatch):
    keys = set()
    for value in ("0", "1"):
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        keys.add(engine_key(DATA, {}, "1.31.1", "10.16.1", GPU))
    assert len(keys) == 2


NEEDED = ["libcublas.so.13", "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"]


def test_the_version_is_what_the_loaded_library_says(monkeypatch: pytest.MonkeyPatch):
    class Version:
        def __call__(self) -> int:
            return 101_601

    loaded = []

    def load(name):
        loaded.append(name)
        return SimpleNamespace(getInferLibVersion=Version())

    monkeypatch.setattr(tensorrt_provider, "needed_libraries", lambda path: NEEDED)
    monkeypatch.setattr(tensorrt_provider, "load_shared_library", load)
    assert load_tensorrt(Path("provider.so"), "1.31.1") == "10.16.1"
    assert loaded == ["libnvinfer.so.10", "libnvonnxparser.so.10"]


def test_libraries_of_the_wheel_are_found_where_the_loader_does_not_look(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = tmp_path / "tensorrt_libs" / "libnvinfer.so.10"
    tried = []

    def load(name):
        tried.append(name)
        return (
            SimpleNamespace(getInferLibVersion=type("F", (), {"__call__": lambda self: 100_900})())
            if isinstance(name, Path)
            else None
        )

    monkeypatch.setattr(tensorrt_provider, "needed_libraries", lambda path: ["libnvinfer.so.10"])
    monkeypatch.setattr(tensorrt_provider, "load_shared_library", load)
    assert load_tensorrt(Path("provider.so"), "1.31.1") == "10.9.0"
    assert tried == ["libnvinfer.so.10", wheel]


@pytest.mark.parametrize("installed", ["11.4.0.106", None])
def test_another_tensorrt_than_the_provider_needs_is_named(monkeypatch: pytest.MonkeyPatch, installed: str | None):
    there = [SimpleNamespace(metadata={"Name": name}, version=installed) for name in ("numpy", "tensorrt_cu13")]
    monkeypatch.setattr(metadata, "distributions", lambda: there if installed else [])
    monkeypatch.setattr(tensorrt_provider, "needed_libraries", lambda path: NEEDED)
    monkeypatch.setattr(tensorrt_provider, "load_shared_library", lambda name: None)
    with pytest.raises(UsageError) as caught:
        load_tensorrt(Path("provider.so"), "1.31.1")
    middle = " (TensorRT 11.4.0.106 is installed)" if installed else ""
    assert str(caught.value) == (
        f"ONNX Runtime 1.31.1 needs TensorRT 10, libnvinfer.so.10 cannot be loaded{middle}: "
        "pip install 'tensorrt>=10,<11', or --device cuda"
    )


def test_the_provider_is_one_that_onnxruntime_knows():
    assert TENSORRT in onnxruntime.get_all_providers()


@pytest.mark.gpu
def test_a_gpu_gives_the_logits_of_the_cpu_by_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if find_gpu() is None:
        pytest.skip("needs a CUDA device")
    try:
        provider_file(onnxruntime, TENSORRT, onnxruntime.__version__)
    except UsageError:
        pytest.skip("needs onnxruntime-gpu (extra [gpu])")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        session = open_on_tensorrt(DATA, onnxruntime.__version__, threads=1)
    except UsageError as error:
        if "needs TensorRT" not in str(error):
            raise
        pytest.skip(str(error))
    images = np.random.default_rng(0).standard_normal((40, 3, RESOLUTION, RESOLUTION), dtype=np.float32)
    reference = create_session(DATA, session_options(1, exact=False), ["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(images), reference.run(None, {"images": images})[0], rtol=1e-3, atol=1e-3)
