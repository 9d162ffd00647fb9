"""What the user says of a deployment."""

from __future__ import annotations

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.targets.settings import DeploymentSettings


def test_only_what_the_user_said_is_told_to_the_server():
    assert DeploymentSettings().serve_options() == ["--name", "regnet"]
    asked = DeploymentSettings(
        name="dogs", variant="onnx-fp32", threads=2, max_batch=16, deadline_ms=1234567.0, max_delay_ms=0.5
    )
    assert asked.serve_options() == [
        *("--name", "dogs", "--variant", "onnx-fp32", "--threads", "2", "--batch", "16"),
        *("--deadline", "1234567", "--max-delay", "0.5"),
    ]


def test_the_server_has_every_option_that_it_is_told():
    from regnet_deploy.cli.serve import command

    every = DeploymentSettings(
        variant="v",
        threads=1,
        executors=1,
        decoders=1,
        max_batch=1,
        max_queue=1,
        deadline_ms=1.0,
        max_delay_ms=1.0,
    ).serve_options(linger_s=5)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in every if word.startswith("--")} <= known


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "a\n", "$(id)", "n" * 129])
def test_a_name_that_a_folder_or_url_would_read_otherwise_is_refused(name):
    with pytest.raises(UsageError, match="--name"):
        DeploymentSettings(name=name)


@pytest.mark.parametrize("image", ["", "a b", "-flag", "x;rm", "x\n", "$HOME", "`id`"])
def test_what_is_no_container_image_is_refused(image):
    with pytest.raises(UsageError, match=r"^--image"):
        DeploymentSettings(image=image)
    with pytest.raises(UsageError, match=r"^--triton-image"):
        DeploymentSettings(triton_image=image)


@pytest.mark.parametrize("storage", ["models", "pvc://", "pvc://Claim/x", "pvc://a_b", "s3://a b", "s3://`id`"])
def test_storage_that_is_no_uri_is_refused(storage):
    with pytest.raises(UsageError, match="--storage"):
        DeploymentSettings(storage=storage)


@pytest.mark.parametrize("storage", ["pvc://claim", "pvc://claim/a/b", "s3://bucket/path", "oci://registry/image:1"])
def test_storage_of_kserve_is_taken(storage):
    assert DeploymentSettings(storage=storage).storage == storage
