"""The files of docs/clusters.md agree with each other, with the program and with their formats."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.cli.main import load_command

FOLDER = Path(__file__).parent.parent / "docs" / "clusters"
SLURM = FOLDER / "slurm.sh"


def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return service, job


def slurm_words() -> list[str]:
    """The command line of `srun`."""
    text = SLURM.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^srun (.*) &$", text, re.MULTILINE)
    return shlex.split(line)


def kubernetes_words() -> list[str]:
    (container,) = manifests()[1]["spec"]["template"]["spec"]["containers"]
    return [part for word in container["command"] + container["args"] for part in word.split("=", 1)]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize("words", [slurm_words, kubernetes_words])
def test_the_command_is_one_that_train_takes(words: Any) -> None:
    line = words()
    assert after(line, "-m") == "regnet_deploy"
    command = load_command(after(line, "regnet_deploy"))
    context = command.make_context("train", line[line.index("train") + 1 :])
    assert (context.params["batch_size"], context.params["sync_bn"]) == (1024, True)


@pytest.mark.parametrize("words", [slurm_words, kubernetes_words])
def test_torchrun_takes_its_options(words: Any) -> None:
    from torch.distributed.run import get_args_parser

    line = [word.replace("$SLURM_JOB_NUM_NODES", "8") for word in words()]
    parsed = get_args_parser().parse_args(line[line.index("torchrun") + 1 :])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend) == ("8", "8", "c10d")
    assert parsed.training_script == "regnet_deploy"
    assert parsed.module


def test_the_slurm_script_is_bash() -> None:
    subprocess.run([shutil.which("bash") or "bash", "-n", SLURM], check=True)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SLURM.read_text(), re.MULTILINE))
    assert (options["nodes"], options["gpus-per-node"], options["ntasks-per-node"]) == ("8", "8", "1")


def test_the_manifests_agree_with_each_other() -> None:
    service, job = manifests()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = kubernetes_words()
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert after(words, "--rdzv-endpoint") == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(after(words, "--nnodes"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(after(words, "--nproc-per-node"))
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for path in (words[words.index("train") + 1], after(words, "--data")):
        assert any(path.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    assert pod["terminationGracePeriodSeconds"] >= 30
