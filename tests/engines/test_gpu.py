import ctypes

import pytest

from regnet_deploy.engines import gpu
from regnet_deploy.engines.gpu import Gpu, driver_version, find_gpu, free_memory


class Driver:
    """The NVIDIA driver's library as ctypes sees it; ``fails`` names the function that returns an error."""

    def __init__(self, fails=None, count=2):
        self.fails, self.count, self.retained = fails, count, 0

    def __getattribute__(self, name):
        if name.startswith("cu") and name == object.__getattribute__(self, "fails"):
            return lambda *arguments: 1
        return object.__getattribute__(self, name)

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0 if index < self.count else 101

    def cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = {16: 132, 75: 9, 76: 0}[which]
        return 0

    def cuDeviceGetName(self, name, length, device):
        assert length == 256
        name.value = f"NVIDIA H100 {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = 80 * 2**30
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12090
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        self.retained += 1
        return 0

    def cuCtxPushCurrent_v2(self, context):
        return 0

    def cuCtxPopCurrent_v2(self, context):
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value = 7 * 2**30
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device):
        self.retained -= 1
        return 0


@pytest.fixture
def driver(monkeypatch, tmp_path):
    def install(**options):
        made = Driver(**options)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: made if name == "libcuda.so.1" else 1 / 0)
        version = tmp_path / "version"
        version.write_text(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release\nGCC version:  gcc 12.2.0\n"
        )
        monkeypatch.setattr(gpu, "_DRIVER_FILES", (str(tmp_path / "none"), str(version)))
        return made

    return install


def test_a_gpu_is_what_the_driver_tells_of_it(driver):
    driver()
    assert find_gpu(1) == Gpu("NVIDIA H100 1", "9.0", 132, 80 * 2**30, "580.95.05", "12.9")
    assert find_gpu(2) is None


@pytest.mark.parametrize(
    "function",
    [
        "cuInit",
        "cuDeviceGet",
        "cuDeviceGetAttribute",
        "cuDeviceGetName",
        "cuDeviceTotalMem_v2",
        "cuDriverGetVersion",
    ],
)
def test_a_driver_that_fails_has_no_gpu(driver, function):
    driver(fails=function)
    assert find_gpu() is None


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert (find_gpu(), free_memory()) == (None, None)


def test_free_memory_leaves_no_context_behind(driver):
    made = driver()
    assert free_memory() == 7 * 2**30
    assert made.retained == 0


@pytest.mark.parametrize("function", ["cuCtxPushCurrent_v2", "cuMemGetInfo_v2", "cuDevicePrimaryCtxRetain"])
def test_memory_that_the_driver_does_not_tell_of_is_none(driver, function):
    made = driver(fails=function)
    assert free_memory() is None
    assert made.retained == 0


@pytest.mark.parametrize("text", ["570.133.20\n", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Thu\n"])
def test_the_drivers_version_is_read_from_either_file(monkeypatch, tmp_path, text):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(gpu, "_DRIVER_FILES", (str(tmp_path / "version"),))
    assert driver_version() == "570.133.20"


def test_no_version_is_none(monkeypatch, tmp_path):
    (tmp_path / "version").write_text("nothing of the kind\n")
    monkeypatch.setattr(gpu, "_DRIVER_FILES", (str(tmp_path / "none"), str(tmp_path / "version")))
    assert driver_version() is None


@pytest.mark.gpu
def test_the_gpu_that_is_here_is_torchs():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = find_gpu()
    properties = torch.cuda.get_device_properties(0)
    assert found is not None
    assert found.name == properties.name
    assert found.compute_capability == f"{properties.major}.{properties.minor}"
    assert found.multiprocessors == properties.multi_processor_count
    assert 0 < (free_memory() or 0) <= found.memory_bytes
