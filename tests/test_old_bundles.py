"""Bundles and stores of earlier releases open, and are not changed by being read; see fixtures/README.md."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from regnet_deploy.bundle import find_damage, open_bundle, update_bundle
from regnet_deploy.cli.main import main
from regnet_deploy.populations.reader import read_trials

FIXTURES = Path(__file__).parent / "fixtures"
BUNDLES = sorted(FIXTURES.glob("bundles/*"))
#: ``quantized`` was exported with looser gates than those that ``verify`` has.
EXPORTED = [path for path in BUNDLES if path.name in ("exported", "engines", "tuned")]


def run(*arguments: str | Path):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_it_is_whole(path: Path):
    assert find_damage(open_bundle(path)) == []


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_its_card_is_shown(path: Path):
    result = run("show", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert (
        json.loads(result.stdout)["architecture"]
        == json.loads((path / "bundle.json").read_text())["parts"]["architecture"]
    )


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_writing_a_part_changes_no_other(path: Path, tmp_path: Path):
    copy = Path(shutil.copytree(path, tmp_path / "bundle"))
    before = json.loads((copy / "bundle.json").read_text())
    update_bundle(copy, {}, {"notes.txt": b"new"})
    after = json.loads((copy / "bundle.json").read_text())
    assert after["parts"] == before["parts"]
    assert after["files"].keys() - before["files"].keys() == {"notes.txt"}


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_it_is_verified(path: Path):
    result = run("verify", path)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(("name", "count"), [("anynet", 4), ("regnetx", 12)])
def test_a_store_of_a_sweep_is_read(name: str, count: int, tmp_path: Path):
    copy = Path(shutil.copy(FIXTURES / "sweeps" / f"{name}.sweep", tmp_path))  # SQLite may write beside it
    assert len(read_trials(copy).networks) == count
