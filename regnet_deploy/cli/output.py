"""How commands speak: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import DEFAULT_PATH
from regnet_deploy.errors import ProofError, RegnetDeployError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


def print_json(data: Any) -> None:
    """Print one JSON document to stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def bundle_argument_text(path: object) -> str:
    """Return how a bundle is named on a command line: nothing for the default one, else a space and its path."""
    return "" if str(path) == DEFAULT_PATH else f" {path}"


def print_message(text: str) -> None:
    """Print a line for the person, to stderr."""
    click.echo(text, err=True)


def stdout_console() -> Console:
    """Return a console for what a command was asked for; as wide as it takes where stdout is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    return console


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table to stdout; all but the first ``left`` columns are numbers and stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # As Text, for what stands in brackets or between colons may be the name of a file, not rich's markup.
    heading = Text(title, style="bold") if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    stdout_console().print(table)


def progress() -> Progress:
    """Return a progress display on stderr: silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


class TerminalProgress:
    """Tells the person at the terminal how a long piece of work goes."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task: TaskID | None = None
        self._total: int | None = None

    def say(self, line: str) -> None:
        """Print a line to stderr, above the progress display where there is one."""
        if self._display.disable:
            print_message(line)
        else:
            self._display.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: float, total: int, note: str = "") -> None:
        """Show what is done; work of another size is another bar in place of the last."""
        if self._task is None or self._total != total:
            if self._task is not None:
                self._display.remove_task(self._task)
            self._task, self._total = self._display.add_task(what, total=total, note=note), total
        self._display.update(self._task, description=what, completed=done, note=note)


def limit_thread_spinning() -> None:
    """Have PyTorch's threads sleep soon where they wait for each other; before it is imported, or it has no effect.

    By default they spin for milliseconds, which beside one other busy process makes every step many times as long.
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
    lines = [f"{', '.join(whose)}: {reason}" if whose else reason for reason, whose in names.items()]
    errors = list(refused.values())
    kind = next((type(one) for one in errors if isinstance(one, ProofError)), type(errors[0]))
    return kind("; ".join(lines) + end)
