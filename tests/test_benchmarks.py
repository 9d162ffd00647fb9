"""The documentation says what the benchmarks measured, and the benchmarks measure what they say."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.populations.reader import read_trials
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.sampling import Band, draw_networks, networks_of

ROOT = Path(__file__).parents[1]
MACHINE = {"cpu": "A CPU", "versions": {"onnxruntime": "1.32.0"}}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a program of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def results():
    """Read a result file by its name."""
    return lambda name: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def readme():
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("program", "page", "library"),
    [
        ("measurements", "measurements.md", "numpy"),
        ("design_spaces", "design-spaces.md", "scipy"),
        ("precision_page", "precision.md", "onnx"),
        ("serving_page", "serving-speed.md", "onnxruntime"),
        ("transfer_page", "fine-tuning.md", "numpy"),
        ("input_pipeline_page", "input-pipeline.md", "numpy"),
        ("latency_page", "latency.md", "numpy"),
    ],
)
def test_pages_are_written_from_the_results(load, program, page, library):
    pytest.importorskip(library)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == load(program).page()
    for figure in re.findall(r"\((figures/[^)]+)\)", text):
        assert (ROOT / "docs" / figure).is_file(), figure


def test_the_readme_quotes_the_ranking_that_was_measured(results, readme):
    summary = results("ranking")["summary"]
    shipped = summary["select's score"]
    assert (
        f"in the first {shipped['median']} % of the candidates of its budget (median; mean {shipped['mean']} %;"
        in readme
    )


def test_the_page_on_selection_quotes_the_ranking_that_was_measured(results):
    summary = results("ranking")["summary"]
    page = (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
    for row in summary.values():
        assert f"| {row['median']} | {row['mean']} |" in page


def test_the_readme_quotes_the_speed_of_int8_that_was_measured(load, readme):
    pytest.importorskip("onnx")
    module = load("precision_page")
    low, median, high = module.speed_up(module.read("precision"), "int8-cpu", 1)
    assert f"{low:.1f} to {high:.1f} times as fast as FP32 for one image (median {median:.1f})" in readme


def test_the_readme_quotes_the_speed_of_serving_that_was_measured(results, readme):
    alone, peers = results("serving")["summary"], results("serving_peers")["ratios"]
    rates, faster = (
        [row["rate"]["value"] for row in peers if row["ours"].startswith(server)]
        for server in ("ours,", "ours by OpenVINO,")
    )
    assert f"it answers {min(rates):.1f} to {max(rates):.1f} times as many requests a second" in readme
    assert f"and {min(faster):.1f} to {max(faster):.1f} times as many by OpenVINO" in readme
    names = ("tensor_share", "pixel_share", "tensor_share_openvino", "pixel_share_openvino")
    tensors, pixels, *by_openvino = (f"{alone[name]['value']:.0%}".replace("%", " %") for name in names)
    assert f"{tensors} (FP32 tensors) and {pixels} (pixels) of what the bare ONNX Runtime session" in readme
    assert f"by OpenVINO {by_openvino[0]} and {by_openvino[1]} of that" in readme
    assert f"one tensor at a time takes {alone['alone_over_ms']['value']:.1f} ms longer" in readme


@pytest.mark.parametrize("space", ["AnyNetX_A", "AnyNetX_E", "RegNetX"])
def test_the_committed_populations_are_what_the_spaces_draw(space):
    trials = read_trials(ROOT / "profiles" / "populations" / f"glyphs32_{space}.csv")
    drawn = draw_networks(known_spaces()[space], 50, Band(4e6, 4.4e6, resolution=32, classes=62))
    assert trials.networks == tuple(networks_of(known_spaces()[space], drawn, 1))
    for name in ("macs", "parameters", "activations"):
        assert trials.columns[name].tolist() == getattr(drawn, name).tolist()


def test_every_published_network_was_measured_in_every_precision(results):
    pytest.importorskip("onnx")
    from regnet_deploy.exporting.precision import PRECISIONS

    for part in ("errors", "deployed"):
        measured = results("precision")[part]
        assert len(measured) == 18
        assert all(set(rows) == set(PRECISIONS) for rows in measured.values())


def test_the_elected_way_on_a_cpu_is_the_fastest_accurate_one_beside_the_best_peer(load):
    module = load("cpu_runtimes_page")
    drops = {"onnx-fp32": 0.0, "openvino-bf16": 0.25, "openvino-int8-cpu": 0.75}
    accuracy = {way: {"accuracy": {"drop": drop, "low": -1.0, "high": 2.0}} for way, drop in drops.items()}
    ms = {"onnx-fp32": [8.0, 12.0, 8.0], "openvino-bf16": [4.0, 3.0, 2.0], "openvino-int8-cpu": [1.0, 1.0, 1.0]}
    ms |= {"torch compiled": [16.0, 12.0, 8.0], "benchmark_app, fp32 file": [4.0, 6.0, 3.0]}
    row = {"ms": ms, "seconds": 1.0, "contended_cores": 0.1}
    assert module.elected(row, accuracy) == "openvino-bf16"
    assert module.best_peer(row) == "benchmark_app, fp32 file"
    assert module.speed_up(row, "openvino-bf16") == (2.0, 4.0, 4.0)

    machine = {"cores": 2, "system": "Linux", "python": "3.11", "cpu": "A CPU"}
    machine["versions"] = dict.fromkeys(("onnxruntime", "openvino", "torch"), "1")
    result = {"machine": machine, "cpu_instructions": "VNNI", "accuracy": {"X": accuracy}, "times": {"X": {"1": row}}}
    text = module.render(result)
    assert "| X | 1 | openvino-bf16 | 4.00 (2.00 to 4.00) | benchmark_app, fp32 file | 1.50 (1.00 to 2.00) |" in text
    assert "| X | 1 | openvino-int8-cpu | 1.00 | 8.00 (8.00 to 12.00) | 0.75 (-1.00 to 2.00) |" in text
    assert "| X | 1 | torch compiled | 12.00 | 1.00 (0.50 to 1.00) | - |" in text


def test_runtimes_on_a_cpu_are_not_added_to_a_file_of_other_versions(load, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    module = load("cpu_runtimes")
    machine = {"cpu": "A CPU", "cores": 2, "versions": dict.fromkeys(module.VERSIONS, "1")}
    file = tmp_path / "result.json"
    assert module.kept(file, machine) == {}
    module.write(file, {"machine": machine, "times": {}})
    assert module.kept(file, machine)["times"] == {}
    for other in ({**machine, "cores": 4}, {**machine, "versions": {**machine["versions"], "openvino": "2"}}):
        with pytest.raises(UsageError, match="give another file with --json"):
            module.kept(file, other)


def test_the_summary_is_what_the_rows_say(load, results):
    result = results("serving")
    assert load("serving").summary(result) == result["summary"]


def test_the_ratios_are_what_the_rows_say(load, results):
    result = results("serving_peers")
    assert load("serving_peers").ratios(result["rows"], result["rounds"]) == result["ratios"]
    assert set(result["peers"]) == set(load("serving_peers").PEERS)


def test_a_ratio_is_with_our_faster_way_and_above_one_where_ours_is_better(load):
    case = {"kind": "tensor", "in_flight": 16}

    def row(way, rate, p99, rates=(), p99s=(), **case):
        return {"way": way, "rate": rate, "p99_ms": p99, "rounds": {"rate": rates, "p99_ms": p99s}, **case}

    rows = [
        row("ours, HTTP", 200.0, 10.0, (150.0, 250.0), (8.0, 12.0), **case),
        row("ours, gRPC", 150.0, 5.0, (150.0, 150.0), (5.0, 5.0), **case),
        row("ours, HTTP", 900.0, 1.0, kind="photo", in_flight=16),
        row("theirs, gRPC", 100.0, 15.0, (100.0, 100.0), (16.0, 12.0), **case),
    ]
    (ratio,) = load("serving_peers").ratios(rows, 2)
    assert ratio == {
        "way": "theirs, gRPC",
        "ours": "ours, HTTP",
        **case,
        "rate": {"value": 2.0, "low": 1.5, "high": 2.5},
        "p99": {"value": 1.5, "low": 1.0, "high": 2.0},
    }


def test_a_target_within_the_range_of_the_rounds_is_undecided(load):
    met = load("serving_figures").met
    assert met({"value": 0.95, "low": 0.91, "high": 1.0}, 0.9) == "yes"
    assert met({"value": 0.95, "low": 0.85, "high": 1.0}, 0.9) == "undecided"
    assert met({"value": 0.80, "low": 0.70, "high": 0.89}, 0.9) == "no"
    assert met({"value": 1.2, "low": 1.1, "high": 1.3}, 1.5, more=False) == "yes"
    assert met({"value": 1.2, "low": 1.1, "high": 1.6}, 1.5, more=False) == "undecided"


def test_the_99th_percentile_is_of_all_rounds_together(load):
    one, other = [{"rate": 1.0, "p99_ms": 9.0, "latencies_ms": [ms] * 100} for ms in (1.0, 9.0)]
    other["latencies_ms"] = [1.0] * 99 + [9.0]
    row = load("serving_figures").rounds_of([one, other])
    assert (row["p99_ms"], row["requests"]) == (1.0, 200)
    assert "latencies_ms" not in row


def test_a_peer_sees_the_pixels_that_our_server_sees(load):
    """Otherwise its work, and so its time, would differ."""
    image = pytest.importorskip("PIL.Image")
    photo = load("serving_inputs").photograph(0)
    model = load("serving_peer_model").Model
    large = io.BytesIO()
    image.open(io.BytesIO(photo)).resize((1400, 1050)).save(large, "JPEG", quality=90)
    for side in (64, 224):
        preprocessing = default_preprocessing(side)
        peer = object.__new__(model)
        peer._input, peer._side, peer._resize = "images", preprocessing.crop, preprocessing.resize
        for data in (photo, large.getvalue()):
            assert np.array_equal(peer.read(data), load_pixels(data, preprocessing))


def test_every_answer_is_held_against_the_logits_of_its_own_image(load):
    logits = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    right = load("serving_answers").checker(logits.tolist(), "logits", 1)
    for _ in range(2):
        assert right(1, b"head" + logits[1].tobytes())
        assert not right(0, b"head" + logits[1].tobytes())
    assert not right(0, b"")
    assert not load("serving_answers").checker([], "logits", 3)(0, b"ab")


def test_classes_are_held_against_the_logits_in_json_and_within_a_message(load):
    logits = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    right = load("serving_answers").checker(logits.tolist(), "classes", 1)
    likely = np.exp(logits[1]) / np.exp(logits[1]).sum()
    best = [{"index": int(i), "probability": float(likely[i])} for i in np.argsort(-likely)[:5]]
    answer = json.dumps({"predictions": best}).encode()
    assert right(1, answer)
    assert right(1, b"\x0a\x06regnet" + answer)
    assert not right(0, answer)
    assert not right(1, b"\x0a\x06regnet")


@pytest.mark.slow
def test_both_sides_are_measured_over_a_real_server(load, tmp_path):
    processes, inputs = load("serving_processes"), load("serving_inputs")
    head, raw = inputs.infer_body(("images", "logits"), np.zeros((1, 3, 11, 11), np.float32))
    body = tmp_path / "body"
    body.write_bytes(head + raw)
    headers = {"inference-header-content-length": str(len(head))}
    for what in (["ours", "--side", "11"], ["echo"], ["sink"]):
        with processes.started([sys.executable, str(ROOT / "benchmarks" / "serving_noop.py"), *what]) as running:
            row = processes.load(running, processes.Request("/v2/models/regnet/infer", headers, [body]), 4, 0.5)
            assert row["rate"] > 0
            assert row["bad"] == 0
            assert row["p50_ms"] <= row["p99_ms"]
            assert row["server_cpu_ms"] > 0
            wrong = processes.Request("/v2/models/none/infer", {}, [body], least=10**9)
            with pytest.raises(RuntimeError, match="were not answered rightly"):
                processes.load(running, wrong, 1, 0.5)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cpu": "Another"}, "was measured with A CPU, this is Another: give another file"),
        ({"versions": {"onnxruntime": "1.23.2"}}, "with onnxruntime 1.32.0, this is onnxruntime 1.23.2"),
        ({"versions": {}}, "with onnxruntime 1.32.0, this is onnxruntime None"),
    ],
)
def test_nothing_is_added_to_the_file_of_another_machine(load, tmp_path, other, said):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    precision = load("precision")
    file = tmp_path / "result.json"
    assert precision.kept(file, MACHINE) == {}
    file.write_text(json.dumps({"machine": MACHINE, "errors": {"RegNetX-200MF": {}}}))
    assert precision.kept(file, {**MACHINE, "memory_bytes": 5})["errors"] == {"RegNetX-200MF": {}}
    with pytest.raises(UsageError, match=said):
        precision.kept(file, {**MACHINE, **other})


def test_the_table_of_classes_of_unequal_size_is_that_of_the_results(load):
    program = load("class_balance")
    rows = program.rows_of(program.RESULT)
    assert program.table(rows) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_classes_count_by_their_share_of_the_training_images_or_all_the_same(load):
    counts, recall = {"a": 90, "b": 10}, {"a": 1.0, "b": 0.5}
    row = {"set": "MNIST, 3:1", "way": "uniform", "counts": counts, "recall": recall}
    assert "| MNIST, 3:1, 10 to 90 | 1 | uniform | 75.0 | 95.0 |" in load("class_balance").table([row])
