"""The program that measures precisions refuses what would make its result file say something untrue."""

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from regnet_deploy.errors import UsageError

ROOT = Path(__file__).parents[1]
MACHINE = {"cpu": "A CPU", "versions": {"onnxruntime": "1.32.0"}}


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("precision")


def test_by_default_the_networks_of_0_2_to_8_gmacs_are_measured(precision):
    names = [one.name for one in precision.chosen_networks(None)]
    assert len(names) == 18
    assert {"RegNetX-200MF", "RegNetY-8.0GF"} <= set(names)
    assert [one.name for one in precision.chosen_networks(["RegNetY-32GF"])] == ["RegNetY-32GF"]


def test_a_misspelt_network_is_an_error_with_a_suggestion(precision):
    with pytest.raises(UsageError, match=r"--network: no 'RegNetX-20MF' \(did you mean RegNetX-200MF\?\); there are "):
        precision.chosen_networks(["RegNetX-400MF", "RegNetX-20MF"])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cpu": "Another"}, "was measured with A CPU, this is Another: give another file"),
        ({"versions": {"onnxruntime": "1.23.2"}}, "with onnxruntime 1.32.0, this is onnxruntime 1.23.2"),
        ({"versions": {}}, "with onnxruntime 1.32.0, this is onnxruntime None"),
    ],
)
def test_nothing_is_added_to_the_file_of_another_machine(precision, tmp_path, other, said):
    file = tmp_path / "result.json"
    assert precision.kept(file, MACHINE) == {}
    file.write_text(json.dumps({"machine": MACHINE, "errors": {"RegNetX-200MF": {}}}))
    assert precision.kept(file, {**MACHINE, "memory_bytes": 5})["errors"] == {"RegNetX-200MF": {}}
    with pytest.raises(UsageError, match=said):
        precision.kept(file, {**MACHINE, **other})
