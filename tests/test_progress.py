"""Progress: whoever calls the library may pass an object with three methods, or nothing to follow."""

from typing import Any

from regnet_deploy.progress import NoProgress, Progress


def report(progress: Progress) -> None:
    progress.step("decode", 2)
    progress.update(1, note="a.png")
    progress.update(2)
    progress.message("done")


def test_no_progress_accepts_everything_and_prints_nothing(capfd: Any) -> None:
    report(NoProgress())
    assert capfd.readouterr() == ("", "")


def test_an_object_with_the_three_methods_receives_every_call(recorded_progress: Any) -> None:
    report(recorded_progress)
    assert recorded_progress.steps == [("decode", 2)]
    assert recorded_progress.updates == [("decode", 1, 2, "a.png"), ("decode", 2, 2, "")]
    assert recorded_progress.messages == ["done"]
