"""The program that measures GPUs, as far as it runs without one: tiny networks on the CPU, the same rows and tables."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


ROOT = Path(__file__).parents[1]
MODULES = ("gpu", "gpu_networks", "gpu_ways", "gpu_results")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, short_warmup: None):
    """The program, with short warm-ups."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch

    settings = [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")]
    settings.append((torch.backends.cuda.matmul, "allow_tf32"))
    before = [getattr(owner, name) for owner, name in settings]
    yield importlib.import_module("gpu")
    for (owner, name), value in zip(settings, before, strict=True):
        setattr(owner, name, value)
    for name in MODULES:
        sys.modules.pop(name, None)


QUICK = ["--cpu", "--tests", "none", "--seconds", "0.001", "--ways", "torch-eager,onnxruntime-cpu"]


ONE_UNIT = ["--precisions", "fp32", "--batches", "1", "--networks", "tiny-g8"]


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


@pytest.mark.slow
def test_the_whole_program_and_going_on_where_it_was(gpu, tmp_path: Path, capsys, monkeypatch):
    output = tmp_path / "new" / "try.json"
    arguments = [*QUICK, "--output", str(output), "--precisions", "fp32,int8-cpu", "--batches", "2,1"]
    assert gpu.main([*arguments, "--networks", "tiny-g8"]) == 0
    first = rows_of(output)
    assert {(row["network"], row["way"], row["precision"], row["batch"]) for row in first} == {
        ("tiny-g8", way, precision, batch)
        for way, precision in [("torch-eager", "fp32"), ("onnxruntime-cpu", "fp32"), ("onnxruntime-cpu", "int8-cpu")]
        for batch in (1, 2)
    }
    for row in first:
        assert row["p50_ms"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1000, rel=1e-3)
        assert row["group_widths"] == [8, 8]
        assert row["runtime"].startswith(row["way"].partition("-")[0])
    capsys.readouterr()
    assert gpu.main(arguments) == 0
    again = rows_of(output)
    assert again[: len(first)] == first
    assert {row["network"] for row in again[len(first) :]} == {"tiny-g16"}
    table = capsys.readouterr().out
    assert "onnxruntime-cpu, batch 1: images/s x GMACs" in table
    assert [line.split()[0] for line in table.splitlines() if line[:1].isdigit()] == ["8", "16"] * 4
    monkeypatch.setattr(gpu, "measure_unit", lambda *arguments: pytest.fail("all of it is in the file"))
    assert gpu.main(arguments) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["machine"]["cpu"]
    assert document["left_out"]["onnxruntime-cuda"] == "it is for the cuda"
    assert [path.name for path in output.parent.iterdir()] == ["try.json"]


class Ended(BaseException):
    """Stands for a signal that ends the process."""


def test_a_way_that_ends_the_process_is_a_row_of_the_next_process(gpu, tmp_path: Path, monkeypatch, capsys):
    ways = importlib.import_module("gpu_ways")

    def ends(*arguments):
        raise Ended

    eager = next(way for way in ways.WAYS if way.name == "torch-eager")
    monkeypatch.setattr(gpu, "WAYS", (eager, ways.Way("broken", ("fp32",), lambda setting: None, ends)))
    arguments = ["--cpu", "--tests", "none", "--seconds", "0.001", "--output", str(tmp_path / "try.json"), *ONE_UNIT]
    with pytest.raises(Ended):
        gpu.main(arguments)
    assert gpu.main(arguments) == 0
    assert "broken ended the process at tiny-g8, fp32, batch 1" in capsys.readouterr().err
    failed, measured = rows_of(tmp_path / "try.json")
    assert (failed["way"], failed["failed"]) == ("broken", "it ended the process")
    assert measured["p50_ms"] > 0


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu.main([])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8", "int8-1x1", "fp8-1x1", "int8-cpu"])
def test_every_precision_has_a_file(gpu, precision):
    onnx = pytest.importorskip("onnx")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    onnx.checker.check_model(onnx.load_from_string(ways.Opened(networks.tiny_networks()[1]).onnx(precision)))


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["torch-eager", "onnxruntime-cuda", "tensorrt"])
def test_a_tiny_network_is_measured_on_the_gpu(gpu, way, tmp_path: Path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    setting = ways.here(False, 1)
    chosen = next(one for one in ways.WAYS if one.name == way)
    reason = chosen.why_not(setting)
    if reason:
        pytest.skip(reason)
    results = importlib.import_module("gpu_results").open_results(tmp_path / "try.json", setting, 0.01, retry=False)
    gpu.measure_unit(setting, ways.Opened(networks.tiny_networks()[0]), "fp16", 2, [chosen], 0.01, results)
    (row,) = results.rows
    assert row.get("failed") is None, row
