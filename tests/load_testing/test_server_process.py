"""Servers in processes of their own: started, told what to do, ended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.errors import ServerError
from regnet_deploy.load_testing import server_process
from regnet_deploy.load_testing.server_process import running_server

#: In place of Python with the package: what the "server" does, by its bundle's name.
SCRIPT = """
import os, signal, sys, time
bundle = sys.argv[5]
if bundle.endswith("refuses"):
    print("regnet-deploy: cannot do that", file=sys.stderr)
    sys.exit(2)
if bundle.endswith("sleeps"):
    time.sleep(60)
if bundle.endswith("mute"):
    os.close(1)
    time.sleep(60)
if bundle.endswith("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
secret = os.environ.get("REGNET_DEPLOY_TOKEN", "none")
print('{"url": "http://127.0.0.1:%d/%s"}' % (os.getpid(), secret), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(server_process.sys, "executable", str(wrapper))
    monkeypatch.setenv("REGNET_DEPLOY_TOKEN", "secret")


def is_running(url: str) -> bool:
    return Path(f"/proc/{url.split(':')[2].split('/')[0]}").exists()


def test_it_runs_for_as_long_as_the_context_and_gets_no_variables_of_ours():
    with running_server("good", []) as url:
        assert is_running(url)
        assert url.endswith("/none")
    assert not is_running(url)


def test_it_ends_when_the_context_fails():
    with pytest.raises(KeyboardInterrupt), running_server("good", []) as url:
        raise KeyboardInterrupt
    assert not is_running(url)


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_process, "_END_S", 0.2)
    with running_server("stubborn", []) as url:
        pass
    assert not is_running(url)


def test_what_keeps_it_from_starting_is_said():
    with pytest.raises(ServerError, match="the server did not start: cannot do that"), running_server("refuses", []):
        pass
    with (
        pytest.raises(ServerError, match=r"was not ready after 0\.2 s"),
        running_server("sleeps", [], start_s=0.2),
    ):
        pass


def test_one_that_closes_its_output_and_lives_on_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_process, "_END_S", 0.2)
    with pytest.raises(ServerError, match="did not start: it printed no address"), running_server("mute", []):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_it_ends_when_the_process_that_started_it_is_killed(monkeypatch: pytest.MonkeyPatch):
    """The launcher for real, with a program that sleeps in place of the server."""
    monkeypatch.undo()
    sleeps = "import types, time; fake = types.ModuleType('main'); fake.run = lambda words: time.sleep(600)\n"
    sleeps += "import sys; sys.modules['regnet_deploy.cli.main'] = fake\n"
    parent = "import json, os, subprocess, sys, time; code = json.loads(sys.argv[1])\n"
    parent += "child = subprocess.Popen([sys.executable, '-c', code, str(os.getpid())], start_new_session=True)\n"
    parent += "print(child.pid, flush=True); time.sleep(600)\n"
    code = sleeps + server_process._LAUNCHER
    process = subprocess.Popen([sys.executable, "-c", parent, json.dumps(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = Path("/proc", process.stdout.readline().strip())
    with process:
        assert is_alive(child)
        process.kill()
    wait_until(lambda: not is_alive(child))


def is_alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
