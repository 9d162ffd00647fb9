"""How steps are run: what may be tried here, and what cannot be had is one line."""

import pytest
import torch

from regnet_deploy.bundle.training import Execution
from regnet_deploy.errors import UsageError
from regnet_deploy.training import execution
from regnet_deploy.training.execution import (
    ExecutionRequest,
    can_compile,
    default_workers,
    resolve_device,
)


def test_what_is_left_open_is_every_combination_the_plainest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda device: True)
    assert ExecutionRequest("cpu").candidates() == [
        Execution("cpu", "fp32", False),
        Execution("cpu", "fp32", True),
        Execution("cpu", "bf16", False),
        Execution("cpu", "bf16", True),
    ]


def test_bf16_is_not_tried_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "has_bf16", lambda device: False)
    assert {each.precision for each in ExecutionRequest("cpu").candidates()} == {"fp32"}
    assert ExecutionRequest("cpu", precision="bf16", channels_last="on").candidates() == [
        Execution("cpu", "bf16", True)
    ]


def test_what_is_said_is_done() -> None:
    assert ExecutionRequest("cpu", "fp32", "on", "on").candidates() == [Execution("cpu", "fp32", True, True)]
    assert ExecutionRequest("cpu", "fp32", "off", "auto").candidates() == [Execution("cpu", "fp32", False, False)]


def test_contradictions_name_the_option_and_both_values() -> None:
    done = Execution("cpu", "bf16", True, False)
    assert ExecutionRequest().contradictions(done) == []
    assert ExecutionRequest("cpu", "bf16", "on", "off").contradictions(done) == []
    assert ExecutionRequest("cuda", "fp32", "off", "on").contradictions(done) == [
        "--device cuda (was cpu)",
        "--precision fp32 (was bf16)",
        "--channels-last off (was on)",
        "--compile on (was off)",
    ]


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
