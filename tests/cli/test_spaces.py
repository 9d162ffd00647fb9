"""`regnet-deploy spaces` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.space_file import find_space, space_from


def test_it_lists_every_space(cli: Any) -> None:
    done = cli("spaces")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name, space in known_spaces().items():
        (line,) = [each for each in lines if each.split()[:1] == [name]]
        assert f"10^{space.log10_size:.1f}" in line
    assert "regnet-deploy spaces NAME > my.yaml" in done.stderr


def test_json_is_on_stdout_and_nothing_else(cli: Any) -> None:
    done = cli("spaces", "--json")
    listed = json.loads(done.stdout)
    assert done.stderr == ""
    assert [each["name"] for each in listed] == list(known_spaces())
    for each in listed:
        space = known_spaces()[each["name"]]
        assert (each.pop("degrees_of_freedom"), each.pop("log10_size")) == (
            space.degrees_of_freedom,
            round(space.log10_size, 3),
        )
        assert space_from(each) == space


@pytest.mark.parametrize("name", ["AnyNetX_A", "AnyNetX_E", "RegNetX_constrained", "RegNetX_w_0_is_w_a", "AnyNetVR_E"])
def test_a_space_is_written_as_a_file_that_is_the_space(cli: Any, name: str, tmp_path: Path) -> None:
    done = cli("spaces", name)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "my.yaml").write_text(done.stdout)
    assert find_space(str(tmp_path / "my.yaml")) == known_spaces()[name]
    assert cli("spaces", tmp_path / "my.yaml").stdout == done.stdout
    one = json.loads(cli("spaces", name, "--json").stdout)
    assert one["name"] == name
    assert one["degrees_of_freedom"] == known_spaces()[name].degrees_of_freedom


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("RegNetX_d_2", "no design space 'RegNetX_d_2' (did you mean RegNetX_d_20?)"),
        ("none.yaml", "cannot read the space file none.yaml: No such file or directory"),
        ("", "no design space ''"),
    ],
)
def test_what_is_no_space_is_one_line(cli_error: Callable[..., str], word: str, said: str) -> None:
    assert said in cli_error("spaces", word)


def test_a_file_with_a_mistake_is_one_line(cli_error: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: anynet\nwidht: 8\n")
    assert "(did you mean width?)" in cli_error("spaces", tmp_path / "a.yaml")


def test_help_shows_an_example_and_loads_nothing_heavy(cli_process: Any) -> None:
    prelude = (
        "import atexit, sys; atexit.register(lambda: print({'torch', 'numpy', 'rich', 'yaml'} & set(sys.modules)))"
    )
    done = cli_process("spaces", "--help", prelude=prelude)
    assert done.returncode == 0
    assert "regnet-deploy spaces RegNetX > my-space.yaml" in done.stdout
    assert done.stdout.endswith("set()\n")
