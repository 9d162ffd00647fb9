import io
import threading
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

from regnet_deploy.cli.output import TerminalProgress, combined_error, terminal_progress
from regnet_deploy.errors import MissingExtra, ProofError, UsageError


def test_a_refusal_names_each_variant_once_and_is_of_a_proof_where_one_is():
    error = combined_error(
        {
            "trt-fp32": UsageError("there is no GPU"),
            "onnx-fp16": ProofError("onnx-fp16 does not agree"),
            "trt-fp16": UsageError("there is no GPU"),
        },
        " (the others are written)",
    )
    assert type(error) is ProofError
    assert str(error) == "trt-fp32, trt-fp16: there is no GPU; onnx-fp16 does not agree (the others are written)"


def test_what_keeps_all_engines_from_being_is_said_as_it_is():
    error = combined_error({"engines": MissingExtra("tensorrt is not installed")})
    assert (type(error), str(error)) == (MissingExtra, "tensorrt is not installed")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(stream: io.StringIO) -> RichProgress:
    """A display at a terminal."""
    console = Console(file=stream, force_terminal=True, width=120)
    return RichProgress(TextColumn("{task.description} {task.completed} {task.fields[note]}"), console=console)


def shown(display: RichProgress) -> list[tuple[str, float, float | None, str]]:
    return [(task.description, task.completed, task.total, task.fields["note"]) for task in display.tasks]


def test_at_a_terminal_messages_are_above_one_bar_at_a_time(display: RichProgress, stream: io.StringIO) -> None:
    with display:
        progress = TerminalProgress(display)
        progress.step("checking images", 10)
        progress.update(3)
        progress.message("a [line] of text")
        progress.step("epoch 1/2", 40)
        assert shown(display) == [("epoch 1/2", 0, 40, "")]
        progress.update(1, note="loss 0.5")
        progress.step("epoch 2/2", 40)
        progress.update(21, note="loss 0.25")
        assert shown(display) == [("epoch 2/2", 21, 40, "loss 0.25")]
    assert "a [line] of text" in stream.getvalue()


def test_the_total_of_a_step_may_come_later_and_stays(display: RichProgress) -> None:
    progress = TerminalProgress(display)
    progress.step("settings tried")
    assert shown(display) == [("settings tried", 0, None, "")]
    progress.update(1, 7)
    progress.update(2)
    assert shown(display) == [("settings tried", 2, 7, "")]


def test_threads_may_report_at_the_same_time(display: RichProgress) -> None:
    progress = TerminalProgress(display)

    def report(name: str) -> None:
        for i in range(200):
            progress.step(name, 200)
            progress.update(i)

    threads = [threading.Thread(target=report, args=(f"thread {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(display.tasks) == 1


def test_where_stderr_is_no_terminal_only_messages_are_printed(capfd: Any) -> None:
    with terminal_progress() as progress:
        progress.step("epoch 1/2", 2)
        progress.update(1, note="loss 0.5")
        progress.message("a [line] of text")
    assert capfd.readouterr() == ("", "a [line] of text\n")
