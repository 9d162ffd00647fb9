"""How the two parts of the demo run commands and the server, and print what they do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "demo-run"
BUNDLE = "digits-bundle"
#: Columns of what the demo prints itself.
WIDTH = 80


def show(line: str) -> None:
    """Print a line, in bold on a terminal."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{line}{plain}", flush=True)


def say(text: str) -> None:
    """Print what came of a command."""
    print(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False), flush=True)


def typed(*arguments: str) -> str:
    """Return a command as a user types it, in lines of 80 columns that a shell takes."""
    units: list[str] = []  # an option stays with its value
    for word in map(shlex.quote, arguments):
        if units and units[-1].startswith("--") and " " not in units[-1] and not word.startswith("-"):
            units[-1] += f" {word}"
        else:
            units.append(word)
    lines = ["$"]
    for unit in units:
        if len(lines[-1]) + len(unit) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {unit}"
    return "\n".join(lines)


def process(*arguments: str) -> list[str]:
    """Return the arguments of the process of a command of regnet-deploy."""
    return [sys.executable, "-m", "regnet_deploy", *arguments]


def run(*arguments: str, quiet: bool = False) -> str:
    """Run a command in the folder of the demo; end the demo if it fails.

    Args:
        arguments: of `regnet-deploy`.
        quiet: print nothing of it, and return what it wrote to stdout.
    """
    show(typed("regnet-deploy", *arguments))
    done = subprocess.run(process(*arguments), cwd=FOLDER, capture_output=quiet, text=True)
    if done.returncode:
        sys.exit(
            f"{done.stderr or ''}demo: `regnet-deploy {shlex.join(arguments)}` failed with exit code {done.returncode}"
        )
    return done.stdout or ""


@contextmanager
def served(bundle: str, quiet: bool = False) -> Iterator[str]:
    """Start the server of a bundle, give its address, and stop it."""
    arguments = ("serve", bundle, "--port", "0", "--json")
    show(typed("regnet-deploy", *arguments))
    with open(FOLDER / "server.log", "wb") as log:
        server = subprocess.Popen(
            process(*arguments), cwd=FOLDER, stdout=subprocess.PIPE, stderr=log if quiet else None, text=True
        )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        if not first:
            sys.exit(f"demo: the server failed with exit code {server.wait()}")
        yield json.loads(first)["url"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def classify(url: str, image: Path) -> Any:
    """Send an image to the server, and return its answer: three classes."""
    request = urllib.request.Request(f"{url}/classify?k=3", data=image.read_bytes(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)
