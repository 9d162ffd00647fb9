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

from regnet_deploy.images.preprocess import default_preprocessing, load_pixels

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
    assert load("serving_peers").ratios(result["rows"]) == result["ratios"]
    assert set(result["peers"]) == set(load("serving_peers").PEERS)


def test_a_ratio_is_with_our_faster_way_and_above_one_where_ours_is_better(load):
    case = {"kind": "tensor", "in_flight": 16}
    rows = [
        {"way": "ours, HTTP", "rate": 200.0, "p99_ms": 10.0, **case},
        {"way": "ours, gRPC", "rate": 150.0, "p99_ms": 5.0, **case},
        {"way": "ours, HTTP", "rate": 900.0, "p99_ms": 1.0, "kind": "photo", "in_flight": 16},
        {"way": "theirs, gRPC", "rate": 100.0, "p99_ms": 15.0, **case},
    ]
    assert load("serving_peers").ratios(rows) == [
        {"way": "theirs, gRPC", "ours": "ours, HTTP", **case, "rate": 2.0, "p99": 1.5}
    ]


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


def test_an_answer_is_right_where_it_ends_with_the_logits(load):
    ends_with = load("serving_load").ends_with
    answer = b"head" + np.array([1.0, 2.0], np.float32).tobytes()
    assert ends_with(answer, [1.0, 2.00001])
    assert not ends_with(answer, [1.0, 2.1])
    assert not ends_with(b"", [1.0])


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
