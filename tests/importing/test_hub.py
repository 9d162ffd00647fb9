"""Repositories of the hub: downloaded into the cache of huggingface_hub, taken from it, and refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, digest

from regnet_deploy.errors import DataError, UsageError
from regnet_deploy.importing.download import Unreachable
from regnet_deploy.importing.hub import HubFile, fetch_hub_weights, parse_hub_file

DATA = b"weights" * 9000
CONFIG = json.dumps({"model_type": "regnet"}).encode()
WANTED = HubFile("timm/some_net")


@pytest.fixture(autouse=True)
def _repository(hub: HubServer) -> None:
    hub.files["timm/some_net/model.safetensors"] = DATA
    hub.files["timm/some_net/config.json"] = CONFIG


def repository(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "huggingface" / "hub" / "models--timm--some_net"


def test_weights_and_configuration_lie_in_the_cache_as_huggingface_hub_has_them(tmp_path: Path) -> None:
    path, commit = fetch_hub_weights(WANTED)
    folder = repository(tmp_path)
    assert (path, commit) == (folder / "snapshots" / COMMIT / "model.safetensors", COMMIT)
    assert path.readlink() == Path("../../blobs") / digest(DATA)
    assert path.with_name("config.json").read_bytes() == CONFIG
    assert (folder / "refs" / "main").read_text() == COMMIT
    sha1 = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert {each.name for each in (folder / "blobs").iterdir()} == {digest(DATA), sha1}


def test_what_is_in_the_cache_is_not_transferred_again(hub: HubServer, tmp_path: Path) -> None:
    first, _ = fetch_hub_weights(WANTED)
    before = first.resolve().stat().st_mtime_ns
    assert fetch_hub_weights(WANTED)[0] == first
    assert first.resolve().stat().st_mtime_ns == before


def test_without_a_network_the_cache_is_taken_and_said(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded_progress: object
) -> None:
    first, _ = fetch_hub_weights(WANTED)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_hub_weights(WANTED, recorded_progress) == (first, COMMIT)  # type: ignore[arg-type]
    assert recorded_progress.messages == [  # type: ignore[attr-defined]
        "127.0.0.1 cannot be reached: Connection refused; hf:timm/some_net is taken from the cache"
    ]
    with pytest.raises(Unreachable):
        fetch_hub_weights(HubFile("timm/another"))


def test_offline_nothing_is_asked_for(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"hf:timm/some_net is not in the cache .*, and HF_HUB_OFFLINE forbids"):
        fetch_hub_weights(WANTED)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    first, _ = fetch_hub_weights(WANTED)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_hub_weights(WANTED) == (first, COMMIT)
    assert fetch_hub_weights(HubFile("timm/some_net", COMMIT)) == (first, COMMIT)
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HOME": "{}/a"}, "a/hub"),
        ({"HF_HOME": "{}/a", "HF_HUB_CACHE": "{}/b"}, "b"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/c"}, "c"),
    ],
)
def test_the_cache_is_where_the_variables_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], folder: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    path, _ = fetch_hub_weights(WANTED)
    assert path.is_relative_to(tmp_path / folder / "models--timm--some_net")


def test_files_of_torch_are_taken_where_there_is_no_safetensors(hub: HubServer) -> None:
    hub.files["timm/some_net/pytorch_model.bin"] = hub.files.pop("timm/some_net/model.safetensors")
    assert fetch_hub_weights(WANTED)[0].name == "pytorch_model.bin"
    hub.files["timm/some_net/sub/w.pth"] = b"another"
    assert fetch_hub_weights(HubFile("timm/some_net", file="sub/w.pth"))[0].read_bytes() == b"another"


def test_a_mirror_without_commits_is_kept_by_the_name_of_the_revision(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server.COMMIT", "")
    path, commit = fetch_hub_weights(WANTED)
    assert (path.parent.name, commit) == ("main", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert fetch_hub_weights(WANTED) == (path, "")


@pytest.mark.parametrize("given", ["variable", "file"])
def test_a_token_of_the_user_opens_private_repositories(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(DataError, match=r"\(HTTP 401\): the hub has no timm/some_net, or it is private or gated"):
        fetch_hub_weights(WANTED)
    if given == "variable":
        monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    else:
        (tmp_path / "token").write_text("hf_secret\n")
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert fetch_hub_weights(WANTED)[0].read_bytes() == DATA
    assert {authorization for host, _, _, authorization in hub.requests if host == "localhost"} == {None}
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with pytest.raises(DataError, match="HTTP 401"):
        fetch_hub_weights(WANTED)


def test_an_endpoint_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is 'hf-mirror\.com', not an address such as https://hugg"):
        fetch_hub_weights(WANTED)


def test_what_does_not_exist_is_named(hub: HubServer) -> None:
    with pytest.raises(DataError, match=r"/timm/none has no model\.safetensors and no pytorch_model\.bin in main"):
        fetch_hub_weights(HubFile("timm/none"))


def test_a_download_that_was_changed_on_its_way_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.wrong = True
    with pytest.raises(DataError, match=f"and the hub says {digest(DATA)[:8]}; nothing of it was kept"):
        fetch_hub_weights(WANTED)
    assert not list((repository(tmp_path) / "blobs").iterdir())


def test_an_interrupted_download_continues_on_the_other_host(hub: HubServer) -> None:
    hub.cut = [1000]
    hub.statuses["timm/some_net/resolve/main/config.json"] = [404]
    hub.requests.append(("", "", None, None))  # so that only a part is cut
    path, _ = fetch_hub_weights(WANTED)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf:timm/a.b_c", HubFile("timm/a.b_c")),
        ("hf:timm/a@v1", HubFile("timm/a", "v1")),
        ("hf:timm/a/sub/w.pth@refs/pr/1", HubFile("timm/a", "refs/pr/1", "sub/w.pth")),
        ("https://huggingface.co/timm/a", HubFile("timm/a")),
        ("https://huggingface.co/timm/a/blob/main/model.safetensors", HubFile("timm/a", file="model.safetensors")),
        (
            "https://huggingface.co/timm/a/resolve/refs%2Fpr%2F1/w.pth?download=true",
            HubFile("timm/a", "refs/pr/1", "w.pth"),
        ),
        ("https://host/timm/a/resolve/main/w.pth", None),
        ("weights.pth", None),
    ],
)
def test_names_and_addresses_of_the_hub_are_one(text: str, wanted: HubFile | None) -> None:
    assert parse_hub_file(text) == wanted
    if wanted is not None:
        assert parse_hub_file(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:a/b@", "hf:a/../b", "hf:a/b/../../c", "hf:a/b@../x", "hf:a b/c"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no repository of the hub"):
        parse_hub_file(text)
