"""The benchmarks of serving measure what they say, and the page says what they measured."""

import importlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")
pytest.importorskip("uvicorn")

from PIL import Image

from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_page_on_serving_is_written_from_the_results(load):
    assert (ROOT / "docs" / "serving-speed.md").read_text(encoding="utf-8") == load("serving_page").page()


def test_the_summary_is_what_the_rows_say(load):
    result = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text(encoding="utf-8"))
    assert load("serving").summary(result) == result["summary"]


def test_the_ratios_are_what_the_rows_say(load):
    result = json.loads((ROOT / "benchmarks" / "results" / "serving_peers.json").read_text(encoding="utf-8"))
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


def test_the_bare_session_counts_with_its_fastest_row(load):
    rows = {"bare uint8 1": {"rate": 9.0}, "bare uint8 2": {"rate": 11.0}, "bare uint8 alone": {"rate": 10.0}}
    assert load("serving").best_row({**rows, "http uint8": {"rate": 99.0}}, "uint8") == {"rate": 11.0}


def test_a_result_of_the_repository_is_not_measured_on_a_busy_machine(load, monkeypatch, tmp_path):
    figures = load("serving_figures")
    monkeypatch.setattr(figures, "busy_cores", lambda seconds: 0.3)
    kept = figures.RESULTS / "serving.json"
    with pytest.raises(SystemExit, match=r"keep 0\.3 cores busy.*--anyway"):
        figures.cores_busy(kept, anyway=False)
    assert figures.cores_busy(kept, anyway=True) == figures.cores_busy(tmp_path / "a.json", anyway=False) == 0.3


def test_a_peer_sees_the_pixels_that_our_server_sees(load):
    """Else its work would be another, and so would its time be."""
    photo = load("serving_inputs").photograph(0)
    model = load("serving_peer_model").Model
    large = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((1400, 1050)).save(large, "JPEG", quality=90)
    for side in (64, 224):
        preprocessing = default_preprocessing(side)
        peer = object.__new__(model)
        peer._input, peer._side, peer._resize = "images", preprocessing.crop, preprocessing.resize
        for data in (photo, large.getvalue()):
            assert np.array_equal(peer.read(data), load_pixels(data, preprocessing))


def test_photographs_are_as_large_as_such_files_are(load):
    inputs = load("serving_inputs")
    data = inputs.photograph(3)
    assert Image.open(io.BytesIO(data)).size == (inputs.WIDTH, inputs.HEIGHT)
    assert 40_000 < len(data) < 90_000
    assert data == inputs.photograph(3) != inputs.photograph(4)


def test_a_measured_process_is_ended_with_all_that_it_started(load, tmp_path):
    processes = load("serving_processes")
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('http://nowhere', flush=True)\ntime.sleep(600)\n"
    )
    with processes.started([sys.executable, str(program)]) as running:
        pids = processes.family(running.process.pid)
        assert running.url == "http://nowhere"
        assert len(pids) == 2
    give_up = time.monotonic() + 20
    while any(there(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not [pid for pid in pids if there(pid)]


def there(pid):
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes() != b""  # of a zombie nothing is left but its number
    except OSError:
        return False


def test_a_process_that_ends_at_once_is_an_error(load):
    ends = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="ended with status 3"), load("serving_processes").started(ends):
        pass


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


def test_the_readme_quotes_what_was_measured():
    root = Path(__file__).parents[1]
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    alone = json.loads((root / "benchmarks/results/serving.json").read_text(encoding="utf-8"))["summary"]
    peers = json.loads((root / "benchmarks/results/serving_peers.json").read_text(encoding="utf-8"))["ratios"]
    rates, faster = (
        [row["rate"]["value"] for row in peers if row["ours"].startswith(server)]
        for server in ("ours,", "ours by OpenVINO,")
    )
    assert f"it answers {min(rates):.1f} to {max(rates):.1f} times as many requests a second" in text
    assert f"and {min(faster):.1f} to {max(faster):.1f} times as many by OpenVINO" in text
    names = ("tensor_share", "pixel_share", "tensor_share_openvino", "pixel_share_openvino")
    tensors, pixels, *by_openvino = (f"{alone[name]['value']:.0%}".replace("%", " %") for name in names)
    assert f"{tensors} (FP32 tensors) and {pixels} (pixels) of what the bare ONNX Runtime session" in text
    assert f"by OpenVINO {by_openvino[0]} and {by_openvino[1]} of that" in text
    assert f"a lone tensor takes {alone['alone_over_ms']['value']:.1f} ms more" in text
