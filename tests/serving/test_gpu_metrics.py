import asyncio
import ctypes
import threading

import pytest

from regnet_deploy.serving.gpu_metrics import GpuReader, GpuState, open_nvml, read_gpus

NOT_SUPPORTED = 3


class Nvml:
    """NVIDIA's management library as ctypes sees it; ``fails`` names functions that return an error."""

    def __init__(self, fails=(), count=2):
        self.fails, self.count, self.asked = fails, count, []

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            self.asked.append(name)
            if name in self.fails:
                return lambda *arguments: NOT_SUPPORTED
        return object.__getattribute__(self, name)

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = self.count
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = 0x7F00_0000_1000 + index
        return 0

    def nvmlDeviceGetName(self, device, text, length):
        text.value = b"NVIDIA H100"
        return 0 if length.value == 96 else NOT_SUPPORTED

    def nvmlDeviceGetUUID(self, device, text, length):
        text.value = f"GPU-{device.value - 0x7F00_0000_1000}".encode()
        return 0

    def nvmlDeviceGetUtilizationRates(self, device, rates):
        rates._obj.gpu, rates._obj.memory = 73, 20
        return 0

    def nvmlDeviceGetMemoryInfo(self, device, memory):
        memory._obj.total, memory._obj.used = 80 * 2**30, 7 * 2**30
        return 0

    def nvmlDeviceGetTemperature(self, device, sensor, celsius):
        celsius._obj.value = 41 if sensor == 0 else 0
        return 0

    def nvmlDeviceGetPowerUsage(self, device, milliwatts):
        milliwatts._obj.value = 123_500
        return 0


@pytest.fixture
def install(monkeypatch):
    def install(nvml):
        def load(name):
            assert name == "libnvidia-ml.so.1", "CUDA is never loaded"
            if nvml is None:
                raise OSError(f"{name}: cannot open shared object file")
            return nvml

        monkeypatch.setattr(ctypes, "CDLL", load)
        return nvml

    return install


def test_gpus_are_what_the_library_tells_of_them():
    first, second = read_gpus(Nvml())
    assert first == GpuState(0, "NVIDIA H100", "GPU-0", 0.73, 7 * 2**30, 80 * 2**30, 41.0, 123.5)
    assert (second.index, second.uuid) == (1, "GPU-1")


def test_what_a_gpu_does_not_tell_is_left_out():
    missing = ("UtilizationRates", "MemoryInfo", "Temperature", "PowerUsage", "Name", "UUID")
    (gpu,) = read_gpus(Nvml([f"nvmlDeviceGet{name}" for name in missing], 1))
    assert gpu == GpuState(0, "", "", None, None, None, None, None)


@pytest.mark.parametrize("function", ["nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"])
def test_gpus_that_cannot_be_reached_are_left_out(function):
    assert read_gpus(Nvml([function])) == ()


def test_without_the_library_or_a_driver_there_are_none(install):
    install(None)
    assert open_nvml() is None
    assert asyncio.run(GpuReader().read()) == ()
    install(Nvml(["nvmlInit_v2"]))
    assert open_nvml() is None


def test_the_library_is_started_once(install):
    nvml = install(Nvml(count=1))

    async def twice():
        reader = GpuReader()
        return await reader.read(), await reader.read()

    assert [len(states) for states in asyncio.run(twice())] == [1, 1]
    assert nvml.asked.count("nvmlInit_v2") == 1


def test_a_library_without_a_function_is_none(install):
    class Old(Nvml):
        nvmlDeviceGetPowerUsage = property()

    install(Old(count=1))

    async def twice():
        reader = GpuReader()
        return await reader.read(), await reader.read()

    assert asyncio.run(twice()) == ((), ())


def test_a_driver_that_hangs_is_waited_for_once_and_not_asked_again(install):
    go_on, asked = threading.Event(), []

    class Hanging(Nvml):
        def nvmlDeviceGetCount_v2(self, count):
            asked.append(threading.current_thread())
            go_on.wait(20)
            return super().nvmlDeviceGetCount_v2(count)

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
