"""The program that measures GPUs, as far as it runs without one: tiny networks on the CPU, the same rows and tables."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from regnet_deploy.errors import ProofError
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

    settings = [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")]
    settings.append((torch.backends.cuda.matmul, "allow_tf32"))
    before = [getattr(owner, name) for owner, name in settings]
    yield importlib.import_module("gpu")
    for (owner, name), value in zip(settings, before, strict=True):
        setattr(owner, name, value)
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
    python.write_text(
        '#!/bin/sh\necho "$REGNET_GPU_BEGAN $*" >> "$COUNT"\nn=$(wc -l < "$COUNT")\n'
        '[ "$n" -lt 3 ] && exit 75\n[ "$n" -lt 4 ] && kill -SEGV $$\nexit 4\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "COUNT": str(tmp_path / "count")}
    arguments = ["--retry", "--networks", "a network", "--minutes", "5"]
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh", *arguments], env=environment, capture_output=True)
    assert done.returncode == 4
    began, asked = zip(*(line.split(" ", 1) for line in (tmp_path / "count").read_text().splitlines()), strict=True)
    assert len(set(began)) == 1  # the minutes are counted from the first
    assert asked[0] == "benchmarks/gpu.py --retry --networks a network --minutes 5"
    again = "benchmarks/gpu.py --networks a network --minutes 5"  # what failed before is tried again once
    assert [line.replace(" --tests none", "") for line in asked[1:]] == [again] * 3
    assert all(line.endswith("--tests none") for line in asked[1:])


def test_a_library_that_ends_every_process_ends_the_shell_script_too(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho >> "$COUNT"\nkill -SEGV $$\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "COUNT": str(tmp_path / "count")}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], env=environment, capture_output=True)
    assert done.returncode == 139
    assert len((tmp_path / "count").read_text().splitlines()) == 21


def test_the_minutes_are_those_of_all_processes_together(gpu, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv(gpu.BEGAN, str(time.time() - 121))
    assert gpu.main([*QUICK, "--output", str(tmp_path / "try.json"), "--minutes", "2"]) == 0
    assert rows_of(tmp_path / "try.json") == []
    assert "2 minutes are over" in capsys.readouterr().err


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


ONE_UNIT = ["--precisions", "fp32", "--batches", "1", "--networks", "tiny-g8"]


def failing_with(gpu, monkeypatch, way):
    """Have measuring fail whenever this way takes part; return the ways of each attempt."""
    real, attempts = gpu.measure, []

    def measure(contenders, batches, seconds):
        attempts.append([contender.runtime for contender in contenders])
        if way in attempts[-1]:
            raise MemoryError("out of memory")
        return real(contenders, batches, seconds)

    monkeypatch.setattr(gpu, "measure", measure)
    return attempts


def test_where_the_ways_fail_in_turns_each_is_measured_alone(gpu, tmp_path: Path, monkeypatch):
    attempts = failing_with(gpu, monkeypatch, "torch-eager")
    output = tmp_path / "try.json"
    assert gpu.main([*QUICK, "--output", str(output), *ONE_UNIT]) == 0
    assert attempts == [["torch-eager", "onnxruntime-cpu"], ["torch-eager"], ["onnxruntime-cpu"]]
    failed, measured = rows_of(output)
    assert failed["failed"] == "while it was measured: MemoryError: out of memory"
    assert measured["way"] == "onnxruntime-cpu"
    assert measured["p50_ms"] > 0


def test_a_gpu_that_breaks_in_turns_leaves_the_ways_to_other_processes_one_by_one(gpu, tmp_path: Path, monkeypatch):
    attempts = failing_with(gpu, monkeypatch, "torch-eager")
    monkeypatch.setattr(gpu, "_usable", lambda setting: "torch-eager" not in attempts[-1])
    arguments = [*QUICK, "--output", str(tmp_path / "try.json"), *ONE_UNIT]
    assert gpu.main(arguments) == gpu.AGAIN
    assert rows_of(tmp_path / "try.json") == []
    assert gpu.main(arguments) == gpu.AGAIN
    assert [row["way"] for row in rows_of(tmp_path / "try.json")] == ["torch-eager"]
    assert gpu.main(arguments) == 0
    assert [row["way"] for row in rows_of(tmp_path / "try.json")] == ["torch-eager", "onnxruntime-cpu"]
    assert attempts[1:] == [["torch-eager"], ["onnxruntime-cpu"]]


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


def test_ways_that_end_the_process_in_turns_are_measured_alone_by_the_next(gpu, tmp_path: Path, monkeypatch):
    real, attempts = gpu.measure, []

    def measure(contenders, batches, seconds):
        attempts.append([contender.runtime for contender in contenders])
        if "torch-eager" in attempts[-1]:
            raise Ended
        return real(contenders, batches, seconds)

    monkeypatch.setattr(gpu, "measure", measure)
    arguments = [*QUICK, "--output", str(tmp_path / "try.json"), *ONE_UNIT]
    for _ in range(2):
        with pytest.raises(Ended):
            gpu.main(arguments)
    assert gpu.main(arguments) == 0
    assert attempts == [["torch-eager", "onnxruntime-cpu"], ["torch-eager"], ["onnxruntime-cpu"]]
    failed, measured = rows_of(tmp_path / "try.json")
    assert (failed["way"], failed["failed"]) == ("torch-eager", "it ended the process")
    assert measured["way"] == "onnxruntime-cpu"


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
    machine = {**document["machine"], "memory_bytes": 1, "system": "another kernel", "cores": 99, "python": "3.10.0"}
    output.write_text(json.dumps({**document, "machine": machine}))
    assert gpu.main(arguments) == 0  # none of it changes a number of a GPU
    output.write_text(json.dumps({**document, "machine": {**machine, "versions": {}}}))
    with pytest.raises(SystemExit, match="measured with another machine: move it away"):
        gpu.main(arguments)
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


def test_gpu_tests_run_where_not_all_is_installed_that_the_tests_want(gpu, tmp_path: Path, monkeypatch):
    """No pytest-timeout, whose option is set; a file that cannot be collected; a warning of another version."""
    (tmp_path / "test_broken.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "test_some.py").write_text(
        "import warnings\nimport pytest\n@pytest.mark.gpu\ndef test_it():\n    warnings.warn('old', stacklevel=1)\n"
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    tests = gpu.run_tests(str(tmp_path))
    assert "1 passed" in tests["summary"]
    assert [line.split()[0] for line in tests["told"]] == ["ERROR"]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest" else find(name))
    assert gpu.run_tests("tests") == {"exit_code": None, "summary": "not run: pytest is not installed", "told": []}
    monkeypatch.setattr(gpu, "run_tests", lambda where: {"exit_code": None, "summary": "not run", "told": []})
    assert gpu.main([*QUICK[:1], "--output", str(tmp_path / "try.json"), "--minutes", "1e-9"]) == 0


def test_what_answers_most_is_measured_first(gpu):
    ways = importlib.import_module("gpu_ways")
    options = gpu.options_of([])
    found = [(one.kind, batch, precision) for one, precision, batch, _ in gpu.units(options, list(ways.WAYS))]
    first = list(dict.fromkeys(found))
    assert first[:6] == [("groups", 64, name) for name in ("fp16", "int8", "int8-1x1", "fp32", "tf32", "bf16")]
    assert first.index(("groups", 256, "fp16")) < first.index(("published", 64, "fp16"))


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
    ways._eager(ways.Setting("cpu", None, 1), opened, "bf16", 1).timed()
    for name, value in opened.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8", "int8-1x1", "fp8-1x1", "int8-cpu"])
def test_every_precision_has_a_file(gpu, precision):
    onnx = pytest.importorskip("onnx")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    onnx.checker.check_model(onnx.load_from_string(ways.Opened(networks.tiny_networks()[1]).onnx(precision)))


def test_models_of_torch_take_the_images_that_all_take(gpu):
    """FP32, colour by colour: what a way converts them to is a part of what is timed."""
    import torch

    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    opened, seen = ways.Opened(networks.tiny_networks()[0]), []
    opened.model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    ways._eager(ways.Setting("cpu", None, 1), opened, "bf16", 2).timed()
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    images = torch.from_numpy(opened.images(2))
    torch.testing.assert_close(seen[0].float(), images, rtol=1e-2, atol=1e-2)


def test_ranges_are_those_of_the_activations_and_stand_ins_where_they_cannot_be_measured(gpu, monkeypatch):
    pytest.importorskip("onnx")
    ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
    measured = ways.Opened(networks.tiny_networks()[0]).ranges
    assert len({(one.low, one.high) for one in measured.values()}) > 3
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    there = ways.Opened(networks.tiny_networks()[0]).ranges
    assert there.keys() == measured.keys()
    assert {(one.low, one.high) for one in there.values()} == {(-4.0, 4.0)}


class TestTensorrt:
    """Engines by the session that serves them, on a machine that is not there."""

    @pytest.fixture
    def computer(self, fake_machine, monkeypatch, tmp_path):
        return fake_machine.install(monkeypatch, tmp_path / "cache")

    @pytest.fixture
    def prepare(self, gpu, computer):
        ways, networks = importlib.import_module("gpu_ways"), importlib.import_module("gpu_networks")
        opened = ways.Opened(networks.tiny_networks()[0])
        return lambda precision: ways._tensorrt(ways.Setting("cuda", computer.gpu, 1), opened, precision, 2)

    @pytest.mark.parametrize("precision", ["fp16", "int8", "tf32"])
    def test_all_that_a_graph_needs_lives_as_long_as_what_is_timed(self, computer, prepare, precision):
        prepared = prepare(precision)
        gc.collect()
        before = computer.cuda.replayed
        assert prepared.timed() > 0  # the fake's graphs fail whose context has gone
        assert prepared.timed() > 0
        assert computer.cuda.replayed == before + 2
        assert prepared.facts["runtime"] == "tensorrt 11.4.0.106"
        assert prepared.facts["graph"] == "captured"
        assert prepared.facts["unaccounted"] == []
        assert set(prepared.facts["types"]) <= {"fp16", "int8", "fp32"}

    def test_timings_of_kernels_are_kept_from_one_engine_to_the_next(self, prepare, tmp_path):
        prepare("fp16")
        assert list((tmp_path / "cache").rglob("*.timing"))

    def test_an_engine_of_another_type_than_asked_is_a_row_that_failed(self, gpu, computer, prepare, tmp_path):
        computer.trt.convolutions = lambda name, kind: "Float"
        with pytest.raises(ProofError, match="fp16 asked, fp32 built"):
            prepare("fp16")

    def test_tensorrt_rtx_that_does_not_build_for_the_gpu_is_said_once(self, gpu, computer, monkeypatch):
        rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra [trt-rtx])")
        from regnet_deploy.engines import library

        ways = importlib.import_module("gpu_ways")
        setting = ways.Setting("cuda", computer.gpu, 1)
        assert ways._no_tensorrt(setting) is None
        monkeypatch.setattr(library, "find_library", lambda gpu: library.Library(rtx, "tensorrt-rtx"))
        assert ways._no_tensorrt(setting) == (
            f"tensorrt-rtx {rtx.__version__} does not build for NVIDIA H100 80GB HBM3 (compute capability 9.0)"
        )
        assert ways._absent("a_package.that_is_not_there")(setting) == "a_package.that_is_not_there not installed"


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["torch-eager", "onnxruntime-cuda", "tensorrt"])
def test_a_tiny_network_is_measured_on_the_gpu(gpu, way, tmp_path: Path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
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
