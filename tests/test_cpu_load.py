"""The load of other programs, from counters that are made up and from the real ones."""

import os
import subprocess
import sys
import time

import pytest

from regnet_deploy.cpu_load import CpuTimes, OtherLoad, read_cpu_times

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def load_of(*times: CpuTimes | None) -> OtherLoad:
    left = iter(times)
    return OtherLoad(lambda: next(left))


def test_what_this_process_used_itself_is_no_load_of_others():
    assert load_of(CpuTimes(10, 100, 50), CpuTimes(20, 130, 65)).cores() == pytest.approx(1.5)
    assert load_of(CpuTimes(10, 100, 50), CpuTimes(20, 110, 60)).cores() == 0
    assert load_of(CpuTimes(10, 100, 50), CpuTimes(20, 110, 61)).cores() == 0  # counters are rounded


def test_where_the_system_reports_nothing_nothing_is_known():
    assert load_of(None, None).cores() is None
    assert load_of(CpuTimes(10, 1, 1), None).contended_cores() is None
    assert load_of(CpuTimes(10, 1, 1), CpuTimes(10, 1, 1)).cores() is None


def test_cores_that_this_process_may_not_use_are_no_contention(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert load_of(CpuTimes(0, 0, 0), CpuTimes(10, 50, 0)).contended_cores() == 0
    assert load_of(CpuTimes(0, 0, 0), CpuTimes(10, 70, 0)).contended_cores() == pytest.approx(1.0)


def test_cores_beyond_the_quota_of_a_container_are_no_contention(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("regnet_deploy.cpu.cpu_quota", lambda read: 2.0)
    assert load_of(CpuTimes(0, 0, 0), CpuTimes(10, 600, 0)).contended_cores() == 0
    assert load_of(CpuTimes(0, 0, 0), CpuTimes(10, 635, 0)).contended_cores() == pytest.approx(1.5)


@linux
def test_the_time_of_children_is_this_process_own_also_after_they_ended():
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    before = read_cpu_times()
    child = subprocess.Popen([sys.executable, "-c", burn + "\nprint(1, flush=True); input()"], stdin=-1, stdout=-1)
    child.stdout.readline()
    while_running = read_cpu_times()
    child.communicate(b"\n")
    after = read_cpu_times()
    assert while_running.own - before.own >= 0.25
    assert after.own >= while_running.own - 0.05
    assert after.all >= before.all
    assert before.clock < after.clock <= time.monotonic()


def test_a_system_without_proc_reports_nothing(tmp_path):
    assert read_cpu_times(tmp_path) is None
