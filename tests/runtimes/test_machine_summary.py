import json
from pathlib import Path

import pytest

from regnet_deploy.cores import available_cores
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.runtimes import machine_summary as module
from regnet_deploy.runtimes.machine_summary import machine_summary

X86 = """processor	: 0
model name	: AMD EPYC 9254 24-Core Processor
flags		: fpu avx2 sse4_2 avx512f avx512_vnni

processor	: 1
model name	: something else
flags		: amx_int8
"""
ARM = """processor	: 0
Features	: fp asimd asimddp i8mm
CPU implementer	: 0x41
"""


def test_it_is_json_that_stays_the_same():
    first = machine_summary()
    assert json.loads(json.dumps(first)) == first == machine_summary()
    assert list(first) == ["cpu", "cores", "instructions", "gpu"]
    assert first["cpu"]
    assert first["cores"] == available_cores()


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "instructions"),
    [
        (X86, "AMD EPYC 9254 24-Core Processor", ["avx2", "avx512_vnni", "avx512f"]),
        (ARM, "aarch64", ["asimd", "asimddp", "i8mm"]),
        (None, "aarch64", []),
    ],
)
def test_it_knows_the_first_cpu_and_the_instructions_that_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str | None, cpu: str, instructions: list[str]
):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(module, "_CPUINFO", path)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    here = machine_summary()
    assert (here["cpu"], here["instructions"]) == (cpu, instructions)


def test_it_names_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    assert machine_summary()["gpu"] is None
    gpu = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
    monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    assert machine_summary()["gpu"] == "NVIDIA H100 80GB HBM3"
