"""Commands that messages name are complete: a command about a bundle has the bundle's path."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import Argument, Context

import regnet_deploy
from regnet_deploy.bundle import create_bundle
from regnet_deploy.bundle.reading import MADE_BY, bundle_as_argument
from regnet_deploy.cli.main import COMMANDS, main
from regnet_deploy.errors import MissingPart

PACKAGE = Path(regnet_deploy.__file__).parent

#: Texts that name a command and are no advice to run it on a bundle that is known.
NO_HINTS = (
    "Made by `regnet-deploy package",
    "was not made by `regnet-deploy package`",
    "(see `regnet-deploy tune`)",
    "a run directory of regnet-deploy train",
)


def takes_a_bundle(name: str) -> bool:
    """Tell whether a command has a bundle as its argument."""
    command = main.get_command(Context(main), name)
    assert command is not None
    arguments = [one for one in command.params if isinstance(one, Argument)]
    return any("bundle" in str(one.name) or "BUNDLE" in str(one.metavar) for one in arguments)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string that is no docstring; an inserted value is ``{source}``."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            skipped.add(node.body[0].value)  # type: ignore[attr-defined]
        elif isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.Constant) else f"{{{ast.unparse(one)}}}" for one in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def hints() -> Iterator[tuple[str, str, str]]:
    """Yield place, command, and the rest of the command line or of the message."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            if any(one in text for one in NO_HINTS):
                continue
            for found in re.finditer(r"(`?)regnet-deploy ([a-z]+)\b([^`]*)", text):
                if found[2] in COMMANDS:
                    yield f"{path.relative_to(PACKAGE)}:{line}", found[2], found[3]


def test_every_command_in_a_message_names_its_bundle() -> None:
    seen, incomplete = set(), []
    for place, command, rest in hints():
        if not takes_a_bundle(command) and command != "select":
            continue
        seen.add(command)
        # A value that is inserted, or a placeholder where no bundle is known.
        named = re.search(r"\{[^}]*(argument|path|folder|bundle)[^}]*\}|\bBUNDLE\b|-o FOLDER", rest)
        if not named:
            incomplete.append(f"{place}: regnet-deploy {command}{rest}")
    assert not incomplete
    assert {"select", "train", "export", "serve"} <= seen


@pytest.mark.parametrize("folder", ["my-bundle", "with a blank", "it's"])
@pytest.mark.parametrize("part", [name for name in MADE_BY if name != "weights"])
def test_a_part_that_is_missing_names_a_command_that_a_shell_understands(
    tmp_path: Path, folder: str, part: str
) -> None:
    bundle = create_bundle(tmp_path / folder, {})
    with pytest.raises(MissingPart) as raised:
        getattr(bundle, part)
    (line,) = re.findall(r"`(.*)`", str(raised.value))
    words = shlex.split(line)
    assert words[0] == "regnet-deploy"
    assert words[1] in COMMANDS
    assert str(tmp_path / folder) in words


def test_the_default_bundle_need_not_be_named() -> None:
    assert bundle_as_argument("regnet-bundle") == ""
    assert bundle_as_argument(Path("other")) == " other"
    assert bundle_as_argument("my bundle") == " 'my bundle'"


def test_the_next_step_of_a_command_is_about_its_bundle(cli: Any, tmp_path: Path) -> None:
    done = cli("select", "--gflops", "0.01", "--resolution", "32", "-o", tmp_path / "my bundle")
    assert f"next: regnet-deploy train '{tmp_path / 'my bundle'}' --data DIR" in done.stderr
