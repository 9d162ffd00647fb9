"""What a server serves, whatever its sockets are."""

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.serving.core_settings import CoreSettings
from regnet_deploy.serving.version_policy import VersionPolicy


def test_policies_of_versions_are_those_of_their_texts():
    assert CoreSettings().policies.of("cats") == VersionPolicy()
    assert CoreSettings(versions=("latest", "cats=3")).policies.of("cats") == VersionPolicy(named=(3,))


def test_a_malformed_policy_is_refused_at_once():
    with pytest.raises(UsageError, match="--versions must be all"):
        CoreSettings(versions=("newest",))
