"""The compose project: rights of the server, the metrics' port, and metrics that the server has."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from types import SimpleNamespace

import pytest

from regnet_deploy.bundle import find_damage, open_bundle
from regnet_deploy.serving import probe
from regnet_deploy.targets.compose import compose_files
from regnet_deploy.targets.output_folder import write_folders
from regnet_deploy.targets.settings import DeploymentSettings

yaml = pytest.importorskip("yaml")

#: What compose documents of a service, a network and a volume, as far as it is used here.
SERVICE = {
    *("image", "command", "environment", "user", "read_only", "cap_drop", "security_opt", "tmpfs", "shm_size"),
    *("pids_limit", "init", "stop_grace_period", "restart", "ports", "expose", "networks", "volumes", "healthcheck"),
    *("depends_on", "deploy", "mem_limit"),
}


@pytest.fixture
def files(subject):
    return compose_files(subject(), DeploymentSettings())


@pytest.fixture
def project(files):
    return yaml.safe_load(files["docker-compose.yaml"])


def test_the_project_has_the_documented_structure(project):
    assert set(project) == {"name", "services", "networks", "volumes"}
    for name, service in project["services"].items():
        assert set(service) <= SERVICE, name
        assert set(service["networks"]) <= set(project["networks"])
        assert set(service.get("depends_on", ())) <= set(project["services"])
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert source.startswith(("${BUNDLE:-./", "./")) or source in project["volumes"]


def test_every_file_that_is_mounted_is_there(project, files):
    mounted = [
        volume.split(":")[0].removeprefix("./")
        for service in project["services"].values()
        for volume in service["volumes"]
        if isinstance(volume, str) and volume.startswith("./")
    ]
    assert mounted
    for folder in mounted:
        assert any(name.startswith(f"{folder}/") for name in files), folder


def test_no_service_has_rights_that_it_does_not_need(project):
    for service in project["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    server = project["services"]["server"]
    assert server["user"] == "10001:10001"
    assert server["volumes"][0]["read_only"] is True


def test_the_metrics_are_reached_on_the_internal_network_alone(project, files):
    services = project["services"]
    port = services["server"]["environment"]["REGNET_DEPLOY_METRICS_PORT"]
    published = [entry for service in services.values() for entry in service.get("ports", ())]
    assert not any(entry.endswith(f":{port}") for entry in published)
    assert all(entry.startswith("127.0.0.1:") for entry in published)
    assert project["networks"]["inside"]["internal"] is True
    assert services["prometheus"]["networks"] == ["inside"]
    (scrape,) = yaml.safe_load(files["prometheus/prometheus.yml"])["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"server:{port}"]


def test_the_server_gets_its_settings(subject):
    made = compose_files(subject(), DeploymentSettings(name="dogs", image="registry.example/r:1", threads=2, gpu=True))
    server = yaml.safe_load(made["docker-compose.yaml"])["services"]["server"]
    assert server["image"] == "registry.example/r:1"
    assert server["command"] == ["--name", "dogs", "--threads", "2", "--linger", "5", "--drain", "35"]
    assert server["stop_grace_period"] == "50s"
    assert server["mem_limit"] == "${SERVER_MEMORY:-8g}"
    assert "within 8 GB" in made["README.md"].decode()
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_folder_holds_the_bundle_and_no_path_of_this_machine(project, files, exported_bundle, tmp_path):
    source = project["services"]["server"]["volumes"][0]["source"]
    assert source == "${BUNDLE:-./bundle}"
    write_folders({tmp_path / "out": files})
    ours, theirs = open_bundle(exported_bundle), open_bundle(tmp_path / "out" / "bundle")
    assert theirs.digest == ours.digest
    assert not find_damage(theirs)
    assert str(exported_bundle).encode() not in files["docker-compose.yaml"] + files["README.md"]


def test_every_service_is_bounded_and_the_server_has_room_for_its_threads(project, subject):
    for service in project["services"].values():
        assert service["pids_limit"] > 0
        assert service["mem_limit"]
    assert project["services"]["server"]["pids_limit"] > 4000
    made = compose_files(subject(), DeploymentSettings(threads=1024, executors=16))
    assert yaml.safe_load(made["docker-compose.yaml"])["services"]["server"]["pids_limit"] > 1024 * 16 + 4000


def test_a_server_that_hangs_is_told_to_end_and_started_again(project):
    server = project["services"]["server"]
    command, *words = server["healthcheck"]["test"]
    assert (command, words[:2]) == ("CMD", ["python", "-m"])
    assert importlib.util.find_spec(words[2]) is not None
    assert words[3:] == [probe.STOP_HUNG]
    assert server["restart"] == "unless-stopped"
    assert server["init"] is False  # the server is process 1, which the probe tells to end


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """Names of all series that the server has, and of the process."""
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from regnet_deploy.serving.admission import Admission
    from regnet_deploy.serving.gpu_metrics import GpuState
    from regnet_deploy.serving.metrics import Metrics
    from regnet_deploy.serving.request_record import RequestRecord

    served = SimpleNamespace(
        name="regnet",
        version="1",
        variant="onnx-fp32",
        session=SimpleNamespace(runtime="onnxruntime", device="cpu"),
        batcher=SimpleNamespace(depth=0, running=0, executions={8: (1, 0.01)}),
    )
    entry = {"name": "regnet", "version": "1", "state": "READY", "reason": ""}
    models = SimpleNamespace(all=lambda: [served], index=lambda: [entry], ready=lambda: True)

    async def read() -> tuple[GpuState, ...]:
        return (GpuState(0, "H100", "GPU-0", 0.5, 7, 80, 41.0, 300.0),)

    decoders = SimpleNamespace(workers=1, busy=0, waiting=0, restarts=0, pids=())
    made = Metrics(models, Admission(4), decoders, SimpleNamespace(read=read))
    done = RequestRecord("regnet", "1", "http", "infer", 200, 1, 1, 0.0, 1.0, 1.0, 1.0, 1.0, 4.0, "id", None, None)
    made.observe(done)
    made.observe(done._replace(status=503, batch=0))
    text = asyncio.run(made.scrape())[0].decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


#: Words of PromQL that are no series.
WORDS = {
    *("sum", "rate", "increase", "histogram_quantile", "max_over_time", "by", "le", "stage", "status", "protocol"),
    *("model", "version", "job", "or", "vector"),
}


def series_of(expression: str) -> set[str]:
    """Return the series of an expression in PromQL."""
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    return {word for word in re.findall(r"[a-z_][a-z0-9_]*", bare) if word not in WORDS}


def test_every_metric_of_the_dashboard_is_one_of_the_server(files, metrics):
    dashboard = json.loads(files["grafana/dashboards/regnet.json"])
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found = set().union(*map(series_of, expressions))
    assert len(found) > 15
    assert found <= metrics
    (variable,) = dashboard["templating"]["list"]
    assert series_of(variable["query"]["query"].replace("label_values", "")) <= metrics
    titles = " ".join(panel["title"].lower() for panel in dashboard["panels"])
    for shown in ("latency by stage", "queue", "batch size", "rejected and failed requests", "requests by status"):
        assert shown in titles


def test_panels_have_their_own_places(files):
    panels = json.loads(files["grafana/dashboards/regnet.json"])["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_metric_of_the_alerts_is_one_of_the_server(files, metrics):
    (group,) = yaml.safe_load(files["prometheus/alerts.yml"])["groups"]
    found = set().union(*(series_of(rule["expr"]) for rule in group["rules"]))
    assert found - {"up"} <= metrics
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    assert not re.search(r"P99_|QUEUE_IMAGES", files["prometheus/alerts.yml"].decode())


def test_alerts_have_the_limits_of_the_server(subject):
    text = compose_files(subject(), DeploymentSettings(max_queue=50))["prometheus/alerts.yml"].decode()
    assert "regnet_deploy_queue_images[1m]) > 40" in text
    assert ") > 0.1" in text
    assert "than 100 ms" in text


def test_the_dashboard_finds_its_source_and_is_found(project, files):
    (source,) = yaml.safe_load(files["grafana/provisioning/datasources/prometheus.yml"])["datasources"]
    assert f'"uid": "{source["uid"]}"' in files["grafana/dashboards/regnet.json"].decode()
    (provider,) = yaml.safe_load(files["grafana/provisioning/dashboards/regnet.yml"])["providers"]
    mounts = project["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
