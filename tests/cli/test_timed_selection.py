"""``select`` with limits of time, and ``calibrate``: what they print, write and refuse."""

from __future__ import annotations

import json

import pytest

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.calibrate import setups_of

WHAT = ("--resolution", 32, "--classes", 10, "--threads", 1, "--anyway")


@pytest.fixture(autouse=True)
def own_store(monkeypatch, tmp_path):
    monkeypatch.setenv("REGNET_DEPLOY_MEASUREMENTS", str(tmp_path / "measurements.sqlite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--latency-ms", 0), "0"),
        (("--latency-ms", 5, "--published", "RegNetX-400MF"), "a limit of time searches a network"),
        (("--latency-ms", 5, "--trial", "a.sweep"), "a limit of time searches a network"),
        (("--latency-ms", 5, "--try", 3, "--data", "x"), "--try ranks networks of equal MACs"),
        (("--latency-ms", 5, "--evidence", "x.csv"), "--evidence ranks networks of equal MACs"),
        (("--gflops", 0.4, "--batch", 8), "--batch belongs to a limit of time"),
        (("--gflops", 0.4, "--anyway"), "--anyway belongs to a limit of time"),
        (("--like", "RegNetX-401MF"), "did you mean"),
        (("--latency-ms", 5, "--precision", "bf16"), "give --runtime openvino"),
        (("--latency-ms", 5, "--precision", "fp16"), "slow on a CPU"),
        (("--latency-ms", 5, "--data", "x"), "--data requires --try"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(cli, tmp_path, options, message):
    done = cli("select", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "regnet-bundle").exists()


def test_bf16_is_calibrated_by_the_runtime_that_computes_it_where_several_are_given():
    common = {"resolution": 32, "classes": 10, "batch": 1, "threads": 1, "device": "cpu"}
    options = {"runtimes": ("onnxruntime", "openvino"), "precisions": ("int8-cpu", "bf16"), **common}
    assert [(each.runtime, each.precision) for each in setups_of(options)] == [
        ("onnxruntime", "int8-cpu"),
        ("openvino", "int8-cpu"),
        ("openvino", "bf16"),
    ]


@pytest.mark.timeout(600)
def test_calibrate_prints_its_errors_and_keeps_what_it_measured(cli, tmp_path):
    pytest.importorskip("scipy")
    done = cli("calibrate", "--networks", 8, *WHAT, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["networks"] == len(found["measurements"]) == 8
    assert found["setup"]["threads"] == 1
    assert 0 < found["shortest_ms"] < found["longest_ms"]
    assert 0 < found["mean_error"] <= found["largest_error"]
    again = cli("calibrate", "--networks", 8, *WHAT, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "rank correlation" in again.stdout
    assert f"{found['mean_error']:.1%}" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_limit_of_time_becomes_a_bundle(cli, tmp_path):
    pytest.importorskip("scipy")
    done = cli("select", "--latency-ms", 6, *WHAT, "--minutes", 0.5, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    timed = data["timed"]
    assert timed["p50_ms"] <= 6
    assert timed["candidates"][0]["macs"] == data["pick"]["macs"]
    bundle = open_bundle(tmp_path / "regnet-bundle")
    assert bundle.selection.timed["p50_ms"] == timed["p50_ms"]
    assert bundle.architecture.classes == 10
    assert "next: regnet-deploy train" in done.stderr
