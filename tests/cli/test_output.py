import io
import re
import sys
import threading
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

from regnet_deploy.cli import output
from regnet_deploy.cli.output import (
    LineProgress,
    TerminalProgress,
    bar_display,
    combined_error,
    print_message,
    print_table,
    print_text,
    terminal_progress,
    wrap_words,
)
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


def test_where_stderr_is_no_terminal_a_quiet_step_says_how_far_it_is(capfd: Any) -> None:
    progress, ended = LineProgress(0.0), threading.Event()

    def lines() -> list[str]:
        """Return what is said of the step once, and the text without its seconds."""
        with pytest.raises(Ended):
            progress.print_when_quiet(Once())
        return re.sub(r"after \d+ s", "after n s", capfd.readouterr().err).splitlines()

    class Ended(Exception):
        pass

    class Once(threading.Event):
        """Not set the first time, and then the end of the test."""

        def wait(self, timeout: float | None = None) -> bool:
            if self.is_set():
                raise Ended
            self.set()
            return False

    assert lines() == ["working: after n s"]
    progress.step("checking images", 50_000)
    assert lines() == ["checking images: after n s"]
    progress.update(12_000)
    assert lines() == ["checking images: 12,000 of 50,000, after n s"]
    progress.step("settings tried")
    progress.update(3, note="1,234 images/s")
    assert lines() == ["settings tried: 3, 1,234 images/s, after n s"]
    progress.update(4, 9)
    assert lines() == ["settings tried: 4 of 9, after n s"]
    ended.set()
    progress.print_when_quiet(ended)  # ends at once


def test_a_line_within_the_time_is_sign_enough(capfd: Any) -> None:
    progress, ended = LineProgress(3600.0), threading.Event()
    thread = threading.Thread(target=progress.print_when_quiet, args=(ended,))
    thread.start()
    progress.step("epoch 1/2", 2)
    progress.message("a [line] of text")
    ended.set()
    thread.join()
    assert capfd.readouterr() == ("", "a [line] of text\n")


def test_nothing_is_left_of_the_thread_that_prints(capfd: Any) -> None:
    before = threading.active_count()
    with terminal_progress():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_lines_printed_beside_a_bar_are_above_it(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with bar_display(Console(file=stream, force_terminal=True, width=60, no_color=True)) as display:
        progress = TerminalProgress(display)
        progress.step("epoch 1/2", 1234)
        progress.update(567, note="loss 0.123, val top-1 50.0%, 1,234 images/s")
        display.refresh()
        print_message("printed")
        progress.message("a message of " + "several words " * 5)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue().replace("\x1b[2K", "<clear>"))
    assert "<clear>printed\n" in shown
    assert "<clear>a message of several words several words several words\nseveral words several words\n" in shown
    assert " 567/1234 " in shown  # the numbers are not cut in favor of the note
    assert "loss 0.1" in shown


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stdout a terminal of 80 columns."""
    monkeypatch.setattr(
        output, "stdout_console", lambda width=200: Console(force_terminal=True, width=80, no_color=True)
    )
    monkeypatch.setenv("COLUMNS", "80")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("count", [2, 12, 30])
def test_a_wide_table_continues_below_and_breaks_no_word(capsys: pytest.CaptureFixture[str], count: int) -> None:
    columns = ["", "family", *(f"column{i}" for i in range(count))]
    rows = [[str(i), "RegNetY", *(f"{i}.{j:06d}" for j in range(count))] for i in range(3)]
    print_table("Title", columns, rows, left=2)
    lines = printed(capsys)
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert set(columns[1:]) <= set(words)
    assert {cell for row in rows for cell in row} <= set(words)
    assert words.count("Title") == 1
    assert words.count("family") == -(-count // 6) if count > 6 else words.count("family") == 1


@pytest.mark.usefixtures("narrow")
def test_rows_become_paragraphs_where_the_first_columns_leave_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        "Files", ["file", "bytes", "sha256"], [["a-long-file-name.onnx", "12", "f" * 64], ["b.onnx", "3", "0" * 64]]
    )
    assert printed(capsys) == [
        *("Files", "", "a-long-file-name.onnx", "  bytes 12; sha256", "  " + "f" * 64),
        *("", "b.onnx", "  bytes 3; sha256", "  " + "0" * 64, ""),
    ]


@pytest.mark.usefixtures("narrow")
def test_prose_is_wrapped_between_words_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("  " + "words of [a] sentence " * 20)
    lines = printed(capsys)
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("  ") for line in lines)
    assert " ".join(lines).split() == ("words of [a] sentence " * 20).split()


def test_off_a_terminal_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("word " * 100)
    print_message("word " * 100 + "- next: regnet-deploy train")
    out, err = capsys.readouterr()
    assert (out.count("\n"), err.count("\n")) == (1, 1)


def test_at_a_terminal_the_next_command_is_a_line_to_copy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    command = "regnet-deploy train a-bundle-with-a-long-name --data my-images"
    print_message("wrote a bundle with a rather long name of its own - next: " + command)
    assert capsys.readouterr().err.splitlines() == [
        "wrote a bundle with a rather long name",
        "of its own",
        f"next: {command}",
    ]


def test_wide_characters_count_as_two_columns() -> None:
    lines = wrap_words("猫猫猫 犬犬犬 鳥鳥鳥", 13).splitlines()
    assert lines == ["猫猫猫 犬犬犬", "鳥鳥鳥"]


def test_a_long_word_is_not_broken() -> None:
    assert wrap_words("see " + "x" * 50 + " there", 20).splitlines() == ["see", "x" * 50, "there"]
