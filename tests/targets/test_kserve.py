"""KServe manifests: their structure, the rights of the container, and the typed models of the kserve package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.targets.kserve import kserve_files, service_name
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.packaged_variant import choose_packaged_variant
from regnet_deploy.targets.settings import DeploymentSettings
from regnet_deploy.targets.triton import triton_files

yaml = pytest.importorskip("yaml")

#: Conflicts with this project's own environment, so it has one of its own.
KSERVE = "kserve==0.21.0"


def manifests(subject, **settings):
    files = kserve_files(subject(), DeploymentSettings(**settings))
    return {name: yaml.safe_load(data) for name, data in files.items() if name.endswith(".yaml")}


def container_of(manifest):
    (container,) = manifest["spec"]["predictor"]["containers"]
    return container


def test_the_server_is_an_inference_service_with_probes_and_ports(subject):
    made = manifests(subject, name="My.Dogs", image="registry.example/r:1", replicas=3, threads=2)
    manifest = made["inferenceservice.yaml"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["metadata"]["name"] == "my-dogs"
    assert manifest["spec"]["predictor"]["minReplicas"] == 3
    container = container_of(manifest)
    assert (container["name"], container["image"]) == ("kserve-container", "registry.example/r:1")
    assert container["args"] == ["--name", "My.Dogs", "--threads", "2", "--linger", "5", "--drain", "35"]
    assert "command" not in container  # the image's own: the bundle is in it
    assert container["ports"][0] == {"name": "http1", "containerPort": 8000, "protocol": "TCP"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": 8000}
    assert container["resources"]["limits"]["cpu"] == "2"
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {"REGNET_DEPLOY_PORT": "8000", "REGNET_DEPLOY_METRICS_PORT": "8002"}


def test_over_grpc_the_first_port_is_h2c_and_probes_stay_http(subject):
    made = manifests(subject)
    container = container_of(made["inferenceservice-grpc.yaml"])
    assert container["ports"][0] == {"name": "h2c", "containerPort": 8001, "protocol": "TCP"}
    assert container["args"][-2:] == ["--grpc-port", "8001"]
    assert container["readinessProbe"]["httpGet"]["port"] == 8000
    assert "http1" not in [port["name"] for port in container["ports"]]
    assert len({made[name]["metadata"]["name"] for name in made}) == 3


def test_the_container_is_not_root_writes_nowhere_and_has_no_capabilities(subject):
    for manifest in manifests(subject).values():
        predictor = manifest["spec"]["predictor"]
        assert predictor["securityContext"]["runAsNonRoot"] is True
        assert predictor["securityContext"]["runAsUser"] > 0
        assert predictor["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert predictor["automountServiceAccountToken"] is False
        container = predictor["model"] if "model" in predictor else predictor["containers"][0]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all(volume["emptyDir"]["medium"] == "Memory" for volume in predictor["volumes"])
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in predictor["volumes"]}


def test_a_pod_that_is_to_end_answers_until_nothing_sends_it_requests(subject):
    for manifest in manifests(subject).values():
        predictor = manifest["spec"]["predictor"]
        assert predictor["terminationGracePeriodSeconds"] >= 5 + 30 + 5  # lingers, drains, ends
        if "model" in predictor:
            assert predictor["model"]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
        else:
            arguments = container_of(manifest)["args"]
            over_grpc = "--grpc-port" in arguments
            assert arguments[arguments.index("--linger") + 1] == ("20" if over_grpc else "5")


def test_every_pod_is_scraped_where_its_metrics_are(subject):
    for manifest in manifests(subject).values():
        annotations = manifest["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/port"] == "8002"  # Triton's too


def test_a_bundle_in_storage_is_served_from_where_kserve_mounts_it(subject):
    made = manifests(subject, storage="pvc://models/dogs")
    container = container_of(made["inferenceservice.yaml"])
    assert container["command"] == ["regnet-deploy", "serve", "/mnt/models", "--host", "0.0.0.0"]
    assert {"name": "STORAGE_URI", "value": "pvc://models/dogs"} in container["env"]
    model = made["inferenceservice-triton.yaml"]["spec"]["predictor"]["model"]
    assert model["storageUri"] == "pvc://models/dogs/model_repository"


def test_triton_runs_its_repository_on_kserves_runtime(subject):
    model = manifests(subject)["inferenceservice-triton.yaml"]["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")
    assert model["storageUri"].startswith("pvc://")


def test_a_file_for_tensorrt_has_no_manifest_for_triton_which_would_run_it_otherwise(for_tensorrt):
    files = kserve_files(for_tensorrt, DeploymentSettings(variant="onnx-int8"))
    assert "inferenceservice-triton.yaml" not in files
    readme = files["README.md"].decode()
    assert "There is no manifest for Triton: variant onnx-int8 is for TensorRT engines" in readme
    assert "{{" not in readme
    container = yaml.safe_load(files["inferenceservice.yaml"])["spec"]["predictor"]["containers"][0]
    assert container["args"][container["args"].index("--variant") + 1] == "onnx-int8"


def test_the_instructions_name_the_bundle(exported_bundle):
    folder = exported_bundle.rename(exported_bundle.with_name("my bundle"))
    subject = choose_packaged_variant(open_bundle(folder), None, gpu=False)
    readme = kserve_files(subject, DeploymentSettings())["README.md"].decode()
    assert f"`regnet-deploy package --triton '{folder}'`" in readme
    (line,) = re.findall(r"printf .* \| ", readme)
    _, _, *lines, _ = shlex.split(line)
    assert lines == ["FROM regnet-deploy", 'COPY ["my bundle", "/bundle"]']


def test_triton_runs_in_an_image_that_has_what_the_preprocessing_needs(subject):
    files = triton_files(subject(), DeploymentSettings())
    assert b'pip install --no-cache-dir "pillow' in files["Dockerfile"]
    built = re.findall(r"docker build -t (\S+)", files["README.md"].decode())
    model = manifests(subject)["inferenceservice-triton.yaml"]["spec"]["predictor"]["model"]
    assert [model["image"]] == built
    assert "runtimeVersion" not in model  # KServe would put it in the place of the image's tag
    made = kserve_files(subject(), DeploymentSettings(triton_image="registry.example/triton:1"))
    model = yaml.safe_load(made["inferenceservice-triton.yaml"])["spec"]["predictor"]["model"]
    assert model["image"] == "registry.example/triton:1"
    assert "docker build -t registry.example/triton:1 ." in made["README.md"].decode()


def test_triton_has_the_shared_memory_that_its_package_asks_docker_for(subject):
    settings = DeploymentSettings(decoders=7, max_batch=500)
    asked = re.search(r"--shm-size (\d+)m", triton_files(subject(), settings)["README.md"].decode())
    predictor = yaml.safe_load(kserve_files(subject(), settings)["inferenceservice-triton.yaml"])["spec"]["predictor"]
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in predictor["volumes"]}
    assert sizes["shared-memory"] == f"{asked[1]}Mi"
    assert predictor["model"]["resources"]["limits"]["memory"] == f"{4096 + int(asked[1])}Mi"


def test_a_gpu_is_asked_for(subject):
    made = manifests(subject, gpu=True, variant="onnx-fp32")
    assert container_of(made["inferenceservice.yaml"])["resources"]["limits"]["nvidia.com/gpu"] == "1"
    model = made["inferenceservice-triton.yaml"]["spec"]["predictor"]["model"]
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("regnet", "regnet"),
        ("My.Dogs_2", "my-dogs-2"),
        ("9dogs", "regnet-9dogs"),
        ("_", "regnet"),
        ("a" * 90, "a" * 40),
    ],
)
def test_names_become_those_of_kubernetes(name, expected):
    assert service_name(name) == expected
    suffixed = service_name(name, "-triton")
    assert len(suffixed) <= 40
    assert suffixed.endswith("-triton")


@pytest.fixture(scope="module")
def kserve_python() -> str:
    """A Python that has kserve: that of KSERVE_PYTHON, or of an environment made once in the cache folder."""
    named = os.environ.get("KSERVE_PYTHON")
    if named:
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regnet-deploy" / KSERVE
    python = cache / "bin" / "python"
    if not (cache / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(cache)], check=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", KSERVE], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{KSERVE} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        (cache / "ready").touch()
    return str(python)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("settings", [{}, {"storage": "pvc://models/dogs", "gpu": True, "variant": "onnx-fp32"}])
def test_the_typed_models_of_kserve_take_the_manifests(subject, tmp_path, kserve_python, settings):
    write_folders({tmp_path / "out": kserve_files(subject(**settings), DeploymentSettings(**settings))})
    program = Path(__file__).parent / "kserve_models" / "check.py"
    paths = sorted(map(str, (tmp_path / "out").glob("*.yaml")))
    assert len(paths) == 3
    done = subprocess.run([kserve_python, str(program), *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("V1beta1InferenceService") >= 3
    broken = tmp_path / "broken.yaml"
    broken.write_text(Path(paths[0]).read_text().replace("containerPort", "containerPrt").replace("storageUri", "uri"))
    assert subprocess.run([kserve_python, str(program), str(broken)], capture_output=True).returncode != 0


@pytest.mark.parametrize("deadline_ms", [None, 120_000.0])
def test_a_pod_has_the_time_to_linger_to_finish_its_requests_and_to_stop(subject, deadline_ms):
    files = kserve_files(subject(), DeploymentSettings(deadline_ms=deadline_ms))
    for name in ("inferenceservice.yaml", "inferenceservice-grpc.yaml"):
        predictor = yaml.safe_load(files[name])["spec"]["predictor"]
        (container,) = predictor["containers"]
        seconds = {
            option: float(container["args"][container["args"].index(option) + 1]) for option in ("--linger", "--drain")
        }
        assert seconds["--drain"] > (deadline_ms or 30_000) / 1000  # a request ends before it is cut off
        assert predictor["terminationGracePeriodSeconds"] > sum(seconds.values()) + 5
    assert seconds["--linger"] == 20  # over gRPC
    predictor = yaml.safe_load(files["inferenceservice-triton.yaml"])["spec"]["predictor"]
    (exit_s,) = (word.split("=")[1] for word in predictor["model"]["args"] if word.startswith("--exit-timeout-secs="))
    before = predictor["model"]["lifecycle"]["preStop"]["exec"]["command"][1]
    assert predictor["terminationGracePeriodSeconds"] > float(exit_s) + float(before)


def test_the_readme_lists_every_manifest(subject):
    files = kserve_files(subject(), DeploymentSettings())
    readme = files["README.md"].decode()
    assert {name for name in files if name.endswith(".yaml")} == set(re.findall(r"^\| `(\S+\.yaml)` \|", readme, re.M))
    assert "inferenceservice-triton.yaml" in files
