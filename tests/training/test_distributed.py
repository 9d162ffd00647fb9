"""Several processes train one network: what they share, agree on and write."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from regnet_deploy.bundle import Bundle, create_bundle, open_bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.models.weights import FILE, weights_from_bytes
from regnet_deploy.training.distributed import ALONE, ProcessGroup, ensure_shared, process_group

Run = Callable[..., list[subprocess.CompletedProcess[str]]]
Start = Callable[..., list[subprocess.Popen[str]]]

#: What all runs of the tests have.
TRAIN = ["--batch-size", 9, "--crop-area", 0.5, "--device", "cpu", "--precision", "fp32", "--threads", 1]
TRAIN += ["--workers", 0, "--checkpoint-seconds", 0]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_shares_of_a_batch_are_the_batch(size: int) -> None:
    batch = list(range(7))
    shares = [list(ProcessGroup(rank=rank, size=size).share(batch)) for rank in range(size)]
    assert sorted(number for share in shares for number in share) == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def flag() -> bool:
        return True

    with process_group("cpu") as group:
        assert group is ALONE
        assert (group.sum([0.1, 2]), group.gather("a"), group.first(lambda: 3)) == ([0.1, 2], ["a"], 3)
        assert group.agreed(flag) is flag


def test_each_process_needs_images_for_batch_norm() -> None:
    ensure_shared(8, ProcessGroup(size=4), sync_bn=False)
    ensure_shared(4, ProcessGroup(size=4), sync_bn=True)
    ensure_shared(2, ALONE, sync_bn=False)
    with pytest.raises(UsageError, match=r"7 images and there are 4 processes.* 3 or fewer.*--batch-size 8.*--sync-bn"):
        ensure_shared(7, ProcessGroup(size=4), sync_bn=False)
    with pytest.raises(UsageError, match=r"start 3 or fewer, or give --batch-size 4 or more$"):
        ensure_shared(3, ProcessGroup(size=4), sync_bn=True)


def test_variables_that_are_no_numbers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="RANK is 'x', not a number"), process_group("cpu"):
        pass


AGREE = """
import json
from regnet_deploy.errors import DataError
from regnet_deploy.training.distributed import process_group

with process_group("cpu") as group:
    said = {"sum": group.sum([1, group.rank / 2]), "gathered": group.gather("ab"[group.rank])}
    said["first"] = group.first(lambda: {"rank": group.rank})
    try:
        group.first(lambda: (_ for _ in ()).throw(DataError(f"of {group.rank}")))
    except DataError as error:
        said["error"] = str(error)
    calls = 0

    def flag():
        return group.rank == 1 and calls >= 20

    agreed = group.agreed(flag)
    while not agreed():
        calls += 1
    said["calls"] = calls
print(json.dumps(said))
"""


def test_what_one_process_knows_all_know(run_processes: Run) -> None:
    done = run_processes(2, code=AGREE)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    first, second = (json.loads(each.stdout) for each in done)
    assert first == second
    assert 20 <= first.pop("calls") < 28
    assert first == {"sum": [2, 0.5], "gathered": ["a", "b"], "first": {"rank": 0}, "error": "of 0"}


STEP = """
import copy, json, torch
from regnet_deploy.bundle.training import Execution
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.distributed import process_group
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.trainer import make_trainer

network = Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
recipe = Recipe(batch_size=13, fine_tune=True, frozen_bn=True, precise_bn_images=0, class_weights="balanced")
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (13, 16, 16, 3), generator=draw, dtype=torch.uint8)
labels = torch.randint(0, 3, (13,), generator=draw)
numbers = list(range(13))
with process_group("cpu") as group:
    said = []
    # The whole batch; parts of it; a process with fewer images than the other; one with none that it can use.
    for execution, kept in [({}, 13), ({"micro_batch": 4}, 13), ({}, 5), ({}, 1)]:
        def batch(chosen):
            return Batch(pixels[chosen], torch.zeros(len(chosen), 3), labels[chosen], [])
        chosen = group.share(numbers)
        chosen = chosen if group.rank == 0 else [each for each in chosen if each < kept]
        used = sorted(each for part in group.gather(chosen) for each in (part if len(part) > 1 else []))
        model, preprocessing, counts = AnyNet(network, 3, seed=0), default_preprocessing(16), (6, 4, 3)
        alone = make_trainer(model, Execution("cpu"), recipe, preprocessing, class_counts=counts)
        execution = Execution("cpu", processes=2, **execution)
        together = make_trainer(model, execution, recipe, preprocessing, group, counts)
        wanted, result = alone.step(batch(used), 0.1), together.step(batch(chosen), 0.1)
        ours, theirs = together.model.state_dict(), alone.model.state_dict()
        said.append({
            "images": [int(result.images), len(used)],
            "right": int(result.right - wanted.right),
            "loss": float(abs(result.loss - wanted.loss)),
            "weights": max(float((ours[name] - value).abs().max()) for name, value in theirs.items()),
        })
print(json.dumps(said))
"""


def test_a_step_of_two_processes_is_that_of_one_with_all_their_images(run_processes: Run) -> None:
    done = run_processes(2, code=STEP)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    first, second = (json.loads(each.stdout) for each in done)
    assert first == second
    assert [each["images"] for each in first] == [[13, 13], [13, 13], [9, 9], [7, 7]]
    for each in first:
        assert each["right"] == 0
        assert each["loss"] < 1e-6
        assert each["weights"] < 1e-6


ABANDONED = """
import json, torch
from regnet_deploy.bundle.training import Execution
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training import slow_steps
from regnet_deploy.training.data_loader import Batch
from regnet_deploy.training.distributed import process_group
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.slow_steps import SlowSteps
from regnet_deploy.training.trainer import StepAbandoned, make_trainer

network = Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)
recipe = Recipe(batch_size=8)
draw = torch.Generator().manual_seed(0)
pixels = torch.randint(0, 256, (8, 16, 16, 3), generator=draw, dtype=torch.uint8)
batch = Batch(pixels[:4], torch.zeros(4, 3), torch.randint(0, 3, (4,), generator=draw), [])
slow_steps.SLOW_S = {slow_s}

with process_group("cpu") as group:
    def run(signalled_in):
        execution = Execution("cpu", processes=2)
        trainer = make_trainer(AnyNet(network, 3, seed=0), execution, recipe, default_preprocessing(16), group)
        signalled = []

        def signal_in_backward(module, inputs, output):
            if group.rank == signalled_in and number == 1:
                output.register_hook(lambda _: signalled.append(1))

        trainer.model.get_submodule("s2").register_forward_hook(signal_in_backward)
        steps, abandoned = SlowSteps(trainer, group.heard(lambda: bool(signalled))), []
        for number in (0, 1, 2):
            try:
                steps.step(batch, 0.1, (0, number))
            except StepAbandoned:
                abandoned.append(number)
                trainer.step(batch, 0.1, (0, number))
                steps = SlowSteps(trainer, lambda: False)
        return trainer.model.state_dict(), trainer.optimizer_state(), abandoned

    *wanted, none = run(None)
    heard_before = group.heard(lambda: False)()
    *found, abandoned = run(1)
    pairs = zip(found, wanted)
    equal = [all(torch.equal(value, theirs[name]) for name, value in ours.items()) for ours, theirs in pairs]
    group.sum([1])  # the other one may be about to write into the store
    print(json.dumps([none, heard_before, abandoned, equal, group.heard(lambda: False)()]))
"""


def test_a_slow_step_is_abandoned_by_all_processes_and_leaves_no_trace(run_processes: Run) -> None:
    done = run_processes(2, code=ABANDONED.format(slow_s=0.0))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert [json.loads(each.stdout) for each in done] == [[[], False, [1], [True, True], True]] * 2


FAIL = """
import sys, time
from regnet_deploy.errors import DataError
from regnet_deploy.training.distributed import process_group

try:
    with process_group("cpu") as group:
        if group.rank == 1:
            raise {error}
        group.sum([1])
except BaseException as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("error", "other"),
    [
        ("DataError('the disk is full')", "DataError the disk is full"),
        pytest.param("KeyboardInterrupt('stopped')", "KeyboardInterrupt stopped", marks=pytest.mark.slow),
        pytest.param(
            "ZeroDivisionError('a bug')",
            "ProcessLost another process of this training has ended",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_others_end_with_the_error_of_the_process_that_fails(run_processes: Run, error: str, other: str) -> None:
    done = run_processes(2, code=FAIL.format(error=error))
    assert done[0].stdout.startswith(other), done[0]
    assert "\n" not in done[0].stdout.strip()


def test_two_processes_give_the_weights_of_one_with_batch_norm_over_all(
    bundle: Bundle, data: Path, run_processes: Run, tmp_path: Path
) -> None:
    """Of the order of additions alone: float32 has 24 bits, and three epochs have nine steps."""
    alone = create_bundle(tmp_path / "alone", dict(bundle.parts)).path
    for path in (data / "train" / "red" / "000.png", data / "val" / "red" / "000.png"):
        path.unlink()  # classes of unequal size, balanced by sampling
    (tmp_path / "balanced.yaml").write_text("rule: auto\nvalues: {sampling: balanced}\n")
    arguments = ["--data", data, "--epochs", 3, "--sync-bn", "--recipe", tmp_path / "balanced.yaml", *TRAIN]
    (done,) = run_processes(1, "train", alone, *arguments)
    assert done.returncode == 0, done.stderr
    first, second = run_processes(2, "train", bundle.path, *arguments, "--json")
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    assert (second.stdout, second.stderr) == ("", "")  # one process writes
    assert "in 2 processes, batch norm over all of them" in first.stderr
    assert json.loads(first.stdout)["execution"]["execution"]["processes"] == 2
    assert len(list((bundle.path.parent / "bundle.training" / "run-1").iterdir())) == 1
    assert not (bundle.path.parent / "bundle.training" / "checkpoint.safetensors").exists()
    one, two = open_bundle(alone), open_bundle(bundle.path)
    assert (one.training.execution.execution.processes, two.training.execution.execution.processes) == (None, 2)
    weights, others = (_weights(each) for each in (one, two))
    for name, value in weights.items():
        if "num_batches" not in name:
            _assert_close(others[name], value, name)
    for before, after in zip(one.training.history, two.training.history, strict=True):
        assert after.val_images == before.val_images == 11
        assert after.val_class_top1 == pytest.approx(before.val_class_top1)
        assert after.train_loss == pytest.approx(before.train_loss, rel=1e-4)
        assert after.val_loss == pytest.approx(before.val_loss, rel=1e-3)


def _assert_close(value: Any, wanted: Any, name: str) -> None:
    torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")


def _weights(bundle: Bundle) -> dict[str, Any]:
    return dict(weights_from_bytes(bundle.read(FILE)))


def test_all_processes_end_with_one_line(bundle: Bundle, tmp_path: Path, data: Path, run_processes: Run) -> None:
    missing = run_processes(2, "train", bundle.path, "--data", tmp_path / "nowhere", *TRAIN)
    assert [each.returncode for each in missing] == [2, 2]
    assert missing[0].stderr == missing[1].stderr
    assert missing[0].stderr.startswith("regnet-deploy: ")
    assert missing[0].stderr.count("\n") == 1
    assert not (tmp_path / "bundle.training").exists()


@pytest.mark.slow
def test_a_fine_tuning_of_two_processes_has_all_its_parts(bundle: Bundle, data: Path, run_processes: Run) -> None:
    done = run_processes(2, "train", bundle.path, "--data", data, "--epochs", 1, *TRAIN)
    assert {each.returncode for each in done} == {0}, done
    arguments = [
        "--fine-tune",
        "--epochs",
        3,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--threads",
        1,
        "--test-split",
        0.2,
    ]
    done = run_processes(2, "train", bundle.path, "--data", data, *arguments)
    assert {each.returncode for each in done} == {0}, done
    training = open_bundle(bundle.path).training
    assert training.probe is not None
    assert training.lr_probe is not None
    assert len(training.lr_probe.trials) == 3
    assert training.history[-1].averaged
    assert training.test is not None


def _until(process: subprocess.Popen[str], start: str) -> None:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(start):
            return
    raise AssertionError(said)


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)])
def test_a_signal_to_any_process_ends_all_with_a_checkpoint(
    bundle: Bundle, data: Path, start_processes: Start, run_processes: Run, tmp_path: Path, signalled: tuple[int, ...]
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts)).path
    arguments = ["--data", data, "--epochs", 12, *TRAIN]
    assert {each.returncode for each in run_processes(2, "train", whole, *arguments)} == {0}
    processes = start_processes(2, "train", bundle.path, *arguments)
    _until(processes[0], "epoch 3/")
    begun = time.monotonic()
    for rank in signalled:
        processes[rank].send_signal(signal.SIGTERM)
        processes[rank].send_signal(signal.SIGTERM)  # a launcher passes on what the machine has sent to all
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert time.monotonic() - begun < 60
    assert "a checkpoint is written" in said[0]
    assert said[1].strip() == said[0][said[0].rindex("regnet-deploy: ") :].strip()
    continued = run_processes(2, "train", bundle.path, *arguments)
    assert {each.returncode for each in continued} == {0}, continued
    assert "resuming at epoch" in continued[0].stderr
    assert open_bundle(bundle.path).files == open_bundle(whole).files


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_says_so(
    bundle: Bundle, data: Path, start_processes: Start, run_processes: Run
) -> None:
    arguments = ["train", bundle.path, "--data", data, "--epochs", 6, *TRAIN]
    processes = start_processes(2, *arguments)
    _until(processes[0], "epoch 2/")
    processes[1].kill()
    _, said = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 2
    assert "another process of this training has ended" in said
    (done,) = run_processes(1, *arguments)
    assert done.returncode == 0, done.stderr
    assert "started with 2 processes and continued with 1" in done.stderr
    assert open_bundle(bundle.path).training.execution.execution.processes is None


@pytest.mark.slow
def test_torchrun_goes_on_after_kill_9_to_the_same_bits(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts)).path
    processes: list[subprocess.Popen[str]] = []
    try:
        for path in (whole, bundle.path):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
            command += ["--max-restarts", "1", "-m", "regnet_deploy", "train", path, "--data", data, "--epochs", "6"]
            processes.append(
                subprocess.Popen([*map(str, command), *map(str, TRAIN)], stderr=subprocess.PIPE, text=True)
            )
            if path == bundle.path:
                _until(processes[-1], "epoch 2/")
                killed = _children(processes[-1].pid)[1]
                os.kill(killed, signal.SIGKILL)
            said = processes[-1].communicate(timeout=280)[1]
            assert processes[-1].returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
    assert "resuming at epoch" in said
    assert open_bundle(bundle.path).training.execution.execution.processes == 3
    assert open_bundle(bundle.path).files == open_bundle(whole).files


def _children(pid: int) -> list[int]:
    """Return the processes of training that a launcher has started, without those that they have started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"regnet_deploy" in stat.with_name("cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return sorted(found)
