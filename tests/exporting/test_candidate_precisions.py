import numpy as np
import pytest

from regnet_deploy.exporting import candidate_precisions as module
from regnet_deploy.exporting.candidate_precisions import candidate_precisions, measured_candidates
from regnet_deploy.exporting.precision import PRECISIONS
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


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_S", 0.001)
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_WINDOW_S", 0.001)
    monkeypatch.setattr("regnet_deploy.profiling.latency.WARMUP_LIMIT_S", 0.01)
    assert module.ROUNDS == ROUNDS


def test_each_is_measured_at_each_batch_and_keeps_what_the_judge_said():
    first, second, told = Counting(), Counting(), []
    accuracy = {"drop": 0.1}
    runnable = {
        "onnx-fp32": (first, {"precision": "fp32"}),
        "trt-fp16": (second, {"precision": "fp16", "accuracy": accuracy}),
    }
    found = measured_candidates(runnable, (1, 3), 0.001, 8, 1, lambda done, total: told.append((done, total)))
    assert [(one.name, one.precision, one.accuracy) for one in found] == [
        ("onnx-fp32", "fp32", None),
        ("trt-fp16", "fp16", accuracy),
    ]
    assert all([row.batch for row in one.measured] == [1, 3] for one in found)
    assert all(row.variant == one.name for one in found for row in one.measured)
    assert first.shapes == second.shapes == {(1, 3, 8, 8), (3, 3, 8, 8)}
    assert told == [(done, len(told)) for done in range(2 * 2 * (1 + ROUNDS))]
