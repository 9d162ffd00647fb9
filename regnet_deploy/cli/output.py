"""Output of commands: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.streams import echo_message
from regnet_deploy.errors import ProofError, RegnetDeployError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress


#: Seconds without a line after which long work says how far it is, where stderr is no terminal.
QUIET_S = 30.0


def print_json(data: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def print_message(text: str) -> None:
    """Print one line to stderr, if it can be written.

    A terminal gets it wrapped between words, and the command after ``next:`` on a line of its own, to be copied. While
    a progress bar is shown, the line is above it.
    """
    if not sys.stderr.isatty():
        echo_message(text)
        return
    prose, separator, command = text.partition(" - next: ")
    echo_message(wrap_words(prose))
    if separator:
        echo_message(f"next: {command}")


def print_text(text: str, **style: Any) -> None:
    """Print a line of prose to stdout; a terminal gets it wrapped between words. ``style`` is of ``Console.print``."""
    console = stdout_console()
    shown = wrap_words(text, console.width) if console.is_terminal else text
    console.print(shown, soft_wrap=True, markup=False, **style)


def wrap_words(text: str, columns: int | None = None) -> str:
    """Return text with line breaks between words, so that no line but that of a longer word exceeds the columns.

    Args:
        text: one or more lines.
        columns: None means those of the terminal.
    """
    from rich.cells import cell_len  # characters of Chinese and Japanese take two columns

    width = columns or shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        words = line.split()
        lines.append(indent + (words[0] if words else ""))
        for word in words[1:]:
            if cell_len(lines[-1]) + 1 + cell_len(word) > width:
                lines.append(indent + word)
            else:
                lines[-1] += f" {word}"
    return "\n".join(lines)


def stdout_console(width: int = 200) -> Console:
    """Return a console on stdout; ``width`` is that of one that is not a terminal, columns."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=width)
    return console


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table to stdout; all but the first ``left`` columns are numbers, aligned right.

    A table that is wider than a terminal continues below, with the first ``left`` columns repeated. Where these leave
    little room, each row is printed as a paragraph.
    """
    from rich.cells import cell_len

    console = stdout_console()
    table = [tuple(row) for row in rows]
    gap = 3  # between two columns; the frame takes one more character on each side
    widths = [max(cell_len(cell) for cell in (column, *(row[i] for row in table))) for i, column in enumerate(columns)]
    repeated = sum(width + gap for width in widths[:left])
    room = console.width - repeated
    needed = repeated + sum(width + gap for width in widths[left:]) - 1
    if needed <= console.width or not console.is_terminal:
        parts = [list(range(len(columns)))]
    elif room < console.width / 2 or max(widths[left:], default=0) + gap > room:
        _print_paragraphs(title, columns, table, left)
        return
    else:
        parts = [[*range(left), *own] for own in _parts([width + gap for width in widths[left:]], room, left)]
    for part, chosen in enumerate(parts):
        _print_columns("" if part else title, columns, table, chosen, left)


def _parts(widths: Sequence[int], room: int, first: int) -> list[list[int]]:
    """Split columns of these widths into runs that fit into the room; the first one has the number ``first``."""
    parts: list[list[int]] = [[]]
    used = 0
    for i, width in enumerate(widths, start=first):
        if parts[-1] and used + width > room + 1:
            parts.append([])
            used = 0
        parts[-1].append(i)
        used += width
    return parts


def _print_columns(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], chosen: Sequence[int], left: int
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, because rich would interpret brackets and colons in file names as markup.
    heading = Text(title, style="bold") if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i in chosen:
        table.add_column(columns[i], justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in chosen))
    # Off a terminal no line is broken, however long.
    stdout_console(10_000).print(table, crop=False)


def _print_paragraphs(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Print each row as its first ``left`` cells, and below them its other cells with the names of their columns."""
    if title:
        print_text(title, style="bold")
    for row in rows:
        print_text("\n" + "  ".join(row[:left]))
        print_text("  " + "; ".join(f"{name} {cell}" for name, cell in zip(columns[left:], row[left:], strict=True)))
    print_text("")


class TerminalProgress:
    """A :class:`regnet_deploy.progress.Progress` at a terminal: one progress bar at a time, messages above it."""

    def __init__(self, display: RichProgress) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._task = display.add_task("", visible=False, note="")

    def step(self, description: str, total: float | None = None) -> None:
        """Replace the bar with an empty one for the next step."""
        with self._lock:
            self._display.remove_task(self._task)
            self._task = self._display.add_task(description, total=total, note="")

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Move the bar, and show the note beside it."""
        with self._lock:
            self._display.update(self._task, completed=completed, total=total, note=note)

    def message(self, line: str) -> None:
        """Print one line to stderr, above the bar."""
        console = self._display.console
        console.print(wrap_words(line, console.width), markup=False, highlight=False, soft_wrap=True)


class LineProgress:
    """A :class:`regnet_deploy.progress.Progress` where stderr is no terminal: messages are plain lines.

    Where nothing has been printed for ``quiet_s``, a line tells how far the step is: a log shows that the work goes on.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._lock = threading.Lock()
        self._printed = self._begun = time.monotonic()
        self._description, self._note = "working", ""
        self._completed: float | None = None
        self._total: float | None = None

    def step(self, description: str, total: float | None = None) -> None:
        """Begin the next step."""
        with self._lock:
            self._description, self._note, self._completed, self._total = description, "", None, total
            self._begun = time.monotonic()

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Note how far the step is."""
        with self._lock:
            self._completed, self._note = completed, note
            self._total = self._total if total is None else total

    def message(self, line: str) -> None:
        """Print one line to stderr."""
        with self._lock:
            self._printed = time.monotonic()
            print_message(line)

    def print_when_quiet(self, ended: threading.Event) -> None:
        """Print a line whenever nothing has been printed for long, until the event is set; run by a thread."""
        while not ended.wait(max(0.0, self._printed + self._quiet_s - time.monotonic())):
            with self._lock:
                now = time.monotonic()
                if now - self._printed >= self._quiet_s:
                    self._printed = now
                    print_message(self._line(now - self._begun))

    def _line(self, seconds: float) -> str:
        done = "" if self._completed is None else f" {self._completed:,.0f}"
        if done and self._total is not None:
            done += f" of {self._total:,.0f}"
        note = f", {self._note}" if self._note else ""
        return f"{self._description}:{done}{note}{',' if done or note else ''} after {seconds:.0f} s"


@contextlib.contextmanager
def terminal_progress() -> Iterator[TerminalProgress | LineProgress]:
    """Show progress on stderr while the context is open: a bar at a terminal, else a line now and then."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        lines, ended = LineProgress(QUIET_S), threading.Event()
        thread = threading.Thread(target=lines.print_when_quiet, args=(ended,), daemon=True)
        thread.start()
        try:
            yield lines
        finally:
            ended.set()
            thread.join()
        return
    from rich.console import Console

    with bar_display(Console(stderr=True)) as display:
        yield TerminalProgress(display)


def bar_display(console: Console) -> RichProgress:
    """Return a progress bar with its numbers in full; the note beside it is cut where the terminal is narrow."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class NoteColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        NoteColumn(),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
    )


def limit_thread_spinning() -> None:
    """Make PyTorch's threads sleep soon while they wait for each other. Must be called before torch is imported.

    By default they spin for milliseconds, which makes every step several times slower if another process is busy.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def combined_error(refused: Mapping[str, RegnetDeployError], end: str = "") -> RegnetDeployError:
    """Return one error for all that was refused: of a proof, where one of them is.

    Args:
        refused: variant, or ``engines`` for all of them -> why. A reason that does not name its variant gets the name,
            or the names where several have the same.
        end: of the line.
    """
    names: dict[str, list[str]] = {}
    for name, error in refused.items():
        names.setdefault(str(error), []).extend([] if name == "engines" or name in str(error) else [name])
    lines = [f"{', '.join(owners)}: {reason}" if owners else reason for reason, owners in names.items()]
    errors = list(refused.values())
    kind = next((type(one) for one in errors if isinstance(one, ProofError)), type(errors[0]))
    return kind("; ".join(lines) + end)
