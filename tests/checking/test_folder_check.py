"""A check reads every file once, and so does what follows it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import regnet_deploy as rd
from regnet_deploy.bundle import create_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.images import image_check
from regnet_deploy.images.image_check import check_images, shared_cache
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.space.network import Network
from regnet_deploy.training import stored_images, throughput


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in no order."""
    names: list[str] = []
    read = FolderSource.read

    def spy(source: FolderSource, index: int) -> bytes:
        names.append(source.names[index])
        return read(source, index)

    monkeypatch.setattr(FolderSource, "read", spy)
    return names


def test_every_file_is_read_once_by_the_check_the_next_check_and_training(
    data: Path, opened: list[str], tmp_path: Path
) -> None:
    first = rd.check_folder(data)
    assert sorted(opened) == sorted(first.listing.source.names)
    (data / "val/cat/0.png").write_bytes(b"no longer an image")
    opened.clear()
    second = rd.check_folder(data)
    assert opened == ["val/cat/0.png"]
    assert len(second.usable) == len(first.usable) - 1
    opened.clear()
    listing = list_images(data)  # as training does
    assert check_images(listing.source, tmp_path / "own.jsonl", also=[shared_cache(listing.root)]) == second.checked
    assert opened == []


def test_nothing_is_written_into_the_folder(data: Path) -> None:
    before = sorted(data.rglob("*"))
    rd.check_folder(data)
    assert sorted(data.rglob("*")) == before


def test_without_a_cache_folder_the_check_says_that_nothing_is_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch, recorded_progress: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check = rd.check_folder(data, progress=recorded_progress)
    assert len(check.usable) == 12
    assert any("are not kept" in line for line in recorded_progress.messages)


def test_figures_and_findings_are_those_of_the_folder(data: Path) -> None:
    shutil.copy(data / "train/cat/0.png", data / "val/cat/copy.png")
    Image.open(data / "train/dog/1.png").resize((48, 40)).save(data / "val/dog/near.png")
    check = rd.check_folder(data)
    assert check.counts("train") == {"cat": 4, "dog": 4}
    assert check.counts("val") == {"cat": 3, "dog": 3}
    kinds = [finding.kind for finding in check.findings]
    assert kinds == ["exact-leak", "few-images", "near-leak"]
    assert check.serious == 1
    facts = dict(check.summary())
    assert facts["to train on"] == "8 usable images in 2 classes"
    assert facts["width"] == "24 to 48 pixels, median 24"
    assert facts["colors"] == "color 14 (100.0%)"
    assert "images/s on one core" in facts["decoding"]


def test_json_has_every_case(data: Path) -> None:
    for i in range(4):
        shutil.copy(data / f"train/cat/{i}.png", data / f"val/cat/copy{i}.png")
    found = json.loads(json.dumps(rd.check_folder(data).to_json()))
    (leak,) = (each for each in found["findings"] if each["kind"] == "exact-leak")
    assert [case["names"] for case in leak["cases"]] == [
        [f"train/cat/{i}.png", f"val/cat/copy{i}.png"] for i in range(4)
    ]
    assert found["splits"]["val"] == {"folder": "val", "classes": {"cat": 6, "dog": 2}}
    assert (found["files"], found["usable"], found["serious"]) == (16, 16, 1)


def test_a_folder_without_a_usable_image_has_no_figures(data: Path) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(b"broken")
    check = rd.check_folder(data)
    assert check.usable == []
    assert check.decode_ms is None
    assert {finding.kind for finding in check.findings} == {"class-empty", "broken"}
    assert json.dumps(check.to_json())


def test_a_line_of_an_earlier_version_is_not_believed(data: Path, opened: list[str]) -> None:
    rd.check_folder(data)
    cache = shared_cache(data)
    assert cache is not None
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    new = {"mode", "gray", "phash", "decode_ms"}
    cache.write_text("".join(json.dumps({k: v for k, v in line.items() if k not in new}) + "\n" for line in lines))
    opened.clear()
    rd.check_folder(data)
    assert len(opened) == 12


@pytest.fixture(params=[3, 1], ids=["RGB", "gray"])
def small_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    network = Network((1,), (8,), (8,), (1.0,), input_channels=request.param)
    architecture = Architecture.of(network, name="small", classes=2, resolution=16)
    preprocessing = default_preprocessing(16, request.param)
    create_bundle(tmp_path / "b", {"architecture": architecture.to_json(), "preprocessing": preprocessing.to_json()})
    return tmp_path / "b"


def test_a_bundle_adds_what_its_training_needs(data: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_SECONDS", 0.05)
    check = rd.check_folder(data, bundle=small_bundle)
    assert check.rates is not None
    assert min(check.rates.loaded, check.rates.used) > 0
    assert (check.rates.network, check.rates.crop, check.rates.in_memory) == ("small", 16, True)
    facts = dict(check.summary())
    assert facts["one loading process"].endswith("decoded and augmented to 16 px; all stay in memory, decoded once")
    assert "images/s of small, batch 2," in facts["a training step"]
    assert check.to_json()["rates"]["crop"] == 16


def test_loading_of_images_that_are_packed_is_not_called_slow(
    data: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "_SECONDS", 0.05)
    monkeypatch.setattr(stored_images, "MEMORY_BYTES", 10)
    rates = rd.check_folder(data, bundle=small_bundle).rates
    assert rates is not None
    assert (rates.in_memory, rates.packed) == (False, True)
    assert dict(rates.facts())["one loading process"].endswith("; all are decoded once, into a file")
    assert dataclasses.replace(rates, loaded=1.0, used=100.0).findings() == []


def test_training_checks_no_image_again_that_was_checked(data: Path, small_bundle: Path) -> None:
    rd.check_folder(data)
    (data / "train/cat/new.png").write_bytes((data / "train/cat/0.png").read_bytes())
    rd.train(small_bundle, data, rd.Recipe(epochs=1, batch_size=4))
    (own,) = small_bundle.with_name("b.training").glob("checked-*")
    assert [json.loads(line)["path"] for line in own.read_text().splitlines()] == ["train/cat/new.png"]


def test_the_check_with_a_bundle_reads_nothing_that_its_training_has_read(
    data: Path, small_bundle: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rd.train(small_bundle, data, rd.Recipe(epochs=1, batch_size=4))
    known = throughput.TrainingThroughput(
        "small", 16, loaded=1.0, used=1.0, batch=2, device="CPU", workers=0, in_memory=True
    )
    monkeypatch.setattr(throughput, "measure_throughput", lambda *_: known)  # it opens some images again
    opened.clear()
    check = rd.check_folder(data, bundle=small_bundle)
    assert opened == []
    assert len(check.usable) == 12


def test_slow_loading_is_a_finding_with_the_number_of_processes() -> None:
    known = {"network": "n", "crop": 224, "batch": 128, "device": "GPU", "workers": 8, "in_memory": False}
    (finding,) = throughput.TrainingThroughput(loaded=100.0, used=2050.0, **known).findings()
    assert finding.text == "training steps use 2,050 images/s, and 8 loading process(es) prepare 800 images/s"
    assert "`train --workers 21`" in finding.advice
    assert throughput.TrainingThroughput(loaded=300.0, used=2050.0, **known).findings() == []


def test_the_hash_is_that_of_the_library(data: Path) -> None:
    import imagehash

    check = rd.check_folder(data)
    image = Image.open(data / "train/cat/0.png")
    assert check.checked["train/cat/0.png"].phash == str(imagehash.phash(image, 16))
    assert image_check.check_image(check.listing.source, 0).phash == check.checked["train/cat/0.png"].phash
