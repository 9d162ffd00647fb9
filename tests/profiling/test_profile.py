import math

import pytest
from bundle_parts import engine, engine_variant

from regnet_deploy.bundle import Manifest, open_bundle, update_bundle
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.profiling import profile as profile_module
from regnet_deploy.profiling.latency import ROUNDS
from regnet_deploy.profiling.profile import ProfileOptions, profile

QUICK = ProfileOptions(batches=(1, 2), seconds=0.01, threads=1, device="cpu")


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch, short_warmup):
    monkeypatch.setattr(profile_module, "busy_cores", lambda: 0.0)


@pytest.fixture
def run(recorded_progress):
    """Return a function: profile a bundle and return the part and the messages."""

    def run(path, options=QUICK):
        part = profile(path, options, recorded_progress)
        return part, recorded_progress.messages

    return run


def test_the_part_holds_counts_latencies_and_machine_and_is_in_the_bundle(run, exported_bundle):
    part, notes = run(exported_bundle)
    stored = open_bundle(exported_bundle)
    assert stored.profile == part
    assert part.complexity.closed_form.equal is True
    assert [stage.stage for stage in stored.profile.complexity.stages] == ["stem", "s1", "s2", "head"]
    assert "profile" in stored.parts["environment"]
    assert notes == []


def test_a_variant_that_is_wrong_here_is_not_measured_and_that_is_said(run, disagreeing_bundle):
    part, notes = run(disagreeing_bundle)
    assert {row.variant for row in part.latency} == {None}
    assert [note.split(":")[0] for note in notes] == [
        "onnx-fp32 is not measured",
        "onnx-fp32-uint8 is not measured",
    ]
    assert "does not agree with its golden set" in notes[0]


def test_the_model_and_every_proved_variant_are_measured_at_every_batch(run, exported_bundle):
    part, _ = run(exported_bundle)
    assert [(row.variant, row.batch) for row in part.latency] == [
        (variant, batch) for batch in (1, 2) for variant in (None, "onnx-fp32", "onnx-fp32-uint8")
    ]
    for row in part.latency:
        assert row.runtime.startswith("torch " if row.variant is None else "onnxruntime ")
        assert (row.device, row.precision, row.threads) == ("cpu", "fp32", 1)
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms


def test_a_variant_without_proof_is_not_measured_and_that_is_said(run, exported_bundle):
    variants = open_bundle(exported_bundle).variants
    variants["onnx-fp32"] = variants["onnx-fp32"].replace(proof=None)
    variants["rtx-fp32"] = engine_variant(engine(), runtime="tensorrt-rtx", precision="fp32")
    update_bundle(exported_bundle, Manifest(variants=variants))
    part, notes = run(exported_bundle)
    assert {row.variant for row in part.latency} == {None, "onnx-fp32-uint8"}
    assert [note.split()[0] for note in notes] == ["onnx-fp32", "rtx-fp32"]


def test_a_busy_machine_is_recorded_and_said(run, exported_bundle, monkeypatch):
    monkeypatch.setattr(profile_module, "busy_cores", lambda: 1.5)
    part, notes = run(exported_bundle)
    assert part.machine.busy_cores == 1.5
    assert any("keep 1.5 of" in note for note in notes)


def test_progress_receives_as_many_turns_as_announced(run, exported_bundle, recorded_progress):
    run(exported_bundle)
    turns = 2 * 3 * (1 + ROUNDS)
    assert [update[1:3] for update in recorded_progress.updates] == [(turn, turns) for turn in range(turns)]


def test_a_batch_beyond_memory_is_refused_before_anything_is_allocated(run, exported_bundle):
    with pytest.raises(UsageError, match=r"--batch 1000000000 needs more than .* GiB.*give at most --batch \d+"):
        run(exported_bundle, ProfileOptions((1, 10**9), 0.01, 1, "cpu"))


def test_cuda_where_there_is_none_is_one_line(run, exported_bundle, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device here"):
        run(exported_bundle, ProfileOptions((1,), 0.01, 1, "cuda"))


def test_a_bundle_whose_weights_change_meanwhile_is_left_alone(run, exported_bundle, monkeypatch):
    measure = profile_module.measure_latency

    def measure_while_somebody_trains(*arguments):
        update_bundle(exported_bundle, {}, {"weights.safetensors": b"new"})
        return measure(*arguments)

    monkeypatch.setattr(profile_module, "measure_latency", measure_while_somebody_trains)
    with pytest.raises(BundleError, match="changed by another command"):
        run(exported_bundle)
    assert "profile" not in open_bundle(exported_bundle).parts


def test_an_engine_that_fits_is_measured_where_it_runs(run, with_h100_engine):
    """PyTorch sees no GPU here, which is nothing to an engine."""
    part, notes = run(with_h100_engine, ProfileOptions((1, 2), 0.01, 1, "auto"))
    assert notes == []
    rows = [row for row in part.latency if row.variant == "trt-fp32"]
    assert [row.batch for row in rows] == [1, 2]
    assert {(row.runtime, row.device) for row in rows} == {("tensorrt 11.4.0.106", "cuda:0 (NVIDIA H100 80GB HBM3)")}


@pytest.mark.parametrize(
    ("device", "gpu", "says"),
    [
        ("cpu", "H100", "it is a tensorrt engine, which runs on a GPU, and the CPU was requested"),
        ("auto", "A100", "it was built for NVIDIA H100"),
        ("auto", None, "the NVIDIA driver shows no GPU"),
    ],
)
def test_an_engine_that_is_not_for_this_is_not_measured_and_that_is_said(
    run, with_h100_engine, computer, fake_machine, device, gpu, says
):
    computer.driver.gpu = gpu and getattr(fake_machine, gpu)
    part, (note,) = run(with_h100_engine, ProfileOptions((1,), 0.01, 1, device))
    assert note.startswith("trt-fp32 is not measured: ")
    assert says in note
    assert "trt-fp32" not in {row.variant for row in part.latency}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": ()}, "batch sizes must be 1 or more, not none"),
        ({"batches": (8, 0)}, "batch sizes must be 1 or more, not 8, 0"),
        ({"seconds": math.nan}, "at most 3600 s, not nan"),
        ({"seconds": math.inf}, "at most 3600 s, not inf"),
        ({"threads": 0}, "threads must be from 1 to 1024, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        ProfileOptions(**{"batches": (1,), "seconds": 1.0, "threads": None, "device": "cpu", **change})
