"""The program that measures GPUs, as far as it runs without one: tiny networks on the CPU, the same rows and tables."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from regnet_deploy.profiling import latency
from regnet_deploy.space.network import Network

ROOT = Path(__file__).parents[1]
MODULES = ("gpu", "gpu_networks", "gpu_ways", "gpu_results")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """The program, with warm-ups that last no longer than they must."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(latency, "WARMUP_S", 0.0)
    monkeypatch.setattr(latency, "WARMUP_WINDOW_S", 0.0)
    monkeypatch.setattr(latency, "WARMUP_LIMIT_S", 0.01)
    import torch

    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield importlib.import_module("gpu")
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
    for name in MODULES:
        sys.modules.pop(name, None)


QUICK = ["--cpu", "--tests", "none", "--seconds", "0.001", "--ways", "torch-eager,onnxruntime-cpu"]


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


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


def test_the_shell_script_runs_it(tmp_path: Path):
    output = tmp_path / "try.json"
    command = [ROOT / "benchmarks" / "gpu.sh", *QUICK[:-1], "onnxruntime-cpu", "--output", str(output)]
    command += ["--networks", "tiny-g8", "--precisions", "fp32", "--batches", "1"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(output)) == 1


def test_the_shell_script_starts_another_process_when_it_is_asked_to(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$1" >> "$COUNT"\n[ "$(wc -l < "$COUNT")" -lt 3 ] && exit 75\nexit 4\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "COUNT": str(tmp_path / "count")}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], env=environment)
    assert done.returncode == 4
    assert (tmp_path / "count").read_text().splitlines() == ["benchmarks/gpu.py"] * 3


def test_what_fails_is_a_row_with_its_reason_and_is_tried_again_only_when_asked(
    gpu, tmp_path: Path, monkeypatch, capsys
):
    ways = importlib.import_module("gpu_ways")
    calls = []

    def fails(setting, opened, precision, batch):
        calls.append(batch)
        raise MemoryError("CUDA out of memory.\n  Tried to allocate")

    broken = ways.Way("broken", ("fp32",), lambda setting: None, fails)
    eager = next(way for way in ways.WAYS if way.name == "torch-eager")
    monkeypatch.setattr(gpu, "WAYS", (eager, broken))
    output = tmp_path / "try.json"
    arguments = ["--cpu", "--tests", "none", "--seconds", "0.001", "--output", str(output), "--precisions", "fp32"]
    arguments += ["--networks", "tiny-g8", "--batches", "1"]
    assert gpu.main(arguments) == 0
    failed, measured = rows_of(output)
    assert failed["failed"] == "MemoryError: CUDA out of memory. Tried to allocate"
    assert measured["way"] == "torch-eager"
    assert "tiny-g8, broken, fp32, batch 1: MemoryError" in capsys.readouterr().out
    gpu.main(arguments)
    assert calls == [1]
    gpu.main([*arguments, "--retry"])
    assert calls == [1, 1]
    assert len(rows_of(output)) == 2


def test_what_fails_while_the_ways_take_turns_is_a_row_too(gpu, tmp_path: Path, monkeypatch):
    def fails(*arguments):
        raise MemoryError("out of memory")

    monkeypatch.setattr(gpu, "measure", fails)
    output = tmp_path / "try.json"
    arguments = [*QUICK, "--output", str(output), "--precisions", "fp32", "--batches", "1", "--networks", "tiny-g8"]
    assert gpu.main(arguments) == 0
    assert [row["failed"] for row in rows_of(output)] == ["while the ways took turns: MemoryError: out of memory"] * 2


def test_a_gpu_that_no_longer_answers_asks_for_another_process_and_keeps_the_row(gpu, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gpu, "_usable", lambda setting: False)
    output = tmp_path / "try.json"
    assert gpu.main([*QUICK, "--output", str(output), "--precisions", "fp32", "--batches", "1"]) == gpu.AGAIN == 75
    assert {row["network"] for row in rows_of(output)} == {"tiny-g8"}


def test_nothing_is_begun_when_the_time_is_over(gpu, tmp_path: Path, capsys):
    output = tmp_path / "try.json"
    assert gpu.main([*QUICK, "--output", str(output), "--minutes", "1e-9"]) == 0
    assert rows_of(output) == []
    out, err = capsys.readouterr()
    assert "minutes are over: run it again" in err
    assert "nothing was measured yet" in out


def test_a_file_of_another_machine_or_of_nobody_is_left_alone(gpu, tmp_path: Path):
    output = tmp_path / "try.json"
    arguments = [*QUICK, "--output", str(output), "--minutes", "1e-9"]
    assert gpu.main(arguments) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    output.write_text(json.dumps({**document, "torch": {"version": "1.0"}}))
    with pytest.raises(SystemExit, match="measured with another torch: move it away"):
        gpu.main(arguments)
    output.write_text("no JSON")
    with pytest.raises(SystemExit, match="not a file that this program wrote"):
        gpu.main(arguments)
    assert output.read_text() == "no JSON"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cpu"], "--output FILE"),
        (["--precisions", "fp61"], "no 'fp61' (did you mean fp16?)"),
        (["--ways", "tensort"], "did you mean tensorrt?"),
        (["--networks", "RegNetX-400M"], "did you mean RegNetX-400MF?"),
        (["--batches", "1,many"], "--batches 1,many"),
        (["--batches", "0"], "must be positive"),
        (["--minutes", "0"], "must be positive"),
    ],
)
def test_what_cannot_be_asked_for_is_said(gpu, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="sees no CUDA device"):
        gpu.main([])


@pytest.mark.parametrize(("body", "code"), [("assert True", 0), ("assert 1 == 2", 1)])
def test_gpu_tests_are_run_and_what_came_of_them_is_kept(gpu, tmp_path: Path, body: str, code: int):
    test = tmp_path / "test_some.py"
    test.write_text(
        f"import pytest\n@pytest.mark.gpu\ndef test_it():\n    {body}\ndef test_other():\n    assert False\n"
    )
    output = tmp_path / "try.json"
    arguments = ["--cpu", "--output", str(output), "--minutes", "1e-9", "--tests", str(test)]
    assert gpu.main(arguments) == code
    tests = json.loads(output.read_text(encoding="utf-8"))["tests"]
    assert tests["exit_code"] == code
    assert ("1 passed, 1 deselected" if code == 0 else "1 failed, 1 deselected") in tests["summary"]
    assert len(tests["told"]) == code


def test_networks_selected_by_group_width_have_like_macs(gpu):
    networks = importlib.import_module("gpu_networks")
    subjects = networks.grouped_networks()
    assert [set(subject.network.group_widths) for subject in subjects] == [{8}, {16}, {24}, {32}, {64}]
    for subject in subjects:
        assert subject.macs == pytest.approx(1.6e9, rel=0.01)


def test_published_networks_have_the_names_that_timm_gives_them(gpu):
    networks = importlib.import_module("gpu_networks")
    sizes = ("002", "004", "006", "008", "016", "032", "040", "064", "080")
    expected = {f"regnet{family}_{size}" for family in "xy" for size in sizes}
    assert {subject.timm for subject in networks.published()} == expected
    assert all(0.19e9 < subject.macs < 8.1e9 for subject in networks.published())


def test_timm_is_measured_beside_ours_where_it_is_installed(gpu, tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "site" / "timm"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from torch import nn\n"
        "def create_model(name, pretrained, num_classes):\n"
        "    assert (name, pretrained) == ('regnetx_002', False)\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    networks = importlib.import_module("gpu_networks")
    network = Network((1,), (8,), (8,), (1.0,), 0.0, 1, 8)
    subject = networks.Subject("RegNetX-200MF", network, 16, 4, "published", "regnetx_002")
    monkeypatch.setattr(gpu, "tiny_networks", lambda: [subject])
    output = tmp_path / "try.json"
    arguments = ["--cpu", "--tests", "none", "--seconds", "0.001", "--output", str(output), "--batches", "1"]
    try:
        assert gpu.main([*arguments, "--precisions", "fp32", "--ways", "torch-eager,timm-eager"]) == 0
    finally:
        sys.modules.pop("timm", None)
    assert [row["side"] for row in rows_of(output)] == ["ours", "timm"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("RegNetX-200MF"))
    assert line.split()[1:4] == ["eager", "fp32", "1"]


def test_a_precision_that_rounds_weights_does_not_touch_the_next_one(gpu):
    import torch

    ways = importlib.import_module("gpu_ways")
    networks = importlib.import_module("gpu_networks")
    opened = ways.Opened(networks.tiny_networks()[0])
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    ways._eager(ways.Setting("cpu", None, 1), opened, "bf16", 1)()
    for name, value in opened.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8", "int8-1x1", "fp8-1x1", "int8-cpu"])
def test_every_precision_has_a_file(gpu, precision):
    onnx = pytest.importorskip("onnx")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    onnx.checker.check_model(onnx.load_from_string(ways.Opened(networks.tiny_networks()[1]).onnx(precision)))


def test_what_is_called_of_tensorrt_is_what_its_binding_has():
    trt = pytest.importorskip("tensorrt_rtx")
    assert callable(trt.Runtime.deserialize_cuda_engine)
    assert callable(trt.ICudaEngine.create_execution_context)
    for name in ("set_input_shape", "set_tensor_address", "execute_async_v3", "is_stream_capturable"):
        assert hasattr(trt.IExecutionContext, name), name


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["torch-eager", "onnxruntime-cuda", "tensorrt"])
def test_a_tiny_network_is_measured_on_the_gpu(gpu, way):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    setting = ways.here(False, 1)
    chosen = next(one for one in ways.WAYS if one.name == way)
    reason = chosen.why_not(setting)
    if reason:
        pytest.skip(reason)
    (row,) = gpu.measure_unit(setting, ways.Opened(networks.tiny_networks()[0]), "fp16", 2, [chosen], 0.01)
    assert row.get("failed") is None, row
