"""Networks are exported with seeded weights and measured by a real runtime."""

import hashlib
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from regnet_deploy.errors import RegnetDeployError, UsageError
from regnet_deploy.latency import measuring
from regnet_deploy.latency.fresh_process import measure_in_fresh_process
from regnet_deploy.latency.measuring import Setup, measure_networks, seeded_onnx
from regnet_deploy.profiling.latency import first_maps_bytes
from regnet_deploy.space.network import Network

SMALL = Network((1, 1), (16, 32), (8, 8), (1.0, 1.0), 0.25, stem_stride=1)
LARGE = Network((2, 6), (64, 256), (16, 16), (1.0, 1.0), 0.25, stem_stride=1)


@pytest.mark.parametrize("precision", ["fp32", "int8-cpu"])
def test_the_larger_network_takes_longer_and_the_record_says_how_it_was_run(precision: str) -> None:
    setup = Setup(precision=precision, resolution=32, classes=10, batch=2, threads=1)
    small, large = measure_networks([SMALL, LARGE], setup, seconds=0.2)
    assert 0 < small.times.p50_ms < large.times.p50_ms
    assert small.network == SMALL
    assert (small.resolution, small.classes, small.batch) == (32, 10, 2)
    assert (small.execution.runtime, small.execution.precision, small.execution.threads) == (
        "onnxruntime",
        precision,
        1,
    )
    assert small.protocol.interleaved_with == 1
    assert small.artifact_sha256 == hashlib.sha256(seeded_onnx(SMALL, setup)).hexdigest()


def test_openvino_computes_in_the_type_that_is_asked_for() -> None:
    pytest.importorskip("openvino")
    from regnet_deploy.runtimes.openvino_session import bf16_unsupported_reason

    setup = Setup(runtime="openvino", precision="bf16", resolution=32, classes=10, threads=1)
    if bf16_unsupported_reason():
        with pytest.raises(UsageError, match="bf16 was requested"):
            measure_networks([SMALL], setup, seconds=0.1)
    else:
        (measured,) = measure_networks([SMALL], setup, seconds=0.1)
        assert measured.execution.precision == "bf16"
        assert measured.execution.runtime == "openvino"


def test_a_process_of_its_own_measures_the_same_file() -> None:
    setup = Setup(resolution=32, classes=10, threads=1)
    alone = measure_in_fresh_process(SMALL, setup, seconds=0.1)
    (here,) = measure_networks([SMALL], setup, seconds=0.1)
    assert alone.artifact_sha256 == here.artifact_sha256
    assert alone.execution == here.execution
    assert alone.machine == here.machine


def test_a_failure_in_the_other_process_is_one_line() -> None:
    plain = Network((1,), (16,), (16,), (1.0,), block="v")
    broken = Setup(resolution=32, classes=10, threads=1, device="cuda")
    with pytest.raises(RegnetDeployError, match=r"the process that measures the chosen network failed: .*GPU"):
        measure_in_fresh_process(plain, broken, seconds=0.1)


def test_a_batch_that_does_not_fit_into_memory_is_refused_before_it_is_allocated() -> None:
    setup = Setup(resolution=2048, classes=10, batch=1_000_000, threads=1)
    with pytest.raises(UsageError, match=r"--batch 1000000 needs more than .* give at most --batch"):
        measure_networks([SMALL], setup)


def test_fewer_networks_take_turns_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(resolution=32, classes=10, batch=2, threads=1)
    needed = setup.batch * first_maps_bytes(SMALL, setup.resolution)
    monkeypatch.setattr(measuring, "available_memory", lambda: 4 * needed)
    found = measure_networks([SMALL] * 3, setup, seconds=0.05)
    assert [each.protocol.interleaved_with for each in found] == [1, 1, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runtime": "tflite"}, "runtime must be one of onnxruntime, openvino, got tflite"),
        ({"precision": "int4"}, "precision must be one of"),
        ({"precision": "bf16"}, "give --runtime openvino"),
        ({"precision": "fp16"}, "slow on a CPU"),
        ({"runtime": "openvino", "device": "cuda"}, "runs on the CPU"),
        ({"precision": "int8-cpu", "device": "cuda"}, "is for CPUs"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_setups_that_cannot_run_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Setup(**fields)
