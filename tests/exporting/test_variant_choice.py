"""Which variants are candidates, how they are measured, and which ones are kept."""

import math

import numpy as np
import pytest
from bundle_parts import latency
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.variant_choice import (
    VariantCandidate,
    candidate_precisions,
    measure_candidates,
    rank_variants,
)
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.profiling.latency import ROUNDS


@pytest.mark.parametrize(
    ("cuda", "engines", "names"),
    [
        (False, False, ["fp32", "fp16", "int8-cpu"]),
        (True, False, ["fp32", "fp16"]),
        (False, True, ["fp32", "fp16", "int8", "int8-1x1", "int8-cpu"]),
        (True, True, ["fp32", "fp16", "int8", "int8-1x1"]),
    ],
)
def test_what_is_tried_is_what_can_be_fast_here_and_nothing_that_is_opt_in(cuda, engines, names):
    found = [precision.name for precision in candidate_precisions(cuda=cuda, engines=engines)]
    assert found == [name for name in PRECISIONS if name in names]


class Counting:
    runtime, device, input, input_name, output_name = "onnxruntime 1", "cpu", "float32", "images", "logits"

    def __init__(self):
        self.shapes = set()

    def run(self, images):
        self.shapes.add(images.shape)
        return np.zeros((len(images), 3), np.float32)


@pytest.mark.usefixtures("short_warmup")
def test_each_is_measured_at_each_batch(recorded_progress):
    recorded_progress.step("measuring")
    first, second = Counting(), Counting()
    sessions = {
        "onnx-fp32": (first, "fp32"),
        "trt-fp16": (second, "fp16"),
    }
    found = measure_candidates(sessions, (1, 3), 0.001, default_preprocessing(8), recorded_progress)
    assert [(one.name, one.precision) for one in found] == [("onnx-fp32", "fp32"), ("trt-fp16", "fp16")]
    assert all([row.batch for row in one.latency] == [1, 3] for one in found)
    assert all(row.variant == one.name for one in found for row in one.latency)
    assert first.shapes == second.shapes == {(1, 3, 8, 8), (3, 3, 8, 8)}
    turns = 2 * 2 * (1 + ROUNDS)
    assert [update[1:3] for update in recorded_progress.updates] == [(turn, turns) for turn in range(turns)]


def rows(*p50, runtime="onnxruntime 1.32.0", device="cpu", precision="fp32"):
    """Latencies at batch 1, 8, ..., with these medians in ms."""
    return tuple(
        latency("v", batch, ms, runtime=runtime, device=device, precision=precision)
        for batch, ms in zip((1, 8), p50, strict=False)
    )


def candidate(precision, *p50, rejected=None, **place):
    return VariantCandidate(f"onnx-{precision}", precision, rejected, None, rows(*p50, precision=precision, **place))


def results(*candidates):
    return {one.variant: one.result for one in rank_variants(candidates)}


def test_the_fastest_is_kept_and_every_loser_has_the_ratio():
    outcomes = rank_variants([candidate("fp32", 12.0), candidate("fp16", 24.0), candidate("int8-cpu", 6.0)])
    assert [one.result for one in outcomes] == ["slower", "slower", "kept"]
    assert outcomes[0].reason == "takes 2.00 times as long as onnx-int8-cpu"
    assert outcomes[1].reason == "takes 4.00 times as long as onnx-int8-cpu"
    assert "the best of 3 on onnxruntime 1.32.0, cpu: 2.00 times as fast as onnx-fp32" in outcomes[2].reason


def test_each_runtime_and_device_keeps_its_own():
    got = results(
        candidate("fp32", 12.0),
        candidate("int8-cpu", 6.0),
        VariantCandidate("trt-fp32", "fp32", None, None, rows(1.0, runtime="tensorrt 11.4", device="H100")),
        VariantCandidate("trt-fp16", "fp16", None, None, rows(0.5, runtime="tensorrt 11.4", device="H100")),
    )
    assert got == {"onnx-fp32": "slower", "onnx-int8-cpu": "kept", "trt-fp32": "slower", "trt-fp16": "kept"}


def test_the_fastest_of_all_runtimes_is_said_to_run_by_default():
    runs = rows(3.0, runtime="openvino 2026.4.1")
    outcomes = rank_variants([candidate("fp32", 12.0), VariantCandidate("openvino-bf16", "bf16", None, None, runs)])
    assert [one.reason.endswith("; the fastest of all, which runs by default") for one in outcomes] == [False, True]


def test_a_refused_candidate_never_wins_however_fast():
    outcomes = rank_variants([candidate("fp32", 12.0), candidate("int8-cpu", 0.1, rejected="loses 3 points")])
    assert [(one.result, one.reason) for one in outcomes] == [
        ("kept", "the only one that onnxruntime 1.32.0 ran on cpu"),
        ("refused", "loses 3 points"),
    ]


def test_what_this_machine_does_not_run_is_said_not_to_be_measured():
    assert results(candidate("fp32", 12.0), candidate("int8")) == {"onnx-fp32": "kept", "onnx-int8": "unmeasured"}


def test_less_precision_must_be_worth_five_percent():
    outcomes = rank_variants([candidate("fp32", 10.0), candidate("fp16", 9.7)])
    assert [one.result for one in outcomes] == ["kept", "slower"]
    assert outcomes[1].reason == "takes 3.0% less time than onnx-fp32, and a less precise variant must save 5%"
    assert "more precise than onnx-fp16, which is less than 5% faster" in outcomes[0].reason
    assert results(candidate("fp32", 10.0), candidate("fp16", 9.4))["onnx-fp16"] == "kept"


def test_what_is_more_precise_and_slower_loses_by_its_time_alone():
    outcomes = rank_variants([candidate("fp32", 100.0), candidate("fp16", 96.0), candidate("int8-cpu", 94.0)])
    assert [one.result for one in outcomes] == ["slower", "slower", "kept"]
    assert outcomes[1].reason == "takes 1.02 times as long as onnx-int8-cpu"


def test_int8_of_1x1_alone_is_the_more_precise():
    assert results(candidate("int8", 5.0), candidate("int8-1x1", 4.9))["onnx-int8-1x1"] == "kept"
    assert results(candidate("int8", 4.8), candidate("int8-1x1", 5.0))["onnx-int8-1x1"] == "kept"


def test_what_was_asked_for_by_name_is_kept_though_it_loses():
    outcomes = rank_variants([candidate("fp32", 9.0), candidate("fp16", 18.0)], {"onnx-fp16"})
    assert [one.result for one in outcomes] == ["kept", "kept"]
    assert outcomes[1].reason == "requested by name, although it takes 2.00 times as long as onnx-fp32"


def test_all_batch_sizes_count_alike():
    """Twice as fast at batch 1, four times as slow at batch 8: not worth it."""
    assert candidate("fp32", 4.0, 16.0).ms_per_image == pytest.approx(math.sqrt(4.0 * 2.0))
    assert results(candidate("fp32", 4.0, 16.0), candidate("fp16", 2.0, 64.0))["onnx-fp32"] == "kept"


@given(st.dictionaries(st.sampled_from(["fp32", "fp16", "bf16", "int8", "int8-1x1"]), st.floats(0.1, 100), min_size=1))
def test_one_is_kept_and_none_is_much_faster(medians):
    outcomes = rank_variants([candidate(precision, ms) for precision, ms in medians.items()])
    (kept,) = (one for one in outcomes if one.result == "kept")
    assert all(ms >= 0.95 * medians[kept.precision] * 0.999 for ms in medians.values())


def test_an_outcome_is_json():
    (outcome,) = rank_variants([candidate("fp32", 3.0)])
    data = outcome.to_json()
    assert (data["variant"], data["result"], data["latency"][0]["p50_ms"]) == ("onnx-fp32", "kept", 3.0)
