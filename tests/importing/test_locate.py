"""What a user names is a file, an address, a repository, or public weights; nothing else is downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.importing import locate
from regnet_deploy.importing.locate import LocatedWeights, locate_weights
from regnet_deploy.importing.public_weights import find_weights

DATA = b"weights" * 1000
PREFIX = hashlib.sha256(DATA).hexdigest()[:8]


def test_a_file_is_taken_as_it_is_even_if_it_has_the_name_of_public_weights(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("regnety_016.tv2_in1k").write_bytes(DATA)
    assert locate_weights("regnety_016.tv2_in1k") == LocatedWeights(Path("regnety_016.tv2_in1k"))
    assert hub.requests == []


def test_a_repository_is_located_with_its_commit(hub: HubServer) -> None:
    hub.files["timm/net/model.safetensors"] = DATA
    found = locate_weights("hf:timm/net")
    assert found.file.read_bytes() == DATA
    assert (found.location, found.published) == (f"hf:timm/net@{COMMIT}", None)


def test_public_weights_are_downloaded_from_their_location(hub: HubServer) -> None:
    hub.files["timm/regnety_016.tv2_in1k/model.safetensors"] = DATA
    found = locate_weights("RegNetY_016.tv2_in1k")
    assert found.published == "regnety_016.tv2_in1k"
    assert found.file.read_bytes() == DATA


def test_an_address_is_downloaded_once_and_again_when_it_changes(hub: HubServer, tmp_path: Path) -> None:
    hub.files["files/a.pth"] = DATA
    address = f"{hub.url}/files/a.pth?signature=secret"
    found = locate_weights(address + "a" * 5000)
    assert found.file.read_bytes() == DATA
    found = locate_weights(address)
    assert found.file.is_relative_to(tmp_path / "cache" / "regnet-deploy" / "downloads")
    assert (found.file.name, found.file.read_bytes()) == ("a.pth", DATA)
    assert found.location == f"{hub.url}/files/a.pth"
    assert locate_weights(address).file == found.file
    hub.files["files/a.pth"] = b"changed"
    assert locate_weights(address).file.read_bytes() == b"changed"


@pytest.mark.parametrize(
    ("path", "name"), [("a%00b.pth", "a_b.pth"), ("..", "_"), ("c%2Fd.pth", "d.pth"), ("", "files")]
)
def test_every_address_has_a_name_that_a_file_can_have(hub: HubServer, path: str, name: str) -> None:
    hub.files[f"files/{path}"] = DATA
    assert locate_weights(f"{hub.url}/files/{path}").file.name == name


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME"])
def test_names_with_a_digest_are_shared_with_torch_hub_and_checked(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "own"))
    home = tmp_path / "own" if variable == "TORCH_HOME" else tmp_path / "own" / "torch"
    name = f"net-{PREFIX}.pth"
    hub.files[f"files/{name}"] = DATA
    found = locate_weights(f"{hub.url}/files/{name}")
    assert found.file == home / "hub" / "checkpoints" / name
    asked = len(hub.requests)
    assert locate_weights(f"{hub.url}/files/{name}").file == found.file
    assert len(hub.requests) == asked  # a file of this digest needs no server
    found.file.write_bytes(b"damaged")
    assert locate_weights(f"{hub.url}/files/{name}").file.read_bytes() == DATA


def test_another_digest_than_in_the_name_is_refused_and_the_earlier_file_stays(hub: HubServer, tmp_path: Path) -> None:
    hub.files["files/net-01234567.pth"] = DATA
    earlier = tmp_path / "cache" / "torch" / "hub" / "checkpoints" / "net-01234567.pth"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"earlier")
    with pytest.raises(DataError, match=f"its SHA-256 begins with {PREFIX}, not with 01234567; nothing of it was kept"):
        locate_weights(f"{hub.url}/files/net-01234567.pth")
    assert [each.read_bytes() for each in earlier.parent.iterdir()] == [b"earlier"]


def test_the_digest_of_public_weights_is_checked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_weights("regnet_y_400mf.IMAGENET1K_V2")
    hub.files[f"files/{entry.file_name}"] = DATA
    address = f"{hub.url}/files/{entry.file_name}"
    monkeypatch.setattr(locate, "find_weights", lambda _: type("Entry", (), {"location": address, "name": entry.name}))
    with pytest.raises(DataError, match=f"not with {entry.sha256_prefix}"):
        locate_weights(entry.name)


def test_what_is_nothing_of_this_is_one_line() -> None:
    with pytest.raises(
        DataError, match=r"cannot read regnety_016\.tv2_in1: .*\(did you mean regnety_016\.tv2_in1k\?\)"
    ):
        locate_weights("regnety_016.tv2_in1")
    with pytest.raises(DataError, match="File name too long"):
        locate_weights("a" * 300)
    with pytest.raises(DataError, match=r"cannot read folder/none\.pth: No such file or directory\Z"):
        locate_weights("folder/none.pth")
    with pytest.raises(UsageError, match=r"s3://bucket/a\.pth cannot be downloaded: give an http or https address"):
        locate_weights("s3://bucket/a.pth")
