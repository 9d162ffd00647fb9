"""Who takes turns and who does not: in processes of their own, for it is for good."""

import os
import subprocess
import sys

import pytest

from regnet_deploy.serving.turns import come_at_once, take_turns

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it is about Linux")
LOOK = """
import os, subprocess, sys, threading
from regnet_deploy.serving.turns import come_at_once, take_turns
def look():
    told.append(os.sched_getscheduler(0) & 15)
    come_at_once()
    told.append(os.sched_getscheduler(0) & 15)
def look_in_thread():
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
told = []
"""
THREAD = LOOK + "took = take_turns(); look_in_thread(); print(took, *told, os.sched_getscheduler(0) & 15)"
PROCESS = LOOK + (
    "child = 'from regnet_deploy.serving.turns import *; import os; come_at_once(); print(os.sched_getscheduler(0))'\n"
    "took = take_turns(); print(took, flush=True); subprocess.run([sys.executable, '-c', child])"
)
OPERATOR = LOOK + (
    "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\n"
    "took = take_turns(); look_in_thread(); print(took, *told, os.sched_getscheduler(0) & 15)"
)


#: Between these tests and the process that is looked at: a server that ran in the process of the tests took its turns.
APART = """
import os, subprocess, sys
if hasattr(os, "sched_setscheduler"):
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", APART, code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@ON_LINUX
def test_a_thread_takes_turns_and_what_it_starts_comes_at_once_where_it_asks_for_that():
    took, *policies = said(THREAD)
    if took == "False":
        pytest.skip("the system does not allow it")
    assert policies == [str(os.SCHED_BATCH), str(os.SCHED_OTHER), str(os.SCHED_BATCH)]
    assert said(PROCESS) == ["True", str(os.SCHED_OTHER)]


@ON_LINUX
def test_the_policy_that_an_operator_chose_stays():
    assert said(OPERATOR) == ["False", *[str(os.SCHED_BATCH)] * 3]


def test_a_system_that_does_not_know_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_setscheduler", raising=False)
    assert not take_turns()
    assert not come_at_once()


@ON_LINUX
def test_a_system_that_does_not_allow_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getscheduler", refuse)
    assert not take_turns()
    assert not come_at_once()
