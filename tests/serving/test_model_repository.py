"""What lies in a folder of models."""

import os
from pathlib import Path

import pytest

from regnet_deploy.bundle import MANIFEST
from regnet_deploy.errors import UsageError
from regnet_deploy.serving.model_repository import FoundBundle, bundle_fingerprint, find_bundles, is_repository


def bundle(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    return path


def test_models_are_bundles_or_have_one_for_each_version(tmp_path: Path):
    dogs = bundle(tmp_path / "dogs")
    paths = {number: bundle(tmp_path / "cats" / number) for number in ("10", "9", "2")}
    assert find_bundles(tmp_path) == [
        *(FoundBundle("cats", number, paths[number]) for number in ("2", "9", "10")),
        FoundBundle("dogs", None, dogs),
    ]


def test_what_is_no_version_is_passed_over(tmp_path: Path):
    for name in ("0", "01", "-1", "1.0", "v1", "new", ".2", "9" * 19, "٣"):
        bundle(tmp_path / "cats" / name)
    (tmp_path / "cats" / "7").mkdir()  # its manifest comes last
    (tmp_path / "cats" / "8").write_text("a file")
    bundle(tmp_path / ".hidden" / "1")
    (tmp_path / "README.md").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost+found").mkdir()
    assert find_bundles(tmp_path) == []


@pytest.mark.parametrize("name", ["a b", "ä", "x" * 129, "a+b", "a%2fb", "a\nb"])
def test_a_model_whose_name_cannot_stand_in_a_url_is_refused(tmp_path: Path, name: str):
    bundle(tmp_path / name / "1")
    with pytest.raises(UsageError, match="is not a valid name of a model"):
        find_bundles(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="nowhere cannot be read: No such file"):
        find_bundles(tmp_path / "nowhere")
    bundle(tmp_path / "cats" / "1")
    listed = Path.iterdir

    def closed(path: Path):
        if path.name in ("cats", "lost+found"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(UsageError, match="cats cannot be read: Permission denied"):
        find_bundles(tmp_path)
    (tmp_path / "cats").rename(tmp_path / "lost+found")  # of a volume; nobody asks for it
    assert find_bundles(tmp_path) == []


def test_a_bundle_is_not_a_repository(tmp_path: Path):
    bundle(tmp_path / "cats")
    assert is_repository(tmp_path)
    assert not is_repository(tmp_path / "cats")
    assert not is_repository(tmp_path / "nowhere")
    assert not is_repository(tmp_path / "cats" / MANIFEST)


def test_a_fingerprint_changes_with_every_file(tmp_path: Path):
    folder = bundle(tmp_path / "cats")
    seen = [bundle_fingerprint(folder)]

    def changed() -> bool:
        seen.append(bundle_fingerprint(folder))
        return seen[-1] not in seen[:-1]

    assert not changed()
    (folder / "weights").write_bytes(b"12")
    assert changed()
    (folder / "weights").write_bytes(b"123")
    assert changed()
    os.utime(folder / "weights", ns=(1, 1))
    assert changed()
    (folder / "new").write_bytes(b"456")
    os.utime(folder / "new", ns=(1, 1))
    os.replace(folder / "new", folder / "weights")
    assert changed()
    (folder / "weights").unlink()
    assert bundle_fingerprint(folder) == seen[0]
    assert bundle_fingerprint(tmp_path / "nowhere") == ()
