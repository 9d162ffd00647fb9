"""The limit of open files."""

from __future__ import annotations

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.load_testing.http_client import raise_open_files_limit

resource = pytest.importorskip("resource")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits of this process, soft and hard, the last of them in force."""
    held = [(64, 200)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: held.append(limits))
    return held


def test_what_is_allowed_stays_as_it_is_and_the_soft_limit_is_raised_as_far_as_needed(limits):
    raise_open_files_limit(32)
    assert limits == [(64, 200)]
    raise_open_files_limit(100)
    assert limits[1:] == [(132, 200)]


def test_more_than_the_hard_limit_is_one_line_with_what_is_possible(limits):
    with pytest.raises(UsageError, match=r"--connections 4000 needs 4032 open files .* may have 200: .* 168 or less"):
        raise_open_files_limit(4000, "--connections")
    assert limits == [(64, 200)]


def test_a_system_that_does_not_raise_it_is_one_line(limits, monkeypatch):
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    with pytest.raises(UsageError, match="may have 64"):
        raise_open_files_limit(100)
