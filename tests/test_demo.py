"""The images and the printed commands of the demo; `make demo` itself checks what its steps make."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from PIL import Image

from regnet_deploy.cli.main import COMMANDS, load_command

DEMO = Path(__file__).resolve().parents[1] / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The programs of demo/ can be imported, and are forgotten after that."""
    monkeypatch.syspath_prepend(str(DEMO))
    yield
    for name in ("digits", "letters", "steps", "weights"):
        sys.modules.pop(name, None)


def splits(folder: Path) -> dict[str, list[Path]]:
    return {each.name: sorted(each.glob("*/*.png")) for each in folder.iterdir()}


def test_no_letter_and_no_digit_of_the_test_set_is_trained_on(demo: None, tmp_path: Path) -> None:
    from digits import write_digits
    from letters import FONTS, write_letters

    for name, write, classes in (("digits", write_digits, 10), ("letters", write_letters, 6)):
        counts = write(tmp_path / name)
        found = splits(tmp_path / name)
        assert {split: len(files) for split, files in found.items()} == counts
        assert {len({file.parent.name for file in files}) for files in found.values()} == {classes}
        digests = {
            split: {hashlib.sha256(file.read_bytes()).digest() for file in files} for split, files in found.items()
        }
        assert not digests["test"] & (digests["train"] | digests["val"])
    assert not set(FONTS["test"]) & {*FONTS["train"], *FONTS["val"]}
    drawn = splits(tmp_path / "letters")["test"]
    assert all(Image.open(file).getextrema()[1] > 200 for file in drawn)


def test_a_command_is_printed_in_80_columns_as_a_shell_takes_it(demo: None) -> None:
    from steps import typed

    arguments = ["regnet-deploy", "train", "my bundle", *(f"--option-{n}" for n in range(9)), "--data", "folder's"]
    printed = typed(*arguments)
    assert max(map(len, printed.splitlines())) <= 80
    assert shlex.split(printed.replace("\\\n", ""))[1:] == arguments
    assert any(line.endswith("--data 'folder'\"'\"'s'") for line in printed.splitlines())


def test_what_comes_next_is_80_columns_of_commands_that_exist(demo: None) -> None:
    weights: ModuleType = __import__("weights")
    lines = weights._NEXT.splitlines()
    assert max(map(len, lines)) <= 80
    typed = [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("regnet-deploy ")]
    assert [words[0] for words in typed] == ["import", "evaluate", "train", "export", "serve"]
    for name, *words in typed:
        assert name in COMMANDS
        options = CliRunner().invoke(load_command(name), ["--help"]).output
        assert all(word in options for word in words if word.startswith("--"))
