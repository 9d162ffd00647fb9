from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from regnet_deploy.user_cache import cache_folder


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
