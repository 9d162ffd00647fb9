"""The standard streams where they are closed, lack characters, or lead to a full disk or a reader that is gone.

What was asked for on stdout and cannot be written is an error. A message on stderr that cannot be written is not: the
work goes on, and the exit code tells how it ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def open_closed_streams() -> None:
    """Lead standard streams that are closed (``2>&-``) to /dev/null.

    Otherwise the next file or socket that is opened gets their number, and libraries print into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # inheritable, as standard streams are
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends


def escape_what_cannot_be_shown() -> None:
    """Make stdout write what its encoding lacks as an escape, such as ``\\u732b``, as stderr does.

    Else a class name in another script, or a file name that is not UTF-8, would end the command with all its results.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo_message(text: str) -> None:
    """Print a line to stderr, if it can be written."""
    with contextlib.suppress(OSError):
        # Not click.echo, which writes past the stream that a progress bar puts in place of stderr: onto its line.
        print(text, file=sys.stderr, flush=True)


def discard(stream: TextIO) -> None:
    """Drop what a standard stream could not write, and all that follows."""
    with contextlib.suppress(OSError, ValueError):  # it has no number: tests replace streams
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush_or_discard() -> None:
    """Flush the standard streams; without it the interpreter may end with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)
