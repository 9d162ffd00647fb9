import itertools
import json
import math

import numpy as np
import pytest
from bundle_parts import proof
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from regnet_deploy.bundle.variants import Gate
from regnet_deploy.errors import BundleError, UsageError
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.runtimes.gates import (
    GATES,
    gate_of,
    gate_to_serve,
    gates_with_overrides,
    is_standard,
    logit_spread,
    parse_gate_limit,
    scaled_gate,
)
from regnet_deploy.runtimes.golden_set import compare

GATE = Gate(atol=1e-3, rtol=1e-2)
logits = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-100, 100, width=32)
)
positive = st.floats(0, 1e6) | st.just(math.inf)
gates = st.builds(
    Gate,
    atol=positive,
    rtol=st.floats(0, 1e6),
    mean=positive,
    cosine=st.floats(-1, 1),
    top1=st.floats(0, 1),
    worst=positive,
)


def test_every_precision_has_a_gate_and_only_known_ones():
    assert list(GATES) == list(PRECISIONS)
    assert gate_of("fp32") == Gate(1e-4, 1e-3, top1=1.0)
    with pytest.raises(BundleError, match=r"'int4' is not known .* pip install --upgrade"):
        gate_of("int4")


def test_a_less_precise_precision_has_a_looser_gate():
    order = ["fp16", "bf16", "int8"]
    for tight, loose in itertools.pairwise(order):
        assert GATES[tight].within(GATES[loose])
        assert not GATES[loose].within(GATES[tight])


@given(gates)
def test_a_gate_is_read_back_from_json_as_it_was(gate: Gate):
    assert Gate.from_json(json.loads(json.dumps(gate.to_json(), allow_nan=False))) == gate


def test_limits_that_do_not_hold_are_null():
    assert Gate().to_json() == dict.fromkeys(("atol", "rtol", "mean", "cosine", "top1"))
    assert str(Gate()) == "anything finite"
    assert str(GATES["fp32"]) == "atol 0.0001, rtol 0.001, top-1 100.0%"
    assert str(GATES["int8"]) == "mean 15.00% of the spread, worst image 50.00% of the spread, top-1 90.0%"


@given(gates, gates)
def test_the_looser_of_two_gates_lets_through_what_either_does(a: Gate, b: Gate):
    loose = a.looser(b)
    assert a.within(loose)
    assert b.within(loose)
    assert loose == b.looser(a)
    assert a.within(b) == (loose == b.looser(b))


LOOSER = {"atol": 1e3, "rtol": 1.0, "mean": 10.0, "cosine": -0.5, "top1": 0.1, "worst": 10.0}


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("figure", Gate.__struct_fields__)
def test_a_proof_is_standard_where_it_is_as_tight_in_every_figure(precision: str, figure: str):
    standard = GATES[precision]
    assert is_standard(proof(gate=standard), precision)
    limits = {name: getattr(standard, name) for name in ("atol", "rtol", "mean", "worst")}
    halved = {name: limit / 2 for name, limit in limits.items() if limit is not None}
    tighter = Gate(**halved, cosine=1, top1=1)
    assert is_standard(proof(gate=tighter), precision)
    loose = standard.replace(**{figure: LOOSER[figure]})
    assert is_standard(proof(gate=loose), precision) is loose.within(standard)
    if getattr(standard, figure) != getattr(Gate(), figure):
        assert not is_standard(proof(gate=loose), precision)


@pytest.mark.parametrize(
    ("precision", "gate"),
    [
        ("fp32", Gate(atol=1e-4, rtol=1e-3, cosine=0.9999, top1=1.0)),
        ("fp16", Gate(mean=0.01, cosine=0.999, top1=0.98)),
        ("bf16", Gate(mean=0.08, cosine=0.998, top1=0.95)),
        ("int8-cpu", Gate(mean=0.15, cosine=0.95, top1=0.9)),
        ("int8-cpu", Gate(mean=0.1, cosine=0.98, top1=0.9)),
    ],
)
def test_a_proof_by_the_gate_of_an_earlier_version_is_standard_and_served_to_the_present_one(
    precision: str, gate: Gate
):
    assert is_standard(proof(gate=gate), precision)
    assert gate_to_serve(precision, proof(gate=gate)) == GATES[precision]


def test_a_proof_that_was_looser_than_the_gate_of_its_version_is_not_standard():
    loose = proof(gate=Gate(mean=0.15, cosine=0.5, top1=0.9))
    assert not is_standard(loose, "int8-cpu")
    assert gate_to_serve("int8-cpu", loose) == Gate(mean=0.15, top1=0.9)


def test_proofs_from_before_gates_are_not_standard():
    assert not is_standard(proof(gate=None), "fp32")
    assert not is_standard(None, "int8")


def test_a_variant_is_served_to_its_precisions_gate_or_what_is_looser_in_its_proofs():
    def of(**changes: float) -> Gate:
        return gate_to_serve("fp32", proof(gate=GATES["fp32"].replace(**changes)))

    assert of(atol=1e-7, rtol=1e-9, cosine=1.0) == GATES["fp32"]
    assert of(atol=0.5, rtol=1e-9) == GATES["fp32"].replace(atol=0.5)
    assert of(top1=0.5) == GATES["fp32"].replace(top1=0.5)
    for before_gates in (None, proof(gate=None)):
        assert gate_to_serve("int8", before_gates) == GATES["int8"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("int8:cosine=0.98", ("int8", "cosine", 0.98)),
        (" int8-1x1 : top1 = 1 ", ("int8-1x1", "top1", 1.0)),
        ("fp32:atol=1e-3", ("fp32", "atol", 1e-3)),
        ("fp32:rtol=0", ("fp32", "rtol", 0.0)),
        ("fp16:mean=1.5", ("fp16", "mean", 1.5)),
        ("bf16:cosine=-1", ("bf16", "cosine", -1.0)),
        ("int8:worst=0.3", ("int8", "worst", 0.3)),
    ],
)
def test_gates_are_options(text: str, read: tuple[str, str, float]):
    assert parse_gate_limit(text) == read


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is not of the form precision:figure=limit, such as int8:worst=0.3"),
        ("int8", "is not of the form"),
        ("int8:cosine", "is not of the form"),
        ("cosine=0.9", "is not of the form"),
        ("int9:cosine=0.9", r"no precision 'int9' \(did you mean int8\?\); there are fp32, fp16"),
        ("int8:cosin=0.9", r"no figure 'cosin' \(did you mean cosine\?\); there are atol, rtol, mean, worst, cosine"),
        ("int8:cosine=high", "cosine must be a number from -1 to 1, got 'high'"),
        ("int8:cosine=1.01", "cosine must be a number from -1 to 1"),
        ("int8:top1=98", "top1 must be a number from 0 to 1"),
        ("int8:top1=-0.1", "top1 must be a number from 0 to 1"),
        ("fp32:atol=-1", "atol must be a finite number, 0 or more"),
        ("fp32:atol=inf", "atol must be a finite number, 0 or more"),
        ("fp32:mean=nan", "mean must be a finite number, 0 or more"),
        ("fp32:rtol=", "rtol must be a finite number, 0 or more, got ''"),
    ],
)
def test_gates_that_cannot_be_read_are_one_line_with_the_value(text: str, line: str):
    with pytest.raises(UsageError, match=line) as error:
        parse_gate_limit(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=30))
def test_no_text_is_a_traceback(text: str):
    try:
        precision, figure, limit = parse_gate_limit(text)
    except UsageError as error:
        line = str(error)
        assert line.isprintable()
    else:
        GATES[precision].replace(**{figure: limit})


def test_overrides_take_the_place_of_single_limits():
    changed = gates_with_overrides([("int8", "cosine", 0.98), ("int8", "top1", 1.0), ("int8", "cosine", 0.97)])
    assert changed["int8"] == GATES["int8"].replace(cosine=0.97, top1=1.0)
    assert {name: gate for name, gate in changed.items() if name != "int8"} == {
        name: gate for name, gate in GATES.items() if name != "int8"
    }
    assert gates_with_overrides([]) == GATES
    assert gates_with_overrides([], {"fp32": Gate()}) == {"fp32": Gate()}


def untrained_logits(spread: float) -> np.ndarray:
    """Logits of 16 images and 10 classes that differ by ``spread``, the first class far ahead."""
    values = np.random.default_rng(0).normal(size=(16, 10)) * spread
    values[:, 0] += 0.1 + 10 * spread
    return values.astype(np.float32)


def test_a_network_that_ignores_the_image_is_found_where_the_logits_hardly_vary():
    logits = untrained_logits(3e-5)
    ignoring = np.tile(logits.mean(axis=0), (16, 1))
    assert compare(logits, ignoring, GATES["fp32"]).passed  # not found by the absolute error
    assert not compare(logits, ignoring, scaled_gate(GATES["fp32"], logits)).passed
    for precision, gate in GATES.items():  # the others are shares of the spread
        assert precision == "fp32" or not compare(logits, ignoring, gate).passed


@pytest.mark.parametrize("spread", [0.0, 1e-6, 2e-3, 1.0, 10.0])
def test_what_fp32_does_in_another_order_passes_whatever_the_spread(spread: float):
    logits = untrained_logits(spread)
    noise = np.random.default_rng(1).uniform(-1, 1, logits.shape) * 1e-6 * np.abs(logits).max()
    assert compare(logits, (logits + noise).astype(np.float32), scaled_gate(GATES["fp32"], logits)).passed


@given(logits, gates)
def test_a_scaled_gate_is_never_looser_than_asked(values: np.ndarray, gate: Gate):
    tighter = scaled_gate(gate, values)
    assert tighter.within(gate)
    assert tighter.replace(atol=gate.atol) == gate
    assert scaled_gate(tighter, values) == tighter


def test_one_image_and_logits_that_vary_leave_the_gate_as_it_is():
    assert scaled_gate(GATE, untrained_logits(1.0)[:1]) == GATE
    assert scaled_gate(GATES["fp32"], untrained_logits(1.0)) == GATES["fp32"]
    assert scaled_gate(Gate(), untrained_logits(1e-9)) == Gate()


@given(logits, st.floats(0.5, 4), st.floats(-5, 5))
def test_the_spread_scales_with_the_logits_and_does_not_move_with_them(values: np.ndarray, factor: float, shift: float):
    wanted = values.astype(np.float64)
    assert logit_spread(wanted * factor) == pytest.approx(logit_spread(wanted) * factor, rel=1e-6, abs=1e-9)
    if np.ptp(wanted, axis=0).max() > 1e-3:
        assert logit_spread(wanted + shift) == pytest.approx(logit_spread(wanted), rel=1e-6, abs=1e-9)


def test_an_rtol_without_an_atol_is_refused_for_it_would_hold_nothing():
    with pytest.raises(UsageError, match=r"gate of int8: rtol counts together with atol.*--gate int8:atol="):
        gates_with_overrides([("int8", "rtol", 0.01)])
    assert gates_with_overrides([("int8", "rtol", 0.01), ("int8", "atol", 0.5)])["int8"].rtol == 0.01


def test_an_atol_where_the_standard_has_none_is_tighter():
    tighter = gates_with_overrides([("int8", "atol", 0.5), ("int8", "rtol", 0.01)])["int8"]
    assert tighter.within(GATES["int8"])
    assert not GATES["int8"].within(tighter)
