import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from regnet_deploy.engines.library import Library
from regnet_deploy.engines.timing_cache import attach, cache_file, keep
from regnet_deploy.progress import NoProgress
from regnet_deploy.user_cache import cache_folder


@pytest.fixture
def config(fakes):
    """Return a maker of configurations of a builder, on a GPU."""

    def make(version="11.4.0.106", device="H100"):
        trt = fakes.fake_tensorrt(version, device=device)
        return trt.Builder(None).create_builder_config()

    return make


def fill(config, path, *entries, progress=NoProgress()):
    """Build once: read the cache, measure these kernels, write it."""
    cache = attach(config, path, progress, timeout_s=0.2)
    found = set(cache._entries)
    cache._entries.update(entries)
    keep(config, cache, path, progress, timeout_s=0.2)
    return found


def test_what_one_build_measured_the_next_one_knows(config, tmp_path):
    path = tmp_path / "folder" / "a.timing"
    assert fill(config(), path, "one") == set()
    assert fill(config(), path, "two") == {"one"}
    assert fill(config(), path) == {"one", "two"}


def test_what_another_process_wrote_meanwhile_is_kept(config, tmp_path, recorded_progress):
    path, mine = tmp_path / "a.timing", config()
    cache = attach(mine, path, recorded_progress)
    fill(config(), path, "theirs")
    cache._entries.add("mine")
    keep(mine, cache, path, recorded_progress)
    assert recorded_progress.messages == []
    assert fill(config(), path) == {"mine", "theirs"}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-2] + b"xx", lambda data: b"", lambda d: b"\0"]
)
def test_a_damaged_cache_is_replaced_and_noted(config, tmp_path, damage, recorded_progress):
    path = tmp_path / "a.timing"
    fill(config(), path, "one")
    path.write_bytes(damage(path.read_bytes()))
    assert fill(config(), path, "two", progress=recorded_progress) == set()
    assert "is damaged and is replaced" in recorded_progress.messages[0]
    assert fill(config(), path) == {"two"}


@pytest.mark.parametrize("other", [{"version": "10.16.1.11"}, {"device": "A100"}])
def test_a_cache_of_another_gpu_or_version_is_replaced_and_noted(config, tmp_path, other, recorded_progress):
    path = tmp_path / "a.timing"
    fill(config(**other), path, "one")
    assert fill(config(), path, "two", progress=recorded_progress) == set()
    assert "is of another GPU or version" in recorded_progress.messages[0]
    assert fill(config(), path) == {"two"}


def test_a_cache_that_tensorrt_cannot_open_at_all_is_replaced(config, tmp_path, monkeypatch, recorded_progress):
    path, made = tmp_path / "a.timing", config()
    fill(config(), path, "one")
    create = type(made).create_timing_cache

    def refusing(self, data):
        if data:
            raise TypeError("Unable to convert function return value to a Python type!")
        return create(self, data)

    monkeypatch.setattr(type(made), "create_timing_cache", refusing)
    assert fill(made, path, "two", progress=recorded_progress) == set()
    assert fill(config(), path) == {"two"}


HOLDER = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_another_process_holds_is_waited_for_and_then_gone_without(config, tmp_path, recorded_progress):
    path = tmp_path / "a.timing"
    fill(config(), path, "one")
    command = [sys.executable, "-c", HOLDER, str(path.with_suffix(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert fill(config(), path, "two", progress=recorded_progress) == set()
        holder.stdin.close()
    assert len(recorded_progress.messages) == 2
    assert all(
        "another process holds it: the build measures every kernel" in note for note in recorded_progress.messages
    )
    assert fill(config(), path) == {"one"}


def test_a_folder_that_cannot_be_written_is_noted_and_nothing_fails(config, tmp_path, recorded_progress):
    (tmp_path / "file").write_text("")
    assert fill(config(), tmp_path / "file" / "a.timing", "one", progress=recorded_progress) == set()
    assert "is not used" in recorded_progress.messages[0]


def test_a_file_that_cannot_be_written_is_noted(config, tmp_path, recorded_progress):
    path = tmp_path / "a.timing"
    path.mkdir()
    fill(config(), path, "one", progress=recorded_progress)
    assert any("cannot be written" in note for note in recorded_progress.messages)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".incomplete")]


def test_each_gpu_driver_and_version_has_its_own_file_in_the_users_cache_folder(h100, a100, monkeypatch, tmp_path):
    from dataclasses import replace

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old, new = (Library(SimpleNamespace(__version__=version), "tensorrt") for version in ("10.16.1.11", "11.4.0.106"))
    files = {cache_file(old, h100), cache_file(new, h100), cache_file(new, a100)}
    files.add(cache_file(new, replace(h100, driver="1.2")))
    files.add(cache_file(new, replace(h100, multiprocessors=1)))
    assert len(files) == 5
    assert {file.parent for file in files} == {tmp_path / "regnet-deploy" / "timing"}
    assert cache_file(new, h100).name.startswith("NVIDIA-H100-80GB-HBM3-tensorrt-11.4.0.106-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("timing") == tmp_path / "home" / ".cache" / "regnet-deploy" / "timing"
