"""`regnet-deploy recipes` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.training.recipe_file import NAMES, load_recipe


def test_it_lists_every_recipe_within_80_columns(cli: Any) -> None:
    done = cli("recipes")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for name in NAMES:
        (line,) = [each for each in lines if each.split()[:1] == [name]]
        assert load_recipe(name).summary in line
        assert len(line.rstrip()) <= 80
    assert "regnet-deploy recipes NAME > my.yaml" in done.stderr


def test_json_is_on_stdout_and_nothing_else(cli: Any) -> None:
    done = cli("recipes", "--json")
    assert done.stderr == ""
    listed = {each["name"]: each for each in json.loads(done.stdout)}
    assert tuple(listed) == NAMES
    assert listed["strong"]["values"]["cutmix"] == 1.0
    assert listed["auto"]["rule"] == "auto"
    assert json.loads(cli("recipes", "strong", "--json").stdout) == listed["strong"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_written_as_a_file_that_is_the_recipe(cli: Any, name: str, tmp_path: Path) -> None:
    done = cli("recipes", name)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "my.yaml").write_text(done.stdout)
    assert load_recipe(tmp_path / "my.yaml").values == load_recipe(name).values
    assert cli("recipes", tmp_path / "my.yaml").stdout == done.stdout


def test_a_file_is_checked(cli_error: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("values:\n  epoch: 3\n  lr: -1\n")
    said = cli_error("recipes", tmp_path / "my.yaml")
    assert "line 2: a recipe has no value 'epoch' (did you mean epochs?)" in said
    assert "line 3: the learning rate must be above 0, got -1" in said


def test_what_is_no_recipe_is_one_line(cli_error: Callable[..., str]) -> None:
    assert "no recipe 'fastt' (did you mean fast?)" in cli_error("recipes", "fastt")
