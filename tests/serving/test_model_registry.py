"""Names and versions to what answers, and when something that answered ends."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from regnet_deploy.serving.errors import RequestError
from regnet_deploy.serving.limits import Limits
from regnet_deploy.serving.model_registry import ModelRegistry


class Version:
    """What a version is to :class:`Models`."""

    def __init__(self, name: str = "cats", version: str = "1") -> None:
        self.name, self.version = name, version
        self.limits = Limits()
        self.is_hung = False
        self.batcher = SimpleNamespace(hung=lambda limit_s: self.is_hung)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def with_versions(*versions: str, name: str = "cats") -> tuple[ModelRegistry, dict[str, Any]]:
    models = ModelRegistry()
    there = {version: Version(name, version) for version in versions}
    for one in there.values():
        models.put(one)
    return models, there


def refused(models: ModelRegistry, name: str, version: str | None = None) -> tuple[int, str]:
    with pytest.raises(RequestError) as error:
        models.get(name, version)
    return error.value.status, str(error.value)


def test_the_newest_version_answers_who_names_none():
    models, there = with_versions("9", "10", "2")
    assert models.get("cats") is there["10"]
    assert models.get("cats", "9") is there["9"]
    assert models.versions("cats") == ["2", "9", "10"]
    assert models.all() == [there["2"], there["9"], there["10"]]


@pytest.mark.parametrize("version", ["3", "01", "+1", " 1", "1.0", "-1", "x", "", "٣", "1" * 50, "1\n"])
def test_a_version_that_is_not_there_is_said_with_those_that_are(version: str):
    models, _ = with_versions("1", "2")
    status, text = refused(models, "cats", version)
    assert status == 404
    assert text.endswith("available versions of cats: 1, 2")


def test_a_model_that_is_not_there_is_said_with_those_that_are_and_is_cut_short():
    models, _ = with_versions("1")
    assert refused(models, "dogs") == (404, "unknown model 'dogs'; this server has cats")
    assert len(refused(models, "x" * 5000)[1]) < 150
    with pytest.raises(RequestError) as error:
        models.get("dogs", status=400)
    assert error.value.status == 400


def test_what_is_being_loaded_does_not_answer_yet():
    models = ModelRegistry()
    models.loading("cats", "1")
    assert models.index() == [{"name": "cats", "version": "1", "state": "LOADING", "reason": ""}]
    assert refused(models, "cats") == (503, "no version of model cats is ready")
    assert refused(models, "cats", "1") == (503, "version 1 of model cats is not ready")
    assert not models.ready()
    models.put(Version())
    assert models.ready()


def test_one_that_answers_goes_on_while_another_is_loaded_under_its_number_or_refused():
    models, there = with_versions("1")
    models.loading("cats", "1")
    assert models.get("cats") is there["1"]
    models.refuse("cats", "1", "it is damaged")
    assert models.get("cats") is there["1"]
    assert models.index() == [
        {"name": "cats", "version": "1", "state": "READY", "reason": "still serves the version before: it is damaged"}
    ]
    models.confirm("cats", "1")
    assert models.index()[0]["reason"] == ""
    models.refuse("cats", "2", "it is damaged")
    assert models.index()[1] == {"name": "cats", "version": "2", "state": "UNAVAILABLE", "reason": "it is damaged"}
    assert models.get("cats") is there["1"]


def test_what_takes_a_place_ends_the_one_before_when_its_last_request_is_answered():
    ended: list[Any] = []
    models = ModelRegistry(ended.append)
    old, new = Version(), Version()
    models.put(old)
    with models.lease("cats") as first:
        with models.lease("cats", "1") as second:
            models.put(new)
            assert first is second is old
            assert old.closed == 0
            with models.lease("cats") as third:
                assert third is new
        assert old.closed == 0
        old.is_hung = True
        assert models.hung() == ["an executor of model cats version 1 does not come back"]
    assert (old.closed, ended, new.closed) == (1, [old], 0)
    assert models.hung() == []


def test_a_lease_is_given_back_whatever_happens():
    models, there = with_versions("1")
    with contextlib.suppress(ZeroDivisionError), models.lease("cats"):
        raise ZeroDivisionError
    models.remove("cats", "1")
    assert there["1"].closed == 1


def test_without_requests_what_is_replaced_or_removed_ends_at_once():
    models, there = with_versions("1", "2")
    models.put(Version())
    models.remove("cats", "2")
    assert [one.closed for one in there.values()] == [1, 1]


def test_nothing_is_left_of_a_model_without_versions():
    models, _ = with_versions("1", "2")
    models.remove("cats", "1")
    assert models.names() == ["cats"]
    models.remove("cats", "2")
    assert (models.names(), models.index(), models.ready()) == ([], [], False)
    assert refused(models, "cats")[0] == 404
    models.remove("cats", "2")  # which a folder that went twice asks for
    models.remove("dogs", "1")
    models.confirm("dogs", "1")


def test_closing_ends_every_version():
    models, there = with_versions("1", "2")
    models.close()
    assert [one.closed for one in there.values()] == [1, 1]


def test_what_cannot_be_opened_is_listed_without_taking_anything_away():
    models, there = with_versions("1", "2")
    models.set_unusable(
        {("cats", "2"): "gone", ("cats", "3"): "a file", ("dogs", None): "closed", ("a b", None): "name"}
    )
    assert models.index() == [
        {"name": "cats", "version": "1", "state": "READY", "reason": ""},
        {"name": "cats", "version": "2", "state": "READY", "reason": "still serves the version before: gone"},
        {"name": "cats", "version": "3", "state": "UNAVAILABLE", "reason": "a file"},
        {"name": "dogs", "state": "UNAVAILABLE", "reason": "closed"},
        {"name": "a b", "state": "UNAVAILABLE", "reason": "name"},
    ]
    assert models.get("cats", "2") is there["2"]
    assert models.names() == ["cats", "dogs"]  # what no request can name is no model
    assert refused(models, "cats", "3") == (503, "version 3 of model cats is not ready")
    assert refused(models, "dogs") == (503, "no version of model dogs is ready")
    assert refused(models, "a b")[0] == 404
    models.set_unusable({})
    assert [entry["reason"] for entry in models.index()] == ["", ""]
    assert refused(models, "dogs")[0] == 404


@pytest.mark.parametrize(
    ("policy", "none", "one_ill", "both"),
    [
        ("any", "no model is ready", None, None),
        ("all", "no model is ready", "1 of 2 models are not ready", None),
        ("cats", "model cats is not ready", None, None),
        ("dogs", "model dogs is not ready", "model dogs is not ready", None),
    ],
)
def test_the_policy_says_which_models_must_answer(policy: str, none: str | None, one_ill: str | None, both: str | None):
    models = ModelRegistry(ready=policy)
    assert models.unready_reason() == none
    models.put(Version("cats"))  # type: ignore[arg-type]
    models.loading("dogs", "1")
    models.refuse("dogs", "1", "damaged")
    assert models.unready_reason() == one_ill
    models.loading("dogs", "1")  # again, after it has changed
    assert models.unready_reason() == one_ill
    models.put(Version("dogs"))  # type: ignore[arg-type]
    assert (models.unready_reason(), models.ready()) == (both, True)


def test_a_model_that_is_loaded_for_the_first_time_is_not_waited_for():
    models = ModelRegistry(ready="all")
    models.put(Version("cats"))  # type: ignore[arg-type]
    models.loading("dogs", "1")
    assert models.ready()
