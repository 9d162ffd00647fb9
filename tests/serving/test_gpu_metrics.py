import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest

from regnet_deploy.serving.gpu_metrics import GpuReader, GpuState, open_nvml, read_gpus


class FakePynvml:
    """The module ``pynvml``; ``fails`` names functions that raise its error."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, fails=(), count=2):
        self.fails, self.count, self.asked = fails, count, []

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            self.asked.append(name)
            if name in self.fails:
                return self.fail
        return object.__getattribute__(self, name)

    def fail(self, *arguments):
        raise self.NVMLError("Not Supported")

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index):
        return f"device {index}"

    def nvmlDeviceGetName(self, device):
        return "NVIDIA H100"

    def nvmlDeviceGetUUID(self, device):
        return f"GPU of {device}"

    def nvmlDeviceGetUtilizationRates(self, device):
        return SimpleNamespace(gpu=73, memory=20)

    def nvmlDeviceGetMemoryInfo(self, device):
        return SimpleNamespace(total=80 * 2**30, used=7 * 2**30, free=73 * 2**30)

    def nvmlDeviceGetTemperature(self, device, sensor):
        return 41 if sensor == self.NVML_TEMPERATURE_GPU else 0

    def nvmlDeviceGetPowerUsage(self, device):
        return 123_500


@pytest.fixture
def install(monkeypatch):
    def install(nvml):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: the import fails
        return nvml

    return install


def test_the_state_of_gpus_is_what_nvml_reports():
    first, second = read_gpus(FakePynvml())
    assert first == GpuState(0, "NVIDIA H100", "GPU of device 0", 0.73, 7 * 2**30, 80 * 2**30, 41.0, 123.5)
    assert (second.index, second.uuid) == (1, "GPU of device 1")


def test_values_that_a_gpu_does_not_report_are_none():
    missing = ("UtilizationRates", "MemoryInfo", "Temperature", "PowerUsage", "Name", "UUID")
    (gpu,) = read_gpus(FakePynvml([f"nvmlDeviceGet{name}" for name in missing], 1))
    assert gpu == GpuState(0, "", "", None, None, None, None, None)


@pytest.mark.parametrize("function", ["nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_gpus_that_cannot_be_reached_are_left_out(function):
    assert read_gpus(FakePynvml([function])) == ()


def test_without_the_package_or_a_driver_there_are_no_gpus(install):
    install(None)
    assert open_nvml() is None
    assert asyncio.run(GpuReader().read()) == ()
    install(FakePynvml(["nvmlInit"]))
    assert open_nvml() is None


def test_nvml_is_initialized_once(install):
    nvml = install(FakePynvml(count=1))

    async def twice():
        reader = GpuReader()
        return await reader.read(), await reader.read()

    assert [len(states) for states in asyncio.run(twice())] == [1, 1]
    assert nvml.asked.count("nvmlInit") == 1


def test_a_driver_that_hangs_is_waited_for_once_and_not_asked_again(install):
    go_on, asked = threading.Event(), []

    class Hanging(FakePynvml):
        def nvmlDeviceGetCount(self):
            asked.append(threading.current_thread())
            go_on.wait(20)
            return self.count

    install(Hanging(count=1))

    async def read():
        reader = GpuReader()
        assert await reader.read(0.02) == ()
        assert await reader.read(0.02) == ()
        assert len(asked) == 1
        go_on.set()
        return await reader.read(20)

    assert len(asyncio.run(read())) == 1
    assert asked[0].daemon, "a hanging driver does not keep the server from ending"
