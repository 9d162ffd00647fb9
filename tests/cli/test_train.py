"""`regnet-deploy train` as it is typed: what it prints, where, and how it ends when something is wrong."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle import create_bundle, find_damage, open_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.space.network import Network

QUICK = ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--precision", "fp32", "--channels-last", "off"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One level of class folders, 12 images each, and a text among them."""
    draw = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(draw.normal(level, 30, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "dark" / "readme.txt").write_text("no image")
    return tmp_path / "data"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    network = Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), stem_stride=1, stem_width=8)
    architecture = Architecture.of(network, name="tiny", classes=1000, resolution=16)
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(16).to_json()}
    return create_bundle(tmp_path / "bundle", parts).path


def assert_one_line(done: subprocess.CompletedProcess[str], message: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("regnet-deploy: ")
    assert message in last
    assert "Traceback" not in done.stderr


def test_a_cache_that_is_no_folder_or_among_the_images_is_one_line(cli_process: Any, bundle: Path, data: Path) -> None:
    for cache, message in (
        (data / "dark" / "0.png", "is not a folder: give auto, off or a folder"),
        (data / "cache", "give a folder outside of it"),
        (bundle, "give a folder outside of it"),
    ):
        done = cli_process("train", bundle, "--data", data, *QUICK, "--cache", cache)
        assert_one_line(done, message)
    assert not (data / "cache").exists()


def test_json_is_on_stdout_and_everything_else_on_stderr(cli_process: Any, bundle: Path, data: Path) -> None:
    done = cli_process("train", bundle, "--data", data, "--val-split", "0.25", *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bundle"] == str(bundle)
    assert result["data"]["train_images"] == 18
    assert result["data"]["val_images"] == 6
    assert result["data"]["rejected"] == 1
    assert (result["baseline"]["label"], result["baseline"]["top1"]) == ("dark", 0.5)
    assert result["best"] == open_bundle(bundle).parts["training"]["best"]
    said = done.stderr.splitlines()
    assert said[0] == "18 images to train on, 6 to validate with (25% of each class held out (seed 0)), 2 classes"
    assert "1 file left out:" in said
    assert any(line.startswith("  dark/readme.txt: not an image") for line in said)
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert find_damage(open_bundle(bundle)) == []


def test_options_win_over_a_recipe_whose_name_is_on_the_card(cli: Any, bundle: Path, data: Path) -> None:
    recipe = data.parent / "my.yaml"
    recipe.write_text("values: {epochs: 50, optimizer: adamw, lr: 0.002, mixup: 0.2}")
    done = cli("train", bundle, "--data", data, "--recipe", recipe, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert "recipe my.yaml with other epochs, batch_size" in done.stderr.splitlines()
    used = json.loads(done.stdout)["recipe"]
    assert (used["epochs"], used["optimizer"], used["lr"], used["mixup"]) == (2, "AdamW", 0.002, 0.2)
    shown = cli("show", bundle).stdout
    assert "name: my.yaml with other epochs, batch_size" in " ".join(shown.split())


def test_a_recipe_that_cannot_be_used_leaves_everything(cli: Any, bundle: Path, data: Path) -> None:
    (data.parent / "my.yaml").write_text("values: {epoch: 50, optimizer: adam}")
    done = cli("train", bundle, "--data", data, "--recipe", data.parent / "my.yaml")
    assert_one_line(done, "line 1: a recipe has no value 'epoch' (did you mean epochs?); line 1: the optimizer must be")
    assert_one_line(
        cli("train", bundle, "--data", data, "--recipe", "fastest"), "no recipe 'fastest' (did you mean fast?)"
    )
    assert not Path(f"{bundle}.training").exists()


def test_without_json_stdout_is_empty_and_the_last_line_is_the_result(
    cli_process: Any, bundle: Path, data: Path
) -> None:
    done = cli_process("train", bundle, "--data", data, *QUICK, "--run-dir", data.parent / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"{bundle}: weights of epoch ")
    assert (data.parent / "elsewhere").is_dir()
    assert not Path(f"{bundle}.training").exists()


def test_a_network_that_learned_nothing_is_compared_with_a_constant_answer(cli: Any, bundle: Path, data: Path) -> None:
    draw = np.random.default_rng(0)
    for path in data.glob("*/*.png"):  # nothing tells the classes apart
        Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).save(path)
    done = cli("train", bundle, "--data", data, "--val-split", "0.5", *QUICK, "--lr", "1e-9")
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert "a network that always answered dark would be right on 50.00% of the validation images" in said
    assert said[-2].startswith("always answering dark gives 50.00%, and ")
    assert said[-1].endswith(f"next: regnet-deploy check {data}, and train longer (--minutes) or on more images")
    assert "export" not in said[-1]


def test_a_run_has_one_length(cli: Any, bundle: Path, data: Path) -> None:
    done = cli("train", bundle, "--data", data, "--steps", "5", "--minutes", "1")
    assert_one_line(done, "--steps and --minutes say how long the run is: give one of them")


def test_a_run_of_minutes_says_how_many_steps_fit(cli: Any, bundle: Path, data: Path) -> None:
    minutes = ["--minutes", "0.1", "--batch-size", "8", "--device", "cpu", "--precision", "fp32"]
    done = cli("train", bundle, "--data", data, *minutes)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("0.1 minutes: ") and " fit, at " in line for line in done.stderr.splitlines())
    recipe = open_bundle(bundle).manifest.training.recipe
    assert recipe["minutes"] == 0.1
    assert recipe["steps"] >= 1
    done = cli("train", bundle, "--data", data, *minutes)  # the steps that were measured then
    assert "is already trained like this" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "'--epochs': 0 is not in the range"),
        (["--epochs", "99999999999999999999"], "'--epochs': 99999999999999999999 is not in the range"),
        (["--seed", "20240131123456789012"], "'--seed': 20240131123456789012 is not in the range"),
        (["--seed", "-1"], "'--seed': -1 is not in the range"),
        (["--precise-bn", "-1"], "'--precise-bn': -1 is not in the range"),
        (["--val-split", "nan"], "'--val-split': 'nan' is not a finite number"),
        (["--lr", "nan"], "'--lr': 'nan' is not a finite number"),
        (["--batch-size", "1"], "'--batch-size': 1 is not in the range"),
        (["--val-split", "1"], "--val-split"),
        (["--precision", "fp8"], "fp8"),
        (["--warmup-epochs", "2"], "warm-up epochs must be 0 to 1, got 2"),
        (["--workers", "-1"], "--workers"),
        (["--fine-tune"], "has no weights to start from yet"),
    ],
)
def test_bad_values_are_one_line(cli: Any, bundle: Path, data: Path, options: list[str], message: str) -> None:
    assert_one_line(cli("train", bundle, "--data", data, *QUICK, *options), message)
    assert "training" not in open_bundle(bundle).parts


def test_missing_things_are_one_line(cli: Any, bundle: Path, data: Path, tmp_path: Path) -> None:
    assert_one_line(cli("train", tmp_path / "none", "--data", data), "no bundle at")
    assert_one_line(cli("train", bundle, "--data", tmp_path / "none"), "no image folder at")
    assert_one_line(cli("train", bundle), "--data")
    (bundle / "bundle.json").write_bytes(b"{}")
    assert_one_line(cli("train", bundle, "--data", data), "is damaged")


@pytest.mark.parametrize("module", ["torch", "safetensors", "PIL", "tensorboard"])
def test_a_missing_library_names_the_pip_command(cli_process: Any, bundle: Path, data: Path, module: str) -> None:
    done = cli_process("train", bundle, "--data", data, prelude=f"import sys; sys.modules[{module!r}] = None")
    assert_one_line(done, f"this needs {module}, which is not installed: pip install 'regnet-deploy[train]'")


def test_help_shows_an_example_and_loads_nothing_heavy(cli_process: Any) -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'rich', 'tensorboard', 'safetensors'}"
    prelude = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    done = cli_process("train", "--help", prelude=prelude)
    assert done.returncode == 0
    assert "regnet-deploy train --data my-images" in done.stdout
    assert done.stdout.endswith("set()\n")


def test_a_checkpoint_that_cannot_be_written_is_one_line(cli_process: Any, bundle: Path, data: Path) -> None:
    before = open_bundle(bundle)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = cli_process("train", bundle, "--data", data, *QUICK, prelude=limit)
    assert_one_line(done, "File too large; there is no earlier checkpoint: free some space")
    assert open_bundle(bundle) == before
    assert cli_process("train", bundle, "--data", data, *QUICK).returncode == 0


def test_interrupted_it_says_so_and_goes_on_later(cli_process: Any, start_cli: Any, bundle: Path, data: Path) -> None:
    arguments = [bundle, "--data", data, *QUICK, "--epochs", "200", "--checkpoint-seconds", "0"]
    with start_cli("train", *arguments, stdout=None) as process:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("epoch 3/"):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
    assert process.returncode == 130, said
    last = said.splitlines()[-1]
    assert last.startswith("regnet-deploy: interrupted: a checkpoint is written and the bundle is unchanged: ")
    assert ", and --finish writes its best weights so far (" in last
    assert said.count("SIGINT: a checkpoint is written, and the training ends") == 1
    assert said.count("a checkpoint is written and the bundle is unchanged") == 1
    assert "Traceback" not in said
    assert "training" not in open_bundle(bundle).parts
    refused = cli_process("train", bundle, "--data", data, *QUICK)
    assert_one_line(refused, "an unfinished run in")
    assert len(refused.stderr.splitlines()) == 1  # no plan of a run that is refused
    data.rename(data.with_name("elsewhere"))
    done = cli_process("train", bundle, "--finish", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stopped"]
    data.with_name("elsewhere").rename(data)
    done = cli_process("train", bundle, "--data", data, *QUICK, "--restart")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_a_bundle_that_cannot_be_written_is_said_before_training(cli_process: Any, bundle: Path, data: Path) -> None:
    bundle.chmod(0o500)
    done = cli_process("train", bundle, "--data", data, *QUICK)
    bundle.chmod(0o700)
    assert_one_line(done, "Permission denied; nothing was changed")


def test_weights_of_other_classes_are_fine_tuned_and_only_given_options_are_not_the_defaults(
    cli: Any, bundle: Path, data: Path, tmp_path: Path
) -> None:
    assert cli("train", bundle, "--data", data, *QUICK).returncode == 0
    (data / "dark").rename(data / "night")
    done = cli("train", bundle, "--data", data, "--epochs", "2", "--lr", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    assert "with a new head for 2 classes; --from-scratch starts from random ones" in done.stderr
    assert "linear probe, the baseline: " in done.stderr
    result = json.loads(done.stdout)
    used = {name: result["recipe"][name] for name in ("epochs", "lr", "crop_area", "probe")}
    assert used == {"epochs": 2, "lr": 0.1, "crop_area": 0.35, "probe": True}
    assert result["probe"]["val_images"] == result["best"]["val_images"]
    (data / "night").rename(data / "evening")
    done = cli("train", bundle, "--data", data, *QUICK, "--from-scratch")
    assert done.returncode == 0, done.stderr
    assert "training from scratch: the weights of the bundle are not used" in done.stderr
    assert open_bundle(bundle).training.lineage.start_sha256 is None
    assert "linear probe" not in done.stderr
