"""The Ray Serve application: its configuration, and that it answers on a local Ray."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.runtimes.golden_set import load_golden
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.ray_serve import ray_files
from regnet_deploy.targets.settings import DeploymentSettings

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]


def config_of(subject, **settings):
    return yaml.safe_load(ray_files(subject(**settings), DeploymentSettings(**settings))["config.yaml"])


def test_replicas_queue_and_cores_are_said(subject):
    config = config_of(subject, name="dogs", replicas=3, threads=2, executors=2, max_batch=64, max_queue=50)
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    assert (application["name"], application["import_path"], deployment["num_replicas"]) == ("dogs", "app:build", 3)
    # Twice what runs at a time: while one batch runs, the next one gathers.
    assert deployment["max_ongoing_requests"] == 256
    assert deployment["max_queued_requests"] == 50
    assert deployment["ray_actor_options"] == {"num_cpus": 4}
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_names_of_settings_are_those_of_the_server(subject, exported_bundle):
    from regnet_deploy.serving.limits import Limits
    from regnet_deploy.serving.model_version import ServeOptions

    (application,) = config_of(subject, threads=2, max_batch=8, max_queue=9, deadline_ms=500.0, max_delay_ms=2.0)[
        "applications"
    ]
    arguments = application["args"]
    options, limits = ServeOptions(**arguments["options"]), Limits(**arguments["limits"])
    assert (options.threads, options.batch, options.max_delay_s, options.device) == (2, 8, 0.002, "cpu")
    assert (limits.max_queue, limits.deadline_s) == (9, 0.5)
    assert arguments["bundle"] == str(exported_bundle.resolve())


def test_a_gpu_is_asked_of_ray(subject):
    (application,) = config_of(subject, gpu=True, variant="onnx-fp32")["applications"]
    assert application["deployments"][0]["ray_actor_options"]["num_gpus"] == 1
    assert "device" not in application["args"]["options"]


def test_the_application_opens_nothing_where_it_is_imported(subject):
    tree = ast.parse(ray_files(subject(), DeploymentSettings())["app.py"])
    imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imported == ["ray"]


def test_an_empty_token_of_the_environment_is_refused_where_a_replica_starts(subject, exported_bundle, monkeypatch):
    """Ray is not asked: an application that the decorators only pass on is what its replica calls."""
    made = []
    serve = SimpleNamespace(
        deployment=lambda **options: lambda server: SimpleNamespace(bind=lambda: server),
        ingress=lambda application: lambda server: made.append(application) or server,
    )
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    files = ray_files(subject(threads=1), DeploymentSettings(threads=1))
    module = {}
    exec(compile(files["app.py"], "app.py", "exec"), module)
    module["build"](yaml.safe_load(files["config.yaml"])["applications"][0]["args"])
    (application,) = made
    for token in ("", " ", "short", "geh\u00e9im-0123456789abcdef"):
        monkeypatch.setenv("REGNET_DEPLOY_TOKEN", token)
        with pytest.raises(UsageError, match="the token in REGNET_DEPLOY_TOKEN must be 16 or more"):
            application()
    monkeypatch.setenv("REGNET_DEPLOY_TOKEN", "0123456789abcdef")
    application()


def test_a_replica_has_the_time_to_finish_its_requests(subject):
    for deadline_ms, seconds in ((None, 35), (90_000.0, 95)):
        (application,) = config_of(subject, deadline_ms=deadline_ms)["applications"]
        assert application["deployments"][0]["graceful_shutdown_timeout_s"] == seconds


@pytest.fixture
def ray_python() -> str:
    """A Python with ray[serve] and what the server needs: that of RAY_SERVE_PYTHON, or this one."""
    named = os.environ.get("RAY_SERVE_PYTHON")
    if named:
        return named
    if not all(importlib.util.find_spec(name) for name in ("ray", "fastapi", "pydantic")):
        pytest.skip("needs ray[serve], or RAY_SERVE_PYTHON, an interpreter that has it")
    return sys.executable


DRIVER = """
import json, os, sys, tempfile, urllib.request
import ray, yaml
from ray import serve
from app import build

with open("config.yaml") as file:
    config = yaml.safe_load(file)
(application,) = config["applications"]
with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # the paths of Ray's sockets must be short
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(build(application["args"]), name=application["name"], route_prefix=application["route_prefix"])
    url = f"http://127.0.0.1:{sys.argv[1]}"
    answers = [urllib.request.urlopen(url + "/v2/health/ready").status]
    asked = (("/v2/models/dogs", None), ("/v2/models/dogs/infer", "request.json"), ("/classify?k=1", "a.png"))
    for path, file in asked:
        data = None if file is None else open(file, "rb").read()
        answers.append(json.load(urllib.request.urlopen(url + path, data)))
    with open("answers.json", "w") as file:  # what Ray says of itself goes to stdout
        json.dump(answers, file)
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_answers_on_a_local_ray(subject, exported_bundle, tmp_path, ray_python):
    from PIL import Image

    bundle = open_bundle(exported_bundle)
    golden, preprocessing = load_golden(bundle), Preprocessing.from_json(bundle.parts["preprocessing"])
    folder = tmp_path / "out"
    write_folders({folder: ray_files(subject(), DeploymentSettings(name="dogs", threads=1))})
    images = normalize(golden.images[:2], preprocessing)
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    (folder / "request.json").write_text(json.dumps({"inputs": [tensor]}))
    Image.fromarray(golden.images[0]).save(folder / "a.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = subprocess.run(
        [ray_python, "-c", DRIVER, str(port)],
        cwd=folder,
        # The folder for the replicas, which are processes of their own.
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ready, metadata, inferred, classified = json.loads((folder / "answers.json").read_text())
    assert ready == 200
    assert metadata["name"] == "dogs"
    (logits,) = inferred["outputs"]
    np.testing.assert_allclose(np.reshape(logits["data"], logits["shape"]), golden.logits[:2], atol=1e-3)
    assert bundle.parts["labels"][int(golden.logits[0].argmax())] in json.dumps(classified)
