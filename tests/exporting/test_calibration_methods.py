from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.bundle.variants import CalibrationResult
from regnet_deploy.errors import ProofError
from regnet_deploy.exporting import calibration as module
from regnet_deploy.exporting.activation_ranges import METHODS
from regnet_deploy.exporting.calibration import CalibrationSet, Calibrator
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.progress import NoProgress


@pytest.fixture
def images(golden):
    return CalibrationSet(golden.golden.images, "golden images", "none", 0, "abc")


def chosen(source, images, gate, progress=None, precision="int8"):
    calibrator = Calibrator(lambda: images, source, progress or NoProgress())
    return calibrator.choose_ranges(PRECISIONS[precision], gate)


@pytest.fixture
def spoil(monkeypatch):
    """Have these methods give ranges that clip nearly everything."""

    def spoil(*methods):
        whole = module.compute_ranges

        def spoiled(observed, method):
            found = whole(observed, method)
            return {name: TensorRange(-1e-3, 1e-3) for name in found} if method in methods else found

        monkeypatch.setattr(module, "compute_ranges", spoiled)

    return spoil


@pytest.mark.parametrize("precision", ["int8", "int8-1x1", "int8-cpu", "fp8-1x1"])
def test_every_method_is_tried_and_told_and_the_set_is_recorded(source, images, gate, recorded_progress, precision):
    found = chosen(source, images, gate, recorded_progress, precision)
    steps = [description for description, _ in recorded_progress.steps]
    assert steps == [
        "calibration images",
        "activations of the calibration images",
        *(f"{precision}: ranges by {method}" for method in METHODS),
    ]
    assert set(found.calibration.tried) == set(METHODS)
    assert (found.calibration.images, found.calibration.digest) == (16, "abc")
    observed = Calibrator(lambda: images, source, NoProgress()).observed
    assert found.ranges == module.compute_ranges(observed, found.calibration.method)


@pytest.mark.parametrize("good", METHODS)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_one_that_answers_best_is_kept(source, images, gate, validating_gate, spoil, good, labelled):
    spoil(*(method for method in METHODS if method != good))
    found = chosen(source, images, validating_gate if labelled else gate)
    assert found.calibration.method == good
    tried = found.calibration.tried
    assert all(tried[good].top1 >= one.top1 for one in tried.values())


def test_of_equal_ones_the_smaller_error_decides(source, images, gate, monkeypatch):
    errors = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(module, "_figures", lambda *given: CalibrationResult(0.9, next(errors)))
    assert chosen(source, images, gate).calibration.method == METHODS[1]


def test_a_method_whose_logits_are_not_finite_loses(source, images, gate, monkeypatch):
    figures = iter([None, CalibrationResult(0.1, 9.0), None])
    monkeypatch.setattr(module, "_figures", lambda *given: next(figures))
    calibration = chosen(source, images, gate).calibration
    assert (calibration.method, set(calibration.tried)) == (METHODS[1], {METHODS[1]})


@pytest.mark.parametrize("labelled", [False, True])
def test_where_no_method_gives_finite_logits_it_is_one_line(with_weights, images, gate, validating_gate, labelled):
    broken = with_weights(head__fc__bias=lambda bias: bias + np.float32(np.inf))
    with pytest.raises(
        ProofError,
        match=r"^int8: the logits are not finite with the ranges of any method \(minmax",
    ):
        chosen(broken, images, validating_gate if labelled else gate)


def test_methods_are_compared_on_a_part_of_the_validation_images(source, images, validating_gate, monkeypatch):
    monkeypatch.setattr(module, "_COMPARED", 10)
    seen = []
    measure = module.measure_accuracy
    monkeypatch.setattr(
        module, "measure_accuracy", lambda *given: seen.append(measure(*given).images) or measure(*given)
    )
    chosen(source, images, replace(validating_gate))
    assert seen == [10, 10, 10]
