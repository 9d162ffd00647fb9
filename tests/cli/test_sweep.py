"""`regnet-deploy sweep` as it is typed: what it prints, where, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.populations.store import read_store


@pytest.fixture
def given(sweep_images: Path, sweep_space: Path, tmp_path: Path, sweep_small: list[str]) -> list[object]:
    """The arguments of the sweep of these tests, with a store of the test's own."""
    return [
        *("sweep", "--space", sweep_space, "--data", sweep_images),
        *("--store", tmp_path / "tiny.sweep", *sweep_small),
    ]


def test_json_is_on_stdout_and_everything_else_on_stderr(swept: Any) -> None:
    store, done = swept
    result = json.loads(done.stdout)
    with read_store(store) as opened:
        found = opened.outcomes()
    assert result["store"] == str(store)
    assert (result["space"], result["planned"], result["done"]) == ("tiny", 8, 8)
    assert (result["diverged"], result["failed"]) == (0, 0)
    assert result["errors_percent"] == {str(number): outcome.error for number, outcome in found.items()}
    said = done.stderr.splitlines()
    assert [line.split(":")[0] for line in said if line.startswith("trial")] == [
        f"trial {number} ({number + 1}/8)" for number in range(8)
    ]
    assert re.search(r"best [\d.]+ %, median [\d.]+ %", said[-2])
    assert said[-1].startswith(f"{store}: 8 of 8 trials done; top-1 error best ")
    assert said[-1].endswith(f" - next: regnet-deploy analyze {store}")


def test_the_same_command_on_a_finished_store_trains_nothing(cli: Any, given: list[object], store: Path) -> None:
    before = store.read_bytes()
    done = cli(*given)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("trial")] == []
    assert store.read_bytes() == before


def test_the_default_store_is_named_after_the_space(cli: Any, given: list[object], tmp_path: Path) -> None:
    where = given.index("--store")
    done = cli(*given[:where], *given[where + 2 :], "--n", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("tiny.sweep: 1 of 1 trials done")
    assert (tmp_path / "tiny.sweep").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["--lr", "nan"], "'--lr': 'nan' is not a finite number"),
        (["--mmacs", "3:1"], "from low to high"),
        (["--mmacs", "many"], "'many' is not a range such as 12:28"),
        (["--n", "0"], "--n"),
        (["--n", "9999999999"], "100000"),
        (["--n", "100000"], "but 100000 are requested: widen the band or the space"),
        (["--mmacs", "900:1000"], "widen the band or the space"),
        (["--space", "RegNetX_d_2"], "no design space 'RegNetX_d_2' (did you mean RegNetX_d_20?)"),
        (["--space", "none.yaml"], "cannot read the space file none.yaml"),
        (["--data", "none"], "none: it does not exist"),
        (["--val-split", "0.5"], "has validation images of its own"),
        (["--cpus-per-trial", "2"], "--cpus-per-trial requires --ray"),
        (["--gpus-per-trial", "1"], "--gpus-per-trial requires --ray"),
        (["--stem-stride", "3"], "--stem-stride"),
        (["--store", "none/a.sweep"], "there is no folder none for a.sweep: create it first"),
        (["--store", "."], "is a folder"),
    ],
)
def test_bad_values_are_one_line_and_nothing_is_written(
    cli_error: Callable[..., str], given: list[object], options: list[str], said: str, tmp_path: Path
) -> None:
    assert said in cli_error(*given, *options, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_left_as_it_is(
    cli_error: Callable[..., str], given: list[object], tmp_path: Path
) -> None:
    (tmp_path / "tiny.sweep").write_text("my notes")
    assert "cannot be read as the store of a sweep" in cli_error(*given)
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.sweep"]
    assert (tmp_path / "tiny.sweep").read_text() == "my notes"


def test_another_recipe_is_another_store(cli_error: Callable[..., str], given: list[object], store: Path) -> None:
    before = store.read_bytes()
    said = cli_error(*given, "--lr", "0.1")
    assert f"{store} is the store of another sweep: recipe lr is 0.1 and was 0.05." in said
    assert store.read_bytes() == before


@pytest.mark.parametrize("module", ["torch", "safetensors", "PIL", "yaml"])
def test_a_missing_library_names_the_pip_command(
    cli_error: Callable[..., str], given: list[object], module: str
) -> None:
    said = cli_error(*given, prelude=f"import sys; sys.modules[{module!r}] = None")
    assert said.endswith(f"this needs {module}, which is not installed: pip install 'regnet-deploy[sweep]'")


def test_without_ray_the_pip_command_is_named(cli_error: Callable[..., str], given: list[object]) -> None:
    where = given.index("--threads")
    said = cli_error(*given[:where], *given[where + 2 :], "--ray", prelude="import sys; sys.modules['ray'] = None")
    assert said.endswith("pip install 'regnet-deploy[ray]'")


def test_help_shows_an_example_and_loads_nothing_heavy(cli_process: Any) -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'rich', 'ray', 'yaml', 'safetensors'}"
    prelude = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    done = cli_process("sweep", "--help", prelude=prelude)
    assert done.returncode == 0
    assert "regnet-deploy sweep --space AnyNetX_A --data my-images" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_interrupted_it_says_how_to_continue(
    given: list[object], tmp_path: Path, cli_process: Any, start_cli: Any
) -> None:
    with start_cli(*given, "--epochs", "8") as process:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("trial 0 "):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130, said
    store = tmp_path / "tiny.sweep"
    assert said.splitlines()[-1] == (
        f"regnet-deploy: interrupted: completed trials are in {store}: the same command continues"
    )
    assert "Traceback" not in said
    with read_store(store) as opened:
        done = len(opened.outcomes())
    assert 1 <= done < 8
    again = cli_process(*given, "--epochs", "8")
    assert again.returncode == 0, again.stderr
    assert f"{done} of 8 trials have an outcome, {8 - done} remain" in again.stderr


def test_at_a_terminal_a_bar_tells_how_it_goes_and_goes_away(given: list[object], start_cli: Any) -> None:
    ours, theirs = pty.openpty()
    with start_cli(*given, "--n", "3", "--epochs", "8", stderr=theirs, TERM="xterm") as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
            said += piece
        assert process.stdout.read() == ""
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert "trials" in text
    assert "3/3" in text
    assert re.search(r"best [\d.]+ %, median [\d.]+ %; \d+ images/s", text)
    store = given[given.index("--store") + 1]
    *_, result, following = [line.split("\r")[-1] for line in text.rstrip().splitlines()]
    assert result.startswith(f"{store}: 3 of 3 trials done")
    assert following == f"next: regnet-deploy analyze {store}"


@pytest.mark.slow
def test_on_ray_it_has_the_same_results(cli_process: Any, given: list[object], swept: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray (extra [ray])")
    where = given.index("--threads")
    done = cli_process(*given[:where], *given[where + 2 :], "--ray", "--json")
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads(each.stdout)["errors_percent"] for each in (done, swept[1]))
    assert ours == theirs
    expected = ("trial ", str(tmp_path), "30 images to train on", "classes, with images", "a network that always")
    assert all(line.startswith(expected) for line in done.stderr.splitlines())
