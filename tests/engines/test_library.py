import importlib.util
import sys
from dataclasses import replace

import pytest

from regnet_deploy.engines.library import Library, find_library, lean_runtime, load_library, version_numbers
from regnet_deploy.errors import MissingExtra, UsageError


@pytest.fixture
def installed(monkeypatch):
    """Pretend that only these of TensorRT's modules are installed, each an empty module of a version."""

    def pretend(**versions):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name in versions or None if "tensorrt" in name else find(name)
        )
        for name, version in versions.items():
            module = type(sys)(name)
            module.__version__ = version
            monkeypatch.setitem(sys.modules, name, module)

    return pretend


def test_with_neither_the_line_names_both_extras(installed):
    installed()
    with pytest.raises(
        MissingExtra, match=r"tensorrt is not installed.*regnet-deploy\[trt\].*regnet-deploy\[trt-rtx\]"
    ):
        find_library(None)


def test_tensorrt_without_a_gpu_says_so(installed):
    installed(tensorrt="11.4.0.106")
    with pytest.raises(MissingExtra, match=r"installed but the NVIDIA driver shows no GPU.*regnet-deploy\[trt-rtx\]"):
        find_library(None)


@pytest.mark.parametrize(
    ("names", "has_gpu", "variant"),
    [
        (("tensorrt",), True, "trt-fp16"),
        (("tensorrt", "tensorrt_rtx"), True, "trt-fp16"),
        (("tensorrt", "tensorrt_rtx"), False, "rtx-fp16"),
        (("tensorrt_rtx",), False, "rtx-fp16"),
        (("tensorrt_rtx",), True, "rtx-fp16"),
    ],
)
def test_tensorrt_builds_where_it_and_a_gpu_are_else_tensorrt_rtx(installed, h100, names, has_gpu, variant):
    installed(**{name: {"tensorrt": "10.16.1.11", "tensorrt_rtx": "1.7.1.116"}[name] for name in names})
    assert find_library(h100 if has_gpu else None).variant("fp16") == variant


class TestJetson:
    """Modules whose TensorRT is that of JetPack: no wheel has kernels for them."""

    @pytest.fixture
    def orin(self, h100, monkeypatch):
        gpu = replace(h100, name="Orin (nvgpu)", compute_capability="8.7", multiprocessors=16)
        monkeypatch.setattr("regnet_deploy.engines.library.find_gpu", lambda: gpu)
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        return gpu

    SAYS = (
        r"engines on Orin \(nvgpu\), a Jetson Orin \(compute capability 8\.7\), need a JetPack with TensorRT 10\.9 or "
        r"later, because TensorRT's wheels have no kernels for it; without one run an ONNX variant "
        r"\(export --onnx, serve --device cpu\)$"
    )

    def test_the_tensorrt_of_jetpack_6_is_too_old_and_pip_is_not_advised(self, installed, orin):
        installed(tensorrt="10.3.0")
        for find in (lambda: load_library("tensorrt"), lambda: find_library(orin)):
            with pytest.raises(UsageError, match=rf"^tensorrt 10\.3\.0 is older than 10\.9: {self.SAYS}") as caught:
                find()
            assert "pip install" not in str(caught.value)

    @pytest.mark.parametrize("runtime", [None, "tensorrt", "tensorrt-rtx"])
    def test_without_tensorrt_pip_is_not_advised(self, installed, orin, runtime):
        installed()
        with pytest.raises(MissingExtra, match=rf"^{runtime or 'tensorrt'} is not installed: {self.SAYS}") as caught:
            find_library(orin, runtime)
        assert "pip install" not in str(caught.value)

    def test_a_wheel_is_refused_before_it_fails_in_a_build(self, installed, orin, tmp_path, monkeypatch):
        installed(tensorrt="10.16.1.11")
        wheel(tmp_path, "tensorrt-cu13-libs", "10.16.1.11")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UsageError, match=rf"^tensorrt 10\.16\.1\.11 was installed by pip: {self.SAYS}"):
            load_library("tensorrt")

    def test_a_later_jetpack_is_supported(self, installed, orin):
        installed(tensorrt="10.16.1.11")
        assert str(find_library(orin)) == "tensorrt 10.16.1.11"

    @pytest.mark.parametrize(("machine", "capability"), [("x86_64", "8.7"), ("aarch64", "9.0"), ("aarch64", "11.0")])
    def test_other_machines_get_pips_advice(self, installed, orin, monkeypatch, machine, capability):
        gpu = replace(orin, compute_capability=capability)
        monkeypatch.setattr("regnet_deploy.engines.library.find_gpu", lambda: gpu)
        monkeypatch.setattr("platform.machine", lambda: machine)
        installed(tensorrt="10.3.0")
        with pytest.raises(UsageError, match=r"10\.3\.0 is older than .*pip install 'tensorrt>=10\.9,<12'"):
            find_library(gpu)


def test_the_runtime_that_is_wanted_is_the_one(installed, h100):
    installed(tensorrt="11.4.0.106", tensorrt_rtx="1.7.1.116")
    assert str(find_library(h100, "tensorrt-rtx")) == "tensorrt-rtx 1.7.1.116"
    assert str(find_library(h100, "tensorrt")) == "tensorrt 11.4.0.106"
    with pytest.raises(MissingExtra, match="tensorrt is installed but the NVIDIA driver shows no GPU") as caught:
        find_library(None, "tensorrt")
    assert "trt-rtx" not in str(caught.value)


def test_tensorrt_rtx_that_is_wanted_and_not_there_names_its_extra(installed, h100):
    installed(tensorrt="11.4.0.106")
    with pytest.raises(MissingExtra, match=r"tensorrt-rtx is not installed.*regnet-deploy\[trt-rtx\]"):
        find_library(h100, "tensorrt-rtx")
    with pytest.raises(MissingExtra, match=r"tensorrt-rtx is not installed"):
        load_library("tensorrt-rtx")


@pytest.mark.parametrize("version", ["10.9", "10.9.0.34", "10.16.1.11", "11.0.0.114", "11.99.9"])
def test_versions_from_10_9_to_11_are_known(installed, version):
    installed(tensorrt=version)
    assert load_library("tensorrt").version == version


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("8.6.1", "tensorrt 8.6.1 is older than"),
        ("10.8.0.43", "tensorrt 10.8.0.43 is older than"),
        ("12.0.1", "tensorrt 12.0.1 is newer than"),
    ],
)
def test_other_versions_are_one_line_with_what_is_known(installed, version, says):
    installed(tensorrt=version)
    with pytest.raises(UsageError, match=rf"{says}.*10\.9 to 11: pip install 'tensorrt>=10\.9,<12'"):
        load_library("tensorrt")


def test_a_module_whose_libraries_do_not_load_is_one_line(installed, monkeypatch):
    installed(tensorrt_rtx="1.7")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match="tensorrt_rtx is installed but cannot be loaded") as caught:
        load_library("tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_the_wheels_toolkit_is_found_by_its_name(installed, monkeypatch, tmp_path):
    installed(tensorrt="11.4.0.106")
    wheel(tmp_path, "tensorrt-cu12-libs", "11.4.0.106")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_library("tensorrt").toolkit == "cu12"
    monkeypatch.setattr(sys, "path", [])
    assert load_library("tensorrt").toolkit is None


@pytest.mark.parametrize(
    ("cu12", "cu13", "toolkit"),
    [
        (("11.4.0.106", 3), ("11.4.0.106", 5), "cu12"),  # installed over the other: the file is as long as this one's
        (("11.4.0.106", 5), ("11.4.0.106", 3), "cu13"),
        (("11.4.0.106", 3), ("11.3.0.99", 3), "cu12"),  # left behind by another version
        (("11.4.0.106", 5), ("11.4.0.106", 5), "cu13"),  # neither: all that can be said is the newest
    ],
)
def test_of_wheels_of_two_toolkits_the_one_whose_library_is_there_is_meant(
    installed, monkeypatch, tmp_path, cu12, cu13, toolkit
):
    installed(tensorrt="11.4.0.106")
    for name, (version, size) in (("cu12", cu12), ("cu13", cu13)):
        wheel(tmp_path, f"tensorrt-{name}-libs", version, size)
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs" / "libnvinfer.so.11").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_library("tensorrt").toolkit == toolkit


def wheel(folder, name, version, size=""):
    """Write what an installed wheel leaves beside its library, of so many bytes."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"tensorrt_libs/libnvinfer.so.11,sha256=abc,{size}\n" if size else "")


def test_the_lean_runtime_is_found_in_its_wheel_and_only_of_that_version(tmp_path, monkeypatch):
    info = tmp_path / "tensorrt_lean_cu13_libs-10.16.1.11.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt-lean-cu13-libs\nVersion: 10.16.1.11\n")
    (info / "RECORD").write_text("tensorrt_lean_libs/__init__.py,,\ntensorrt_lean_libs/libnvinfer_lean.so.10,,\n")
    (tmp_path / "tensorrt_lean_libs").mkdir()
    (tmp_path / "tensorrt_lean_libs" / "libnvinfer_lean.so.10").touch()  # files that are not there are not listed
    monkeypatch.syspath_prepend(tmp_path)
    assert lean_runtime("10.16.1.11") == tmp_path / "tensorrt_lean_libs" / "libnvinfer_lean.so.10"
    assert lean_runtime("10.16.1.12") is None


def test_versions_compare_as_numbers():
    assert version_numbers("10.16.1.11") > version_numbers("10.9.0") > version_numbers("9.99")
    assert version_numbers("11.4.0rc1") == (11, 4)


def test_a_library_says_what_it_is(installed):
    installed(tensorrt="11.4.0.106")
    made = load_library("tensorrt")
    assert isinstance(made, Library)
    assert str(made) == "tensorrt 11.4.0.106"
