from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.errors import ProofError
from regnet_deploy.exporting import calibration_methods
from regnet_deploy.exporting.calibration import METHODS, observe_activations
from regnet_deploy.exporting.calibration_images import CalibrationSet
from regnet_deploy.exporting.calibration_methods import choose_ranges
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.quantization import TensorRange


@pytest.fixture
def images(golden):
    return CalibrationSet(golden.golden.images, {"images": 16, "digest": "abc", "seed": 0})


@pytest.fixture
def observed(source, images):
    plain = source.onnx(PRECISIONS["fp32"])
    return observe_activations(
        plain, source.tensors(), images.pixels, source.preprocessing, lambda done, total: None, 1
    )


def chosen(source, images, observed, judge, precision="int8", steps=None):
    told = [] if steps is None else steps
    return choose_ranges(source, PRECISIONS[precision], images, observed, judge, False, told.append)


@pytest.fixture
def spoil(monkeypatch):
    """Have these methods give ranges that clip nearly everything."""

    def spoil(*methods):
        whole = calibration_methods.activation_ranges

        def spoiled(observed, method):
            found = whole(observed, method)
            return {name: TensorRange(-1e-3, 1e-3) for name in found} if method in methods else found

        monkeypatch.setattr(calibration_methods, "activation_ranges", spoiled)

    return spoil


@pytest.mark.parametrize("precision", ["int8", "int8-1x1", "int8-cpu", "fp8-1x1"])
def test_every_method_is_tried_and_told_and_the_set_is_recorded(source, images, observed, judge, precision):
    steps = []
    found = chosen(source, images, observed, judge, precision, steps)
    assert steps == [f"{precision}: ranges by {method}" for method in METHODS]
    assert set(found.part["tried"]) == set(METHODS)
    assert (found.part["images"], found.part["digest"]) == (16, "abc")
    assert found.ranges == calibration_methods.activation_ranges(observed, found.part["method"])


@pytest.mark.parametrize("good", METHODS)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_one_that_answers_best_is_kept(source, images, observed, judge, judge_with_labels, spoil, good, labelled):
    spoil(*(method for method in METHODS if method != good))
    found = chosen(source, images, observed, judge_with_labels if labelled else judge)
    assert found.part["method"] == good
    tried = found.part["tried"]
    assert all(tried[good]["top1"] >= one["top1"] for one in tried.values())


def test_of_equal_ones_the_smaller_error_decides(source, images, observed, judge, monkeypatch):
    errors = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(calibration_methods, "_figures", lambda *given: {"top1": 0.9, "mean_abs_error": next(errors)})
    assert chosen(source, images, observed, judge).part["method"] == METHODS[1]


def test_a_method_whose_logits_are_not_finite_loses(source, images, observed, judge, monkeypatch):
    figures = iter([None, {"top1": 0.1, "mean_abs_error": 9.0}, None])
    monkeypatch.setattr(calibration_methods, "_figures", lambda *given: next(figures))
    part = chosen(source, images, observed, judge).part
    assert (part["method"], set(part["tried"])) == (METHODS[1], {METHODS[1]})


@pytest.mark.parametrize("labelled", [False, True])
def test_where_no_method_gives_finite_logits_it_is_one_line(
    with_weights, images, observed, judge, judge_with_labels, labelled
):
    broken = with_weights(head__fc__bias=lambda bias: bias + np.float32(np.inf))
    with pytest.raises(ProofError, match=r"^int8: with no method's ranges \(minmax, entropy, percentile\) are"):
        chosen(broken, images, observed, judge_with_labels if labelled else judge)


def test_methods_are_compared_on_a_part_of_the_validation_images(
    source, images, observed, judge_with_labels, monkeypatch
):
    monkeypatch.setattr(calibration_methods, "_COMPARED", 10)
    seen = []
    measure = calibration_methods.measure_accuracy
    monkeypatch.setattr(
        calibration_methods, "measure_accuracy", lambda *given: seen.append(measure(*given).images) or measure(*given)
    )
    chosen(source, images, observed, replace(judge_with_labels))
    assert seen == [10, 10, 10]
