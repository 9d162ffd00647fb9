"""A damaged manifest says how it is damaged, and is restored as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regnet_deploy.bundle import (
    MANIFEST,
    create_bundle,
    find_damage,
    find_leftovers,
    open_bundle,
    repair_bundle,
    update_bundle,
)
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.bundle.reading import COPY_NAME
from regnet_deploy.errors import BundleError, DamagedManifest
from regnet_deploy.space.network import Network

OLD_BUNDLE = Path(__file__).parents[1] / "fixtures" / "bundles" / "exported"
NETWORK = Network((1,), (8,), (8,), (1.0,))
PARTS = {"architecture": Architecture.of(NETWORK, name="größte", classes=2, resolution=32).to_json()}

#: Name -> what it does to the bytes of a manifest, and what the error says of it.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "it is empty"),
    "cut within a text": (lambda raw: raw[:70], "it is cut off after 70 bytes"),
    "cut behind a bracket": (lambda raw: raw[: raw.index(b"}") + 1], "it is cut off after"),
    "cut within a character": (lambda raw: raw[: raw.index("ö".encode()) + 1], "it is cut off after"),
    "without its last byte": (lambda raw: raw[:-1], "it is cut off after"),
    "zero bytes, as a file system leaves after a crash": (
        lambda raw: bytes(len(raw)),
        "it has zero bytes from byte 0 on",
    ),
    "edited": (lambda raw: raw.replace(b'"classes": 2', b'"classes": 3'), "it was changed"),
    "line ends": (lambda raw: raw.replace(b"\n", b"\r\n"), "it was changed"),
    "not JSON": (lambda raw: b"<html>" + raw, "are not valid JSON"),
    "another document": (lambda raw: b"[1, 2]", "it is JSON, but not a manifest"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_bundle(tmp_path / "b", PARTS)
    return update_bundle(tmp_path / "b", {"labels": ["a", "b"]}, {"weights.safetensors": b"w" * 1000}).path


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if COPY_NAME.match(path.name)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_says_how_and_is_restored_from_its_copy(folder: Path, damage: str):
    change, said = DAMAGES[damage]
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(change(whole))
    with pytest.raises(DamagedManifest, match=said) as error:
        open_bundle(folder)
    assert f"`regnet-deploy verify {folder} --repair`" in str(error.value)
    assert "--force" not in str(error.value)
    done = repair_bundle(folder)
    assert done is not None
    assert done.startswith(error.value.what)
    assert (folder / MANIFEST).read_bytes() == whole
    assert find_damage(open_bundle(folder)) == find_leftovers(open_bundle(folder)) == []
    assert repair_bundle(folder) is None


def test_a_missing_manifest_is_restored(folder: Path):
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    for use in (open_bundle, lambda path: create_bundle(path, PARTS)):
        with pytest.raises(DamagedManifest, match=r"bundle\.json is missing: .*--repair"):
            use(folder)
    assert "restored from bundle-" in str(repair_bundle(folder))
    assert (folder / MANIFEST).read_bytes() == whole


@pytest.mark.parametrize("holds", ["nothing", "a file"])
def test_a_folder_in_the_place_of_the_manifest_is_moved_away(folder: Path, holds: str):
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    if holds == "a file":
        (folder / MANIFEST / "notes").write_text("kept")
    with pytest.raises(DamagedManifest, match=r"bundle\.json is a folder, not a regular file: .*--repair"):
        open_bundle(folder)
    assert "restored from bundle-" in str(repair_bundle(folder))
    assert (folder / MANIFEST).read_bytes() == whole
    if holds == "a file":
        assert (folder / "bundle.json.folder" / "notes").read_text() == "kept"
    else:
        assert find_damage(open_bundle(folder)) == []


def test_a_pipe_in_the_place_of_the_manifest_is_replaced(folder: Path):
    whole = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(DamagedManifest, match=r"bundle\.json is a pipe or a device, not a regular file"):
        open_bundle(folder)
    assert "restored from bundle-" in str(repair_bundle(folder))
    assert (folder / MANIFEST).read_bytes() == whole


def test_without_a_manifest_and_its_copy_the_intact_weights_are_named(folder: Path):
    for path in (folder / MANIFEST, *copies(folder)):
        path.unlink()
    (weights,) = folder.glob("weights-*")
    left = sorted(folder.iterdir())
    for use in (open_bundle, repair_bundle):
        with pytest.raises(BundleError, match=r"has files of a bundle, but no bundle\.json and no copy of it") as error:
            use(folder)
        assert f"`regnet-deploy import {weights} --channels rgb " in str(error.value)
        assert "select" not in str(error.value)
    weights.write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"no copy of it .* make another bundle with .* -o FOLDER`"):
        repair_bundle(folder)
    assert sorted(folder.iterdir()) == left


def test_a_damaged_copy_is_found_and_written_again(folder: Path):
    (copy,) = copies(folder)
    copy.write_bytes(b"{")
    assert find_damage(open_bundle(folder)) == [
        f"{copy} is damaged: `regnet-deploy verify {folder} --repair` writes it again"
    ]
    assert repair_bundle(folder) == f"{copy} was damaged, and is written again"
    assert copy.read_bytes() == (folder / MANIFEST).read_bytes()


def test_of_two_copies_the_one_whose_files_are_intact_is_taken(folder: Path):
    """A command that died before it replaced the manifest has left its own copy and files."""
    (earlier,) = copies(folder)
    kept = earlier.read_bytes()
    update_bundle(folder, {"labels": ["c", "d"]}, {"weights.safetensors": b"new"})
    earlier.write_bytes(kept)
    os.utime(earlier, (2**31, 2**31))
    (folder / MANIFEST).write_bytes(b"")
    repair_bundle(folder)
    assert open_bundle(folder).labels == ("c", "d")
    assert open_bundle(folder).read("weights.safetensors") == b"new"


@pytest.mark.parametrize("kept", ["the earlier one", "the later one"])
def test_of_two_copies_with_intact_files_the_one_of_the_manifest_is_taken(folder: Path, kept: str):
    """A command died before it replaced the manifest, or behind that and before it deleted the earlier files."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    later = update_bundle(folder, {"labels": ["c", "d"]}, {"weights.safetensors": b"new"})
    whole = (folder / MANIFEST).read_bytes()
    for path, data in before.items():
        path.write_bytes(data)
    if kept == "the later one":
        (folder / MANIFEST).write_bytes(whole)
    else:
        whole = (folder / MANIFEST).read_bytes()
    (copy,) = {path for path in copies(folder) if path.read_bytes() != whole}
    os.utime(copy, (2**31, 2**31))
    (folder / MANIFEST).write_bytes(whole[:-30])
    assert "restored from bundle-" in str(repair_bundle(folder))
    assert (folder / MANIFEST).read_bytes() == whole
    assert (open_bundle(folder).digest == later.digest) == (kept == "the later one")


def test_a_file_that_is_damaged_too_is_said_and_the_rest_is_restored(folder: Path):
    weights = open_bundle(folder).stored_path("weights.safetensors")
    weights.unlink()
    (folder / MANIFEST).write_bytes(b"{")
    assert "1 of its files are damaged or missing" in str(repair_bundle(folder))
    assert [line.split(":")[0] for line in find_damage(open_bundle(folder))] == [f"cannot read {weights}"]


def test_without_a_copy_what_can_be_read_is_taken_as_it_is(folder: Path):
    """Early versions wrote no copy."""
    (copy,) = copies(folder)
    copy.unlink()
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    document = json.loads(text)
    document["parts"]["labels"] = ["x", "y"]
    (folder / MANIFEST).write_text(json.dumps(document))
    assert "it is taken as it is" in str(repair_bundle(folder))
    assert open_bundle(folder).labels == ("x", "y")
    assert find_damage(open_bundle(folder)) == []


def test_without_a_copy_the_parts_before_the_cut_are_kept(tmp_path: Path):
    folder = Path(shutil.copytree(OLD_BUNDLE, tmp_path / "b"))
    whole = open_bundle(folder)
    assert copies(folder) == []
    raw = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(raw[: raw.index(b'"variants": {') + 100])
    done = str(repair_bundle(folder))
    assert "is damaged (it is cut off after" in done
    assert "its beginning is kept, with the parts architecture," in done
    now = open_bundle(folder)
    assert now.parts == {name: part for name, part in whole.parts.items() if name != "variants"}
    assert {name: now.read(name) for name in now.files} == {name: whole.read(name) for name in whole.files}
    assert find_damage(now) == []


@pytest.mark.parametrize("share", [n / 40 for n in range(40)])
def test_wherever_a_manifest_without_a_copy_is_cut_it_is_repaired_or_the_reason_is_one_line(
    tmp_path: Path, share: float
):
    folder = Path(shutil.copytree(OLD_BUNDLE, tmp_path / "b"))
    raw = (folder / MANIFEST).read_bytes()
    cut = raw[: int(len(raw) * share)]
    (folder / MANIFEST).write_bytes(cut)
    refused = ""
    try:
        repair_bundle(folder)
    except DamagedManifest as error:
        refused = str(error)
    if not refused:
        assert find_damage(open_bundle(folder)) == []
        return
    assert "\n" not in refused
    assert (folder / MANIFEST).read_bytes() == cut
    assert b'"preprocessing": {' not in cut[:-400]


@pytest.mark.parametrize("rest", [b'{"files"', b"{}"])
def test_without_a_copy_the_weights_are_kept_and_named(folder: Path, rest: bytes):
    (copy,) = copies(folder)
    copy.unlink()
    weights = open_bundle(folder).stored_path("weights.safetensors")
    (folder / MANIFEST).write_bytes(rest)
    with pytest.raises(DamagedManifest, match=f"cannot be repaired, .*{weights.name} stays as it is: restore bundle"):
        repair_bundle(folder)
    assert weights.exists()
    assert (folder / MANIFEST).read_bytes() == rest


def test_only_damage_is_repaired(tmp_path: Path):
    assert repair_bundle(OLD_BUNDLE) is None
    with pytest.raises(BundleError, match="it does not exist"):
        repair_bundle(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_text('{"schema": 99}')
    with pytest.raises(BundleError, match="pip install --upgrade") as error:
        repair_bundle(tmp_path)
    assert not isinstance(error.value, DamagedManifest)
