"""What lies in a folder of models."""

import os
from pathlib import Path

import pytest

from regnet_deploy.bundle import MANIFEST
from regnet_deploy.errors import UsageError
from regnet_deploy.serving.model_repository import (
    FoundBundle,
    are_versions,
    bundle_fingerprint,
    is_repository,
    list_repository,
)


def bundle(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    return path


def test_models_are_bundles_or_have_one_for_each_version(tmp_path: Path):
    dogs = bundle(tmp_path / "dogs")
    paths = {number: bundle(tmp_path / "cats" / number) for number in ("10", "9", "2")}
    assert list_repository(tmp_path).bundles == (
        *(FoundBundle("cats", number, paths[number]) for number in ("2", "9", "10")),
        FoundBundle("dogs", None, dogs),
    )
    assert list_repository(tmp_path).unusable == ()


def unusable(path: Path, known: tuple[str, ...] = ()) -> list[tuple[str, str | None, str]]:
    """What cannot be opened: model, version and reason; no bundle may be beside it."""
    listing = list_repository(path, known)
    assert listing.bundles == ()
    for one in listing.unusable:
        assert str(path) in str(one.error)
        assert str(path) not in one.reason
    return [(one.model, one.version, one.reason) for one in listing.unusable]


def test_what_is_no_version_is_passed_over(tmp_path: Path):
    bundle(tmp_path / "cats" / "7")
    for name in ("0", "01", "-1", "1.0", "v1", "new", ".2", "9" * 19, "٣"):
        bundle(tmp_path / "cats" / name)
    bundle(tmp_path / ".hidden" / "1")
    (tmp_path / "README.md").write_text("a file")
    (tmp_path / "1").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "digits" / "8").mkdir(parents=True)  # images of a data set
    (tmp_path / "digits" / "8" / "img-202401011234.jpg").touch()
    listing = list_repository(tmp_path)
    assert [(one.model, one.version) for one in listing.bundles] == [("cats", "7")]
    assert listing.unusable == ()


def test_a_bundle_that_has_the_name_of_no_version_is_told(tmp_path: Path):
    bundle(tmp_path / "cats" / "v1")
    assert unusable(tmp_path) == [("cats", None, "has a bundle in 'v1', which is not a version: whole numbers from 1")]


def test_versions_of_one_model_are_told_from_models(tmp_path: Path):
    bundle(tmp_path / "cats" / "1")
    bundle(tmp_path / "cats" / "2")
    assert are_versions(list_repository(tmp_path / "cats"))
    assert not are_versions(list_repository(tmp_path))
    bundle(tmp_path / "3" / "1")
    assert not are_versions(list_repository(tmp_path))
    bundle(tmp_path / "cats" / "dogs")
    assert not are_versions(list_repository(tmp_path / "cats"))
    assert not are_versions(list_repository(tmp_path / "cats" / "dogs"))


def test_a_bundle_without_its_manifest_is_told(tmp_path: Path):
    for folder in ("cats/7", "dogs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "onnx-fp32-0123456789ab.onnx").touch()
    assert unusable(tmp_path) == [("cats", "7", "has no bundle.json"), ("dogs", None, "has no bundle.json")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b", "a b"),
        ("ä", "ä"),
        ("x" * 129, "x" * 129),
        ("a+b", "a+b"),
        ("a%2fb", "a%2fb"),
        ("a\nb", "a\\nb"),
        ("\udcff", "\\xff"),  # a byte that is not UTF-8
        ('"', '"'),
    ],
)
def test_a_model_whose_name_cannot_stand_in_a_url_is_told(tmp_path: Path, name: str, shown: str):
    bundle(tmp_path / name / "1")
    ((model, version, reason),) = unusable(tmp_path)
    assert (model, version) == (shown, None)
    assert reason.startswith("is not a valid name of a model")
    assert model.isprintable()
    model.encode()


def test_what_cannot_be_read_is_told_beside_what_can(tmp_path: Path):
    bundle(tmp_path / "cats" / "1")
    (tmp_path / "cats" / "2").symlink_to("2")
    (tmp_path / "cats" / "3").symlink_to("nowhere")
    (tmp_path / "cats" / "4").write_text("a file")
    (tmp_path / "dogs").symlink_to("dogs")
    (tmp_path / "birds").symlink_to("nowhere")
    (tmp_path / "fish").write_text("a file")
    (tmp_path / "lost+found").symlink_to("lost+found")  # of a volume; nobody asks for it
    listing = list_repository(tmp_path, {"fish"})
    assert [(one.model, one.version) for one in listing.bundles] == [("cats", "1")]
    assert [(one.model, one.version, one.reason) for one in listing.unusable] == [
        ("birds", None, "is a link to a path that does not exist"),
        ("cats", "2", "cannot be read: Too many levels of symbolic links"),
        ("cats", "3", "is a link to a path that does not exist"),
        ("cats", "4", "is a file, not a folder"),
        ("dogs", None, "cannot be read: Too many levels of symbolic links"),
        ("fish", None, "is a file, not a folder"),
    ]


def test_a_repository_that_cannot_be_read_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere cannot be read: No such file"):
        list_repository(tmp_path / "nowhere")


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
    (folder / "weights").chmod(0o600)
    assert changed()
    (folder / "link").symlink_to("nowhere")
    assert changed()
    (folder / "link").unlink()
    (folder / "weights").unlink()
    assert bundle_fingerprint(folder) == seen[0]
    assert bundle_fingerprint(tmp_path / "nowhere") == ()


def test_a_bundle_that_cannot_be_read_is_not_one_that_is_gone(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        bundle_fingerprint(tmp_path / "loop")
