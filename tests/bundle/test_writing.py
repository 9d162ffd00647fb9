"""A command that fails or dies at any system call leaves the bundle before or after it, and says which."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.bundle import MANIFEST, create_bundle, find_damage, find_leftovers, open_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.space.network import Network

NETWORK = Network((1,), (8,), (8,), (1.0,))
PARTS = {"architecture": Architecture.of(NETWORK, name="small", classes=2, resolution=32).to_json()}
OLD = {"weights.safetensors": b"old" * 5000, "samples.safetensors": b"kept" * 100}
NEW = {"weights.safetensors": b"new" * 5000, "golden.safetensors": b"golden" * 100}

#: Tries every fault at every call, in a process without threads, which may fork.
PROGRAM = """
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.bundle import faults
from tests.bundle.test_writing import write_new, create_new
work = {"update": write_new, "create": create_new}[sys.argv[4]]
start, place = Path(sys.argv[1]), Path(sys.argv[2])
def fresh(name):
    folder = place / name
    return Path(shutil.copytree(start, folder)) if start.is_dir() else folder
count = faults.number_of_calls(lambda folder=fresh("count"): work(folder))
for number in range(1, count + 2):
    for name, fault in {
        "kill": faults.kill_at(number),
        "interrupt": faults.interrupt_after(number),
        "full": faults.fail_at(number, faults.FULL),
        "full for good": faults.fail_at(number, faults.FULL, for_good=True),
        "defect": faults.fail_at(number, faults.DEFECT),
    }.items():
        folder = fresh(f"{name} {number}")
        code, said = faults.run_with_fault(lambda: work(folder), fault)
        print(json.dumps({"fault": name, "number": number, "folder": str(folder), "code": code, "said": said}))
"""


def write_new(folder: Path) -> None:
    update_bundle(folder, {"labels": ["a", "b"]}, NEW, drop=("samples.safetensors",))


def create_new(folder: Path) -> None:
    create_bundle(folder / "below" / "b", PARTS)


def outcomes(start: Path, place: Path, what: str) -> list[dict[str, Any]]:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, start, place, root, what], capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 100
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    create_bundle(tmp_path / "old", PARTS)
    return update_bundle(tmp_path / "old", {}, OLD).path


def test_at_whatever_call_a_command_fails_the_bundle_is_the_old_or_the_new_one_and_the_message_is_true(
    old: Path, tmp_path: Path
):
    before, names = open_bundle(old), sorted(os.listdir(old))
    seen = set()
    for one in outcomes(old, tmp_path / "tried", "update"):
        folder = Path(one["folder"])
        now = open_bundle(folder)
        is_new = now.parts != before.parts
        contents = {logical: now.read(logical) for logical in now.files}
        assert contents == (NEW if is_new else OLD), one
        assert find_damage(now) == [], one
        if one["said"].startswith("BundleError"):
            said = "has its new content" if is_new else "nothing was changed"
            assert said in one["said"] or (one["said"].startswith("BundleError: cannot read") and not is_new), one
        if one["code"] == 9 and not is_new and one["fault"] != "interrupt":  # nothing of it is left
            assert sorted(os.listdir(folder)) == names, one
        if one["code"] == 0:
            assert is_new, one
        seen.add((one["fault"], one["code"], is_new))
        after = update_bundle(folder, {"labels": ["c", "d"]}, {"weights.safetensors": b"next"})
        assert find_damage(after) == find_leftovers(after) == [], one
        shutil.rmtree(folder)
    assert {("kill", -9, False), ("kill", -9, True), ("interrupt", 9, False), ("interrupt", 9, True)} <= seen
    assert {("full", 9, False), ("full for good", 9, False), ("defect", 9, False), ("defect", 9, True)} <= seen


def test_at_whatever_call_select_fails_the_next_one_works(tmp_path: Path):
    for one in outcomes(tmp_path / "nothing", tmp_path, "create"):
        folder = Path(one["folder"])
        bundle = folder / "below" / "b"
        if one["code"] == 9 and not (bundle / MANIFEST).exists() and one["fault"] != "interrupt":
            assert not folder.exists(), one  # no empty folder is left
        if not (bundle / MANIFEST).exists():
            create_new(folder)
        assert open_bundle(bundle).parts == PARTS
        assert find_damage(open_bundle(bundle)) == [], one
        if folder.exists():
            shutil.rmtree(folder)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_fsync_or_locks_holds_bundles_all_the_same(
    old: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def fails(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("regnet_deploy.durable_files.fcntl.flock", fails)
    if code not in (errno.ENOLCK, errno.EBADF):
        monkeypatch.setattr("regnet_deploy.durable_files.os.fsync", fails)
    write_new(old)
    now = open_bundle(old)
    assert {logical: now.read(logical) for logical in now.files} == NEW
    assert find_damage(now) == find_leftovers(now) == []


def test_without_locks_what_another_command_is_writing_is_neither_deleted_nor_replaced(
    old: Path, monkeypatch: pytest.MonkeyPatch
):
    from regnet_deploy.bundle import writing
    from regnet_deploy.errors import BundleError

    def fails(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("regnet_deploy.durable_files.fcntl.flock", fails)
    theirs = old / ".incomplete-of-another"
    theirs.write_bytes(b"being written")
    write_new(old)
    assert theirs.exists()

    real, meanwhile = writing.sync_folder, []

    def another_command_writes(folder: Path) -> None:
        real(folder)
        if not meanwhile:
            meanwhile.append(folder)
            update_bundle(old, {"labels": ["x", "y"]})

    monkeypatch.setattr(writing, "sync_folder", another_command_writes)
    with pytest.raises(BundleError, match="changed by another command meanwhile; nothing was written"):
        update_bundle(old, {"labels": ["p", "q"]})
    monkeypatch.undo()
    now = open_bundle(old)
    assert now.labels == ("x", "y")
    assert find_damage(now) == []


def test_what_is_left_by_a_dead_command_is_told_from_what_does_not_belong(old: Path):
    bundle = open_bundle(old)
    whole = old / f"onnx-fp32-{'0' * 12}.onnx"
    whole.write_bytes(b"content that does not belong to the name")
    (old / "notes.txt").write_text("mine")
    (old / ".incomplete-0123").write_bytes(b"half")
    assert [line.split(" is ")[0] for line in find_damage(bundle)] == [str(old / "notes.txt"), str(whole)]
    assert find_leftovers(bundle) == [old / ".incomplete-0123"]
