"""How steps are run: what is left open is decided by rule, and what cannot be had is one line."""

import pytest
import torch

from regnet_deploy.bundle.training import Autotune, Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.training import execution
from regnet_deploy.training.execution import (
    ExecutionRequest,
    can_compile,
    default_workers,
    resolve_device,
)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_left_open_on_a_cpu_is_decided_by_rule(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda device: bf16)
    assert ExecutionRequest("cpu").execution(10**9) == Execution("cpu", "fp32", True, False)


@pytest.mark.parametrize(
    ("bf16", "steps", "compiler", "expected"),
    [
        (True, 9_999, True, Execution("cuda", "bf16", True, False)),
        (True, 10_000, True, Execution("cuda", "bf16", True, True)),
        (True, 10_000, False, Execution("cuda", "bf16", True, False)),
        (False, 10_000, True, Execution("cuda", "fp32", True, True)),
    ],
)
def test_what_is_left_open_on_a_gpu_follows_from_the_gpu_and_the_steps(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, steps: int, compiler: bool, expected: Execution
) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(execution, "can_compile", lambda device: compiler)
    monkeypatch.setattr(execution, "resolve_device", lambda device: "cuda")
    assert ExecutionRequest().execution(steps) == expected


def test_a_request_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    assert ExecutionRequest("cpu", "bf16", "off", "on").execution() == Execution("cpu", "bf16", False, True)
    assert ExecutionRequest("cpu", "fp32", "on", "off").execution() == Execution("cpu", "fp32", True, False)


def test_compilation_without_a_compiler_is_refused_only_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"--compile on: torch.compile finds no C compiler here"):
        ExecutionRequest("cpu", compiled="on").execution()
    assert not ExecutionRequest("cpu").execution(10**9).compiled


def test_contradictions_name_the_option_and_both_values() -> None:
    done = Autotune(execution=Execution("cpu", "bf16", True, False), step_ms={}, reason="", threads=2)
    assert ExecutionRequest().contradictions(done) == []
    assert ExecutionRequest("cpu", "bf16", "on", "off", 2).contradictions(done) == []
    assert ExecutionRequest("cuda", "fp32", "off", "on", 4).contradictions(done) == [
        "--device cuda (was cpu)",
        "--precision fp32 (was bf16)",
        "--channels-last off (was on)",
        "--compile on (was off)",
        "--threads 4 (was 2)",
    ]
    assert ExecutionRequest(threads=4).contradictions(done.replace(threads=None)) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_cuda_that_is_not_there_is_one_line() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda: PyTorch .* finds no CUDA device; give --device cpu"):
        resolve_device("cuda")


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    assert not can_compile("cpu")


def test_a_cpu_gets_no_loading_process_for_images_in_memory_and_one_for_files() -> None:
    assert default_workers("cpu", in_memory=True) == 0
    assert default_workers("cpu", in_memory=False) == 1
    assert 1 <= default_workers("cuda", in_memory=True) <= 8


def test_parts_of_a_step_have_four_images_or_more() -> None:
    assert ExecutionRequest("cpu", micro_batch=4).execution().micro_batch == 4
    with pytest.raises(UsageError, match="--micro-batch must be 4 images or more, got 3"):
        ExecutionRequest("cpu", micro_batch=3)
