"""A folder for each target, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regnet_deploy.bundle import find_damage, open_bundle, repair_bundle
from regnet_deploy.errors import UsageError
from regnet_deploy.targets import output_folder
from regnet_deploy.targets import package as module
from regnet_deploy.targets.package import TARGETS, package
from regnet_deploy.targets.settings import DeploymentSettings

pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")


def test_every_target_gets_a_folder_with_instructions(exported_bundle, tmp_path):
    variant, packages = package(
        open_bundle(exported_bundle), list(TARGETS), DeploymentSettings(name="dogs"), tmp_path / "out"
    )
    assert variant in ("onnx-fp32", "onnx-fp32-uint8")
    assert [one.target for one in packages] == list(TARGETS)
    for one in packages:
        assert one.folder == tmp_path / "out" / one.target
        there = {str(path.relative_to(one.folder)) for path in one.folder.rglob("*") if path.is_file()}
        assert there == {*one.files, ".regnet-package.json"}
        instructions = (one.folder / "README.md").read_text()
        assert "{{" not in instructions
        assert "## Run it" in instructions
        assert "Not checked:" in instructions
        assert variant in instructions
        mark = json.loads((one.folder / ".regnet-package.json").read_text())
        assert (mark["target"], mark["variant"]) == (one.target, variant)


def test_nothing_is_written_where_one_target_cannot_be(exported_bundle, tmp_path, monkeypatch):
    def fails(subject, settings):
        raise UsageError("no")

    monkeypatch.setitem(module.TARGETS, "compose", fails)
    with pytest.raises(UsageError, match="no"):
        package(open_bundle(exported_bundle), ["kserve", "compose"], DeploymentSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_the_second_folder_cannot_be(exported_bundle, tmp_path, monkeypatch):
    write, out = output_folder.write_whole, tmp_path / "out"

    def full(path: Path, data: bytes) -> None:
        if path.name == "docker-compose.yaml":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(output_folder, "write_whole", full)
    with pytest.raises(UsageError, match="No space left on device; nothing was changed"):
        package(open_bundle(exported_bundle), ["ray", "compose"], DeploymentSettings(), out)
    assert not list(out.iterdir())


def test_a_folder_in_the_way_is_found_before_anything_is_written(exported_bundle, tmp_path):
    (tmp_path / "compose").mkdir()
    (tmp_path / "compose" / "mine").write_text("1")
    with pytest.raises(UsageError, match="not empty"):
        package(open_bundle(exported_bundle), ["kserve", "compose"], DeploymentSettings(), tmp_path, force=True)
    assert not (tmp_path / "kserve").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_several_targets_is_not_said_to_be_of_something_else(exported_bundle, tmp_path, snapshot, force):
    bundle, out = open_bundle(exported_bundle), tmp_path / "out"
    package(bundle, ["kserve", "ray"], DeploymentSettings(), out)
    before = snapshot(out / "kserve")
    with pytest.raises(UsageError, match="out holds kserve, ray of a package with several targets"):
        package(bundle, ["kserve"], DeploymentSettings(), out, force=force)
    assert snapshot(out / "kserve") == before
    package(bundle, ["compose", "ray"], DeploymentSettings(), out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["compose", "kserve", "ray"]


def test_the_copy_of_the_bundle_of_compose_can_be_repaired(exported_bundle, tmp_path):
    package(open_bundle(exported_bundle), ["compose"], DeploymentSettings(), tmp_path / "out")
    copy = tmp_path / "out" / "bundle"
    assert find_damage(open_bundle(copy)) == []
    whole = (copy / "bundle.json").read_bytes()
    (copy / "bundle.json").write_bytes(whole[:100])
    assert "restored from bundle-" in str(repair_bundle(copy))
    assert (copy / "bundle.json").read_bytes() == whole


@pytest.mark.parametrize("inside", ["", "deploy"])
def test_the_bundle_itself_is_never_written_into(exported_bundle, inside, snapshot):
    before = snapshot(exported_bundle)
    with pytest.raises(UsageError, match="is inside the bundle"):
        package(open_bundle(exported_bundle), ["ray"], DeploymentSettings(), exported_bundle / inside, force=True)
    assert snapshot(exported_bundle) == before


@pytest.mark.parametrize(
    ("target", "settings", "says"),
    [
        ("triton", {"storage": "pvc://a"}, "--storage is for --kserve, which"),
        ("triton", {"triton_image": "a:1"}, "--triton-image is for --kserve, which"),
        ("triton", {"image": "a:1"}, "--image is for --kserve or --compose, and neither"),
        ("compose", {"replicas": 2}, "--replicas is for --kserve or --ray, and neither"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(exported_bundle, tmp_path, target, settings, says):
    with pytest.raises(UsageError, match=says):
        package(open_bundle(exported_bundle), [target], DeploymentSettings(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_target_says_which_there_are(exported_bundle):
    with pytest.raises(UsageError, match="--triton, --kserve, --ray, --compose"):
        package(open_bundle(exported_bundle), [], DeploymentSettings())
