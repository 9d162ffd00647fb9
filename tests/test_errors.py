"""Errors for the user say what to do next."""

from __future__ import annotations

import pytest

from regnet_deploy.errors import MissingExtra, did_you_mean, require


def test_a_missing_library_names_the_pip_command():
    with pytest.raises(MissingExtra, match=r"pip install 'regnet-deploy\[train\]'"):
        require("no_such_library_at_all", "train")


def test_a_submodule_of_a_missing_library_too():
    with pytest.raises(MissingExtra, match="this needs no_such_library, which is not installed"):
        require("no_such_library.part", "serve")


def test_a_library_that_is_broken_itself_is_not_explained_away(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import something_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
        require("broken_library", "train")


def test_a_library_that_is_there_is_returned():
    import math

    assert require("math", "train") is math


@pytest.mark.parametrize(("word", "hint"), [("selct", " (did you mean select?)"), ("qqqq", "")])
def test_only_near_names_are_suggested(word, hint):
    assert did_you_mean(word, ["select", "serve"]) == hint
