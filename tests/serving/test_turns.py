"""Who takes turns and who does not: in processes of their own, for it is for good."""

import os
import subprocess
import sys

import pytest

from regnet_deploy.serving.turns import come_at_once, take_turns

CODE = """
import os, threading
from regnet_deploy.serving.turns import come_at_once, take_turns
def look():
    told.append(os.sched_getscheduler(0))
    come_at_once()
    told.append(os.sched_getscheduler(0))
told = []
print(take_turns())
thread = threading.Thread(target=look)
thread.start()
thread.join()
print(*[policy == os.SCHED_BATCH for policy in [os.sched_getscheduler(0), *told]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is about Linux")
def test_a_thread_takes_turns_and_what_it_starts_may_come_at_once():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    took, *batch = done.stdout.split()
    if took == "False":
        pytest.skip("the system does not allow it")
    assert batch == ["True", "True", "False"]


def test_a_system_that_does_not_know_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "SCHED_BATCH", raising=False)
    monkeypatch.delattr(os, "SCHED_OTHER", raising=False)
    assert not take_turns()
    assert not come_at_once()


def test_a_system_that_does_not_allow_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(os, "SCHED_BATCH", 3, raising=False)
    monkeypatch.setattr(os, "sched_param", int, raising=False)
    assert not take_turns()
