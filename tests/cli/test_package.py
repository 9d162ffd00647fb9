"""``regnet-deploy package`` as it is called."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")


def test_a_target_is_written_here_by_default(cli, exported_bundle, tmp_path):
    done = cli("package", exported_bundle, "--kserve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "regnet-kserve" / "inferenceservice.yaml").is_file()
    assert done.stdout.startswith("kserve: regnet-kserve runs onnx-fp32")
    assert "not trained" in done.stderr


def test_weights_that_must_not_be_used_commercially_are_named(cli, non_commercial_bundle, tmp_path):
    done = cli("package", non_commercial_bundle, "--kserve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = "regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1 must not be used commercially: their license is CC-BY-NC-4.0\n"
    assert line in done.stderr


def test_several_targets_at_once_as_json(cli, exported_bundle, tmp_path):
    words = ["--triton", "--compose", "-o", "deploy", "--name", "dogs", "--variant", "onnx-fp32-uint8", "--json"]
    done = cli("package", exported_bundle, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["variant"] == "onnx-fp32-uint8"
    assert [one["target"] for one in told["packages"]] == ["triton", "compose"]
    for one in told["packages"]:
        assert all((tmp_path / one["folder"] / name).is_file() for name in one["files"])
    assert (tmp_path / "deploy" / "triton" / "model_repository" / "dogs" / "1" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a target, one or several: --triton, --kserve, --ray, --compose"),
        (["--ray", "--variant", "onnx-fp31"], "did you mean onnx-fp32"),
        (["--ray", "--name", "a b"], "--name 'a b'"),
        (["--kserve", "--image", "a b"], "--image 'a b'"),
        (["--kserve", "--triton-image", "a b"], "--triton-image 'a b'"),
        (["--triton", "--decoders", "0"], "--decoders"),
        (["--kserve", "--storage", "models"], "--storage 'models'"),
        (["--triton", "--threads", "0"], "--threads"),
        (["--trton"], "did you mean"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(cli_error, exported_bundle, tmp_path, words, says):
    folder = tmp_path / "here"
    folder.mkdir()
    assert says.lower() in cli_error("package", exported_bundle, *words, cwd=folder).lower()
    assert not list(folder.iterdir())


def test_a_folder_is_replaced_only_with_force(cli, cli_error, exported_bundle, tmp_path):
    assert cli("package", exported_bundle, "--ray", cwd=tmp_path).returncode == 0
    assert "--force" in cli_error("package", exported_bundle, "--ray", cwd=tmp_path)
    assert cli("package", exported_bundle, "--ray", "--force", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "bundle"] == ["regnet-ray"]


def test_what_is_no_bundle_is_one_line(cli_error, tmp_path):
    assert "no bundle at" in cli_error("package", tmp_path / "nothing", "--ray", cwd=tmp_path)


def test_a_missing_extra_names_the_pip_command(cli_error, exported_bundle, tmp_path):
    without_yaml = "import sys; sys.modules['yaml'] = None"
    line = cli_error("package", exported_bundle, "--ray", prelude=without_yaml, cwd=tmp_path)
    assert "pip install 'regnet-deploy[package]'" in line
    assert not (tmp_path / "regnet-ray").exists()
