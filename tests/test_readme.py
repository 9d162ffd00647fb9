"""The README and the documentation name commands, public names and files that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt

import regnet_deploy as rd
from regnet_deploy.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[str]:
    """Yield the code blocks of a page."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            yield token.content


def commands() -> list[tuple[str, str]]:
    """Return every line of a code block that runs regnet-deploy, with its page."""
    lines = (
        (page.name, line.strip())
        for page in PAGES
        for block in blocks(page)
        for line in block.replace("\\\n", "").splitlines()
    )
    return [(page, line) for page, line in lines if line.startswith("regnet-deploy ")]


@pytest.mark.parametrize(("page", "line"), commands())
def test_the_program_understands_every_command_of_the_documentation(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    with click.Context(main) as context:
        name, command, arguments = main.resolve_command(context, words)
        assert command is not None, f"{page}: {line}"
        command.make_context(name, arguments, parent=context)  # parses them; nothing is run


def test_the_readme_shows_every_command() -> None:
    shown = {line.split()[1] for page, line in commands() if page == "README.md"}
    inline = re.findall(r"`regnet-deploy (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    missing = set(main.list_commands(click.Context(main))) - shown - set(inline)
    assert not missing


def test_the_python_of_the_readme_uses_public_names() -> None:
    used = set(re.findall(r"\brd\.(\w+)", "\n".join(blocks(ROOT / "README.md"))))
    assert used
    assert used <= set(rd.__all__)


def test_the_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|csv))?)", text) if "<" not in path]
    assert len(paths) > 50
    missing = [path for path in paths if not any((root / path).exists() for root in (ROOT, ROOT / "regnet_deploy"))]
    assert not missing
    names = {path.name for path in (ROOT / "regnet_deploy").rglob("*.py")}
    assert set(re.findall(r"[`(](\w+\.py)", text)) <= names
