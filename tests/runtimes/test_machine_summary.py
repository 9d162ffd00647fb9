import json

import pytest

from regnet_deploy.bundle.measurements import MachineSummary
from regnet_deploy.cpu import available_cores
from regnet_deploy.engines.gpu import Gpu
from regnet_deploy.runtimes import tuned_settings as module
from regnet_deploy.runtimes.tuned_settings import machine_summary


def test_it_is_json_that_stays_the_same():
    first = machine_summary()
    assert MachineSummary.from_json(json.loads(json.dumps(first.to_json()))) == first == machine_summary()
    assert first.cpu
    assert first.cores == available_cores()


def test_it_knows_the_instructions_that_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"fpu", "avx512_vnni", "avx2", "sse4_2"}))
    assert machine_summary().instructions == ("avx2", "avx512_vnni")


def test_it_names_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    assert machine_summary().gpu is None
    gpu = Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 80 * 2**30, "580.95.05", "13.0")
    monkeypatch.setattr(module, "find_gpu", lambda: gpu)
    assert machine_summary().gpu == "NVIDIA H100 80GB HBM3"
