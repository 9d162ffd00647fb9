"""What is doubted of a result of `tune`, and what is not."""

from __future__ import annotations

import contextlib

import pytest

from regnet_deploy.bundle.measurements import ServerSetting, TuningRow
from regnet_deploy.load_testing.doubts import doubts
from regnet_deploy.load_testing.settings import SearchSpace
from regnet_deploy.load_testing.tuning import LoadTrial, tune


def row(variant: str, rate: float, first_rate: float | None = None) -> TuningRow:
    return TuningRow(ServerSetting("onnxruntime", variant, 1, 2), rate, 10.0, 5, "", first_rate)


def test_a_winner_that_is_far_below_what_another_had_is_doubted():
    fp32, int8 = row("onnx-fp32", 94.0), row("onnx-int8-cpu", 80.0, first_rate=175.0)
    (doubt,) = doubts(fp32, [fp32, int8], 0.0, 2)
    assert doubt == (
        "onnx-int8-cpu by onnxruntime, 1 x 2 threads, batch 4, no delay had 175.0 images/s when it was tried, and the "
        "best has 94.0 now"
    )
    assert doubts(row("onnx-int8-cpu", 170.0), [fp32, row("onnx-int8-cpu", 170.0)], 0.0, 2) == []


@pytest.mark.parametrize(
    ("second", "contended", "doubted"),
    [(90.0, 1.0, True), (90.0, 0.1, False), (90.0, None, False), (40.0, 1.0, False)],
)
def test_near_rates_are_doubted_on_a_busy_machine(second: float, contended: float | None, doubted: bool):
    best, other = row("onnx-fp32", 100.0), row("onnx-int8-cpu", second)
    assert bool(doubts(best, [best, other], contended, 2)) is doubted


def test_other_settings_of_the_same_variant_are_no_reason_for_doubt():
    best = row("onnx-fp32", 100.0)
    assert doubts(best, [best, best.replace(setting=best.setting.replace(executors=2), rate=99.0)], 2.0, 2) == []


def test_a_machine_that_gets_busy_leaves_the_rates_that_settings_had():
    """INT8 bears a fifth while another server runs, as when finalists are measured in turns on a busy machine."""
    running = 0

    class Server:
        def __init__(self, setting: ServerSetting) -> None:
            self.is_int8 = setting.variant == "onnx-int8-cpu"

        @property
        def bears(self) -> float:
            return 100.0 if not self.is_int8 else 175.0 if running == 1 else 35.0

        def capacity(self) -> float:
            return self.bears

        def measure(self, rate: float) -> LoadTrial:
            return LoadTrial(rate, rate, 20 * rate / self.bears, 0)

    @contextlib.contextmanager
    def start(setting: ServerSetting):
        nonlocal running
        running += 1
        yield Server(setting)
        running -= 1

    pairs = [("onnxruntime", "onnx-fp32"), ("onnxruntime", "onnx-int8-cpu")]
    best, rows = tune(start, SearchSpace(pairs, [(1, 1)], max_batch=4, delays_ms=()), 20.0)
    assert best.rate < 50
    (doubt,) = doubts(best, rows, None, 2)
    assert float(doubt.split(" had ")[1].split()[0]) > 160
