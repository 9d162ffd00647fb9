"""What workers on Ray tell the process of the user, and what it tells them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from regnet_deploy.errors import DataError
from regnet_deploy.training import ray_board, ray_process
from regnet_deploy.training.ray_board import BoardProgress, RayBoard, StopRequest


class Handle:
    """A board whose methods are called as those of an actor are."""

    def __init__(self, board: RayBoard) -> None:
        self.board = board

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.board, name))


def test_messages_arrive_once_and_in_their_order_and_updates_now_and_then() -> None:
    board = RayBoard()
    progress = BoardProgress(Handle(board))
    progress.step("epoch 1/3", 100)
    for done in range(100):
        progress.update(done, note="loss 1.0")
    progress.message("epoch 1/3: train loss 1.0")
    events = board.news().events
    assert events[0] == ("step", ("epoch 1/3", 100))
    assert events[1] == ("update", (0, None, "loss 1.0"))
    assert events[-1] == ("message", ("epoch 1/3: train loss 1.0",))
    assert len(events) < 100
    assert not board.news().events


def test_workers_that_train_see_that_they_are_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_board, "require", lambda module, extra: SimpleNamespace(get=lambda value: value))
    monkeypatch.setattr(ray_board, "_INTERVAL_S", 0.0)
    board = RayBoard()
    stopping = StopRequest(Handle(board))
    assert not board.news().trains
    assert not stopping()
    assert board.news().trains
    board.stop()
    assert stopping()
    board.lose("worker 1 died")
    news = board.news()
    assert (news.losses, news.trains) == (["worker 1 died"], False)  # those that start again do not look yet


def test_how_the_workers_ended_is_kept() -> None:
    board, error = RayBoard(), DataError("the disk is full")
    board.end(error)
    board.end(None, {"a": 1})
    assert board.news().ended == board.news().ended == [(error, None), (None, {"a": 1})]


def test_workers_that_start_again_after_the_end_of_the_training_do_not_train_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = RayBoard()
    board.end(DataError("the disk is full"))
    assert not board.is_done()
    board.end(None, {"a": 1})
    assert board.is_done()
    monkeypatch.setattr(ray_process, "require", lambda module, extra: SimpleNamespace(get=lambda value: value))
    ray_process._run_worker({"work": SimpleNamespace(board=Handle(board))})  # type: ignore[dict-item]
    assert len(board.news().ended) == 2
