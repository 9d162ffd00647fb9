from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from regnet_deploy.user_data import data_folder


@pytest.mark.parametrize(
    ("xdg", "folder"),
    [
        ("/srv/data", "/srv/data/regnet-deploy"),
        ("", "/home/me/.local/share/regnet-deploy"),
        (None, "/home/me/.local/share/regnet-deploy"),
        ("relative", "/home/me/.local/share/regnet-deploy"),
    ],
)
def test_it_is_where_the_user_keeps_data(monkeypatch: pytest.MonkeyPatch, xdg: str | None, folder: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_DATA_HOME", xdg)
    assert data_folder() == Path(folder)


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert data_folder() == Path("/dev/null/regnet-deploy")
