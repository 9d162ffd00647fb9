"""Ctrl-C and SIGTERM: nothing that was computed is lost."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from regnet_deploy.bundle import Bundle, create_bundle, open_bundle
from regnet_deploy.models.weights import FILE
from regnet_deploy.training import run as training_run
from regnet_deploy.training import slow_steps, train
from regnet_deploy.training.checkpoint import load_checkpoint
from regnet_deploy.training.interruption import stop_signals
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.run_directory import default_directory
from regnet_deploy.training.train import TrainOptions
from regnet_deploy.training.trainer import Trainer, make_trainer

#: Signals reach the process, and with it what other tests of a pytest-xdist worker left in it.
pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Give SIGINT its usual handler, which the process of the tests may have lost or never had (as under nohup)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is not None:  # of a library that is not written in Python
        signal.signal(signal.SIGINT, before)


SIGNALS = """
import signal
from regnet_deploy.training.interruption import stop_signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with stop_signals() as stopping:
    assert not stopping()
    signal.raise_signal(signal.SIGINT)
    assert stopping()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise SystemExit(7)
"""


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ignored_signals_remain_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as stopping:
            signal.raise_signal(signal.SIGINT)
            assert not stopping()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_said_at_once_by_its_name() -> None:
    heard, arrived = [], threading.Event()

    def said(name: str) -> None:
        heard.append(name)
        arrived.set()

    wakeup = signal.set_wakeup_fd(-1)
    with stop_signals(repeated=True, said=said):
        signal.raise_signal(signal.SIGTERM)
        assert arrived.wait(60)
        signal.raise_signal(signal.SIGINT)
    assert heard == ["SIGTERM"]
    assert signal.set_wakeup_fd(wakeup) == -1
    assert "stop-signals" not in [thread.name for thread in threading.enumerate()]


def test_another_thread_handles_no_signals() -> None:
    seen: list[bool] = []

    def run() -> None:
        with stop_signals() as stopping:
            seen.append(stopping())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("where", "count", "position"), [("step", 5, "epoch 2 step 2"), ("evaluate", 2, "epoch 2 step 3")]
)
def test_a_run_ends_with_a_checkpoint_and_goes_on_to_the_same_bits(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    where: str,
    count: int,
    position: str,
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts))
    wanted = train.train(whole.path, data, recipe, options, recorded_progress)
    owner, done = (Trainer, "step") if where == "step" else (training_run, "evaluate"), [0]
    original = getattr(*owner)

    def signalled(*arguments: object) -> object:
        done[0] += 1
        if done[0] == count:
            signal.raise_signal(number)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(slow_steps, "SLOW_S", math.inf)
        patch.setattr(*owner, signalled)
        with pytest.raises(KeyboardInterrupt, match=f"the same command continues at {position}, and --finish writes"):
            train.train(bundle.path, data, recipe, options, recorded_progress)
    assert load_checkpoint(default_directory(bundle.path)).position == position
    assert open_bundle(bundle.path) == bundle
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert f"resuming at {position}" in recorded_progress.messages
    assert trained.files[FILE] == wanted.files[FILE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_slow_step_is_abandoned_and_done_again_to_the_same_bits(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    where: str,
) -> None:
    whole = create_bundle(tmp_path / "whole", dict(bundle.parts))
    wanted = train.train(whole.path, data, recipe, options, recorded_progress)
    passes, later = [0], [0]  # training passes of the network, and those of a layer after the signal

    def with_signal(*arguments: Any) -> Trainer:
        trainer = make_trainer(*arguments)

        def middle(module: nn.Module, _: Any, output: Tensor) -> None:
            passes[0] += module.training and output.requires_grad
            if passes[0] == 6 and output.requires_grad:
                signal.raise_signal(number) if where == "forward" else output.register_hook(signalled)

        def signalled(_: Tensor) -> None:
            signal.raise_signal(number)

        def first(gradient: Tensor) -> None:
            later[0] += passes[0] == 6

        def last(*_: object) -> None:
            later[0] += passes[0] == 6

        trainer.model.get_submodule("s2").register_forward_hook(middle)
        if where == "forward":
            trainer.model.get_submodule("head.fc").register_forward_hook(last)
        else:
            next(trainer.model.parameters()).register_hook(first)
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(slow_steps, "SLOW_S", 0.0)
        patch.setattr(train, "make_trainer", with_signal)
        with pytest.raises(KeyboardInterrupt, match="the same command continues at epoch 2 step 2"):
            train.train(bundle.path, data, recipe, options, recorded_progress)
    assert (passes, later) == ([6], [0])
    assert any(line.startswith(f"{signal.Signals(number).name}: ") for line in recorded_progress.messages)
    trained = train.train(bundle.path, data, recipe, options, recorded_progress)
    assert trained.files[FILE] == wanted.files[FILE]


def test_before_the_first_epoch_there_is_nothing_to_finish(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.step

    def signalled(*arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Trainer, "step", signalled)
    with pytest.raises(KeyboardInterrupt, match=r"continues at epoch 1 step 0$"):
        train.train(bundle.path, data, recipe, options, recorded_progress)


def test_before_the_first_checkpoint_the_command_has_to_be_repeated(
    bundle: Bundle,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    recorded_progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "check_images", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the training had not begun and the bundle is unchanged: repeat"):
        train.train(bundle.path, data, recipe, options, recorded_progress)
    assert open_bundle(bundle.path) == bundle
    assert load_checkpoint(default_directory(bundle.path)) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_end_does_not_wait_for_a_process_that_was_forked_meanwhile() -> None:
    with stop_signals(said=lambda name: None):
        child = os.fork()  # as a process that loads images, which has copies of all open files
        if not child:
            time.sleep(60)
            os._exit(0)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it still runs
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
