from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from regnet_deploy.user_cache import cache_folder, other_cache


@pytest.mark.parametrize(
    ("xdg", "folder"),
    [
        ("/var/cache/me", "/var/cache/me/regnet-deploy/kind"),
        ("", "/home/me/.cache/regnet-deploy/kind"),
        (None, "/home/me/.cache/regnet-deploy/kind"),
        ("relative", "/home/me/.cache/regnet-deploy/kind"),
    ],
)
def test_it_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, xdg: str | None, folder: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_folder("kind") == Path(folder)


def test_a_user_without_a_home_has_none_and_gets_no_folder_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(OSError, match="Not a directory"):
        cache_folder("kind").mkdir(parents=True)
    assert not list(tmp_path.iterdir())
    assert other_cache("TORCH_HOME", "torch") == Path("/dev/null/torch")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/home/me/.cache/torch"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/torch"),
        ({"TORCH_HOME": "~/x", "XDG_CACHE_HOME": "/cache"}, "/home/me/x"),
        ({"TORCH_HOME": "$HOME/x"}, "/home/me/x"),
    ],
)
def test_the_cache_of_another_program_is_where_its_variable_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert other_cache("TORCH_HOME", "torch") == Path(folder)
