"""`regnet-deploy evaluate` as it is typed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_weights import X, weights_of
from PIL import Image

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.images.imagenet import subsets_of_test_sets
from regnet_deploy.importing.import_weights import ImportOptions, import_weights

LABELS = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A bundle ``b`` of imported weights with a variant, and ten images of five classes in ``data/test``."""
    import torch

    torch.save(weights_of(X), tmp_path / "w.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    import_weights(tmp_path / "w.pth", tmp_path / "b", ImportOptions(resolution=32, labels=tmp_path / "labels.txt"))
    draw = np.random.default_rng(0)
    for label in LABELS:
        (tmp_path / "data" / "test" / label).mkdir(parents=True)
        for i in range(2):
            pixels = draw.integers(0, 255, (40, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "test" / label / f"{i}.png")
    return tmp_path


def test_weights_and_variants_are_measured_written_and_shown(cli: Any, work: Path) -> None:
    assert cli("export", "b", "--onnx", cwd=work).returncode == 0
    done = cli(
        *("evaluate", "b", "--data", "data", "--variant", "all", "--csv", "a.csv", "--mistakes", "a.png"), cwd=work
    )
    assert done.returncode == 0, done.stderr
    assert "10 images of data/test" in done.stdout
    assert "A constant answer, ant, is right on 20.00% of the images" in done.stdout
    with open(work / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert all(row["model:answer"] == row["onnx-fp32:answer"] for row in rows)
    assert (work / "a.png").read_bytes().startswith(b"\x89PNG")
    record = open_bundle(work / "b").manifest.evaluation
    assert record is not None
    assert list(record.variants) == ["model", "onnx-fp32"]
    assert record.variants["model"].top1 == sum(row["model:right"] == "1" for row in rows) / 10
    assert "Accuracy on a test set" in cli("show", "b", cwd=work).stdout


def test_an_accuracy_that_is_expected_agrees_or_is_exit_code_3(cli: Any, work: Path) -> None:
    top1 = json.loads(cli("evaluate", "b", "--data", "data", "--json", cwd=work).stdout)["variants"]["model"]["top1"]
    expected = 100 * top1["value"] or 2.0
    done = cli("evaluate", "b", "--data", "data", "--expect", f"{expected:.2f}", cwd=work)
    assert done.returncode == 0, done.stderr
    assert f"expected {expected:.2f} %: the measured accuracy does not contradict it; so few images" in done.stderr
    done = cli("evaluate", "b", "--data", "data", "--expect", "100", cwd=work)
    assert done.returncode == 3
    assert "expected 100.00 %: they do not agree" in done.stderr


def test_json_is_one_document(cli: Any, work: Path) -> None:
    data = json.loads(cli("evaluate", "b", "--data", "data/test", "--json", cwd=work).stdout)
    assert list(data["variants"]) == ["model"]
    assert data["variants"]["model"]["images"] == 10
    assert data["split"] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "none"], "no image folder at"),
        (["--data", "data", "--split", "val"], "has no folder of val images"),
        (["--data", "data", "--variant", "onnx-fp32"], "has no variants yet"),
        (["--data", "data", "--csv", "a.txt"], "a table is written as .csv"),
        (["--data", "data", "--expect"], "has no weights with a published accuracy"),
        (["--data", "data", "--expect", "0.9"], "0.9 is not in the range 1<x<=100 (percent)"),
        (["--expect", "b", "--data", "data"], "'b' is no percentage such as 76.2; to compare with the published"),
    ],
)
def test_bad_input_is_one_line(cli_error: Callable[..., str], work: Path, arguments: list[str], said: str) -> None:
    assert said in cli_error("evaluate", *([] if "b" in arguments else ["b"]), *arguments, cwd=work)


def test_a_published_accuracy_is_not_compared_with_imagenet_a_and_nothing_is_classified_for_it(
    cli_error: Callable[..., str], tmp_path: Path
) -> None:
    import torch

    torch.save(weights_of(X, 1000), tmp_path / "w.pth")
    bundle = import_weights(tmp_path / "w.pth", tmp_path / "b", ImportOptions(resolution=32))
    origin = bundle.manifest.imported
    assert origin is not None
    update_bundle(bundle.path, {"imported": origin.replace(top1_percent=70.0, top1_setting="a table")}, {})
    for synset in subsets_of_test_sets()["ImageNet-A"]:
        (tmp_path / "data" / synset).mkdir(parents=True)
        (tmp_path / "data" / synset / "0.png").write_bytes(b"\x89PNG that cannot be read")
    assert "data has the classes of ImageNet-A or -R, and the published accuracy is" in cli_error(
        "evaluate", "b", "--data", "data", "--expect", cwd=tmp_path
    )
    assert "cannot be read" in cli_error("evaluate", "b", "--data", "data", "--expect", "30", cwd=tmp_path)


def test_imported_weights_without_class_names_are_answered_with_how_to_name_them(
    cli_error: Callable[..., str], work: Path
) -> None:
    import_weights(work / "w.pth", work / "unnamed", ImportOptions(resolution=32))
    assert "import` the weights again with --labels FILE" in cli_error(
        "evaluate", "unnamed", "--data", "data", cwd=work
    )


def test_unreadable_images_are_counted_and_too_many_are_refused(
    cli: Any, cli_error: Callable[..., str], work: Path
) -> None:
    (work / "data" / "test" / "ant" / "0.png").write_bytes(b"\x89PNG broken")
    (work / "data" / "test" / "@eaDir").mkdir()
    done = cli("evaluate", "b", "--data", "data", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "1 file cannot be read:\n  test/ant/0.png: " in done.stderr
    assert "1 folder left out:\n  test/@eaDir/: thumbnails of a NAS" in done.stderr
    (work / "data" / "test" / "bee" / "0.png").write_bytes(b"\x89PNG broken")
    assert "2 of 10 images in" in cli_error("evaluate", "b", "--data", "data", cwd=work)
