"""Who takes turns and who does not: in processes of their own, whose policy nothing else has changed."""

import os
import subprocess
import sys

import pytest

from regnet_deploy.serving.scheduling import batch_scheduling, restore_default_scheduling

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
LOOK = """
import os, subprocess, sys, threading
from regnet_deploy.serving.scheduling import restore_default_scheduling, batch_scheduling
def policy():
    return os.sched_getscheduler(0) & 15
def look():
    told.append(policy())
    restore_default_scheduling()
    told.append(policy())
def look_in_thread():
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
told = []
"""
TURNS = """
with batch_scheduling() as took:
    look_in_thread()
    told.append(policy())
print(took, *told, policy())
"""
CHILD = """
from regnet_deploy.serving.scheduling import is_batch_scheduled
child = "from regnet_deploy.serving.scheduling import *; import os, sys;"
child += "restore_default_scheduling(sys.argv[1] == 'True'); print(os.sched_getscheduler(0))"
with batch_scheduling() as took:
    print(took, flush=True)
    subprocess.run([sys.executable, "-c", child, str(is_batch_scheduled())])
"""


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LOOK + code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@ON_LINUX
def test_a_thread_takes_turns_and_what_it_starts_comes_at_once_where_it_asks_for_that():
    took, *policies = said(TURNS)
    if took == "False":
        pytest.skip("needs the permission to change the scheduling policy")
    assert policies == [str(p) for p in (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER)]
    assert said(CHILD) == ["True", str(os.SCHED_OTHER)]


@ON_LINUX
@pytest.mark.parametrize("work", [TURNS, CHILD], ids=["thread", "process"])
def test_it_is_the_same_in_a_thread_that_is_not_the_main_one(work: str):
    in_thread = f"work = threading.Thread(target=exec, args=({work!r}, globals())); work.start(); work.join()"
    assert said(in_thread) == said(work)


@ON_LINUX
def test_the_flag_that_an_operator_set_stays():
    flag = "os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))"
    code = "print(bool(os.sched_getscheduler(0) & os.SCHED_RESET_ON_FORK))"
    took, *_, kept = said(f"{flag}\n{TURNS}{code}")
    assert (took, kept) == ("True", "True")


@ON_LINUX
def test_it_takes_no_rights_and_can_be_done_again():
    drop = "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)"
    took, *policies = said(f"{drop}\n{TURNS}told.clear(){TURNS}")
    if took == "False":
        pytest.skip("needs the permission to change the scheduling policy")
    once = [str(p) for p in (os.SCHED_BATCH, os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER)]
    assert policies == [*once, "True", *once]


@ON_LINUX
def test_the_policy_that_an_operator_chose_stays():
    chosen = "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"
    assert said(chosen + TURNS) == ["False", *[str(os.SCHED_BATCH)] * 4]


def test_a_system_that_does_not_know_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_setscheduler", raising=False)
    with batch_scheduling() as took:
        assert not took
    assert not restore_default_scheduling()


@ON_LINUX
def test_a_system_that_does_not_allow_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getscheduler", refuse)
    with batch_scheduling() as took:
        assert not took
    assert not restore_default_scheduling()
