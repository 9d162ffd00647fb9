"""Texts that say which versions of a model are served."""

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.serving.version_policy import ALL_VERSIONS, VersionPolicies, VersionPolicy, parse_version_policies


@pytest.mark.parametrize(
    ("texts", "policies"),
    [
        ([], VersionPolicies()),
        (["all"], VersionPolicies(ALL_VERSIONS)),
        (["latest"], VersionPolicies(VersionPolicy(latest=1))),
        (["latest:12"], VersionPolicies(VersionPolicy(latest=12))),
        (["5,3,5"], VersionPolicies(VersionPolicy(named=(3, 5)))),
        (
            ["cats=2", "latest:2", "dogs=all"],
            VersionPolicies(VersionPolicy(latest=2), {"cats": VersionPolicy(named=(2,)), "dogs": ALL_VERSIONS}),
        ),
    ],
)
def test_a_policy_is_for_all_models_or_for_one(texts: list[str], policies: VersionPolicies):
    assert parse_version_policies(texts) == policies


def test_a_model_without_a_policy_of_its_own_has_the_one_of_all():
    policies = parse_version_policies(["latest:2", "cats=3"])
    assert policies.of("cats") == VersionPolicy(named=(3,))
    assert policies.of("dogs") == VersionPolicy(latest=2)


@pytest.mark.parametrize(
    "text", ["", "newest", "latest:0", "latest:-1", "latest:x", "latest:", "0", "01", "1,", "1;2", "=1", "cats=", "v1"]
)
def test_a_malformed_policy_is_one_line_with_what_is_allowed(text: str):
    with pytest.raises(UsageError, match=r"all, latest:N or versions such as 3,5") as error:
        parse_version_policies([text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [["all", "latest"], ["cats=1", "cats=2"]])
def test_two_policies_of_one_model_are_refused(texts: list[str]):
    with pytest.raises(UsageError, match="two policies of"):
        parse_version_policies(texts)


@pytest.mark.parametrize(
    ("policy", "config"),
    [
        (ALL_VERSIONS, {"all": {}}),
        (VersionPolicy(latest=3), {"latest": {"num_versions": 3}}),
        (VersionPolicy(named=(1, 4)), {"specific": {"versions": [1, 4]}}),
    ],
)
def test_a_policy_is_described_as_triton_does(policy: VersionPolicy, config: dict[str, object]):
    assert policy.to_json() == config
