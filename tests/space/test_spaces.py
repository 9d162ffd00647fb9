"""Spaces count as the paper counts them, and refuse what nothing can be drawn from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.ranges import Range, Values
from regnet_deploy.space.spaces import ONE, AnyNetSpace, RegNetSpace, Stages, same

KNOWN = known_spaces()


@pytest.mark.parametrize(
    ("name", "freedom", "size"),
    [
        ("AnyNetX_A", 16, "1.8e+18"),
        ("AnyNetX_B", 13, "6.8e+16"),
        ("AnyNetX_C", 10, "3.2e+14"),
        ("AnyNetX_D", 10, "1.3e+13"),
        ("AnyNetX_E", 10, "5.5e+11"),
        ("RegNetX", 6, "3.0e+08"),
    ],
)
def test_freedom_and_size_are_those_of_the_paper(name, freedom, size):
    """Table 1 of arXiv 2003.13678, and (16 * 128 * 3 * 6)^4 of its section 3.2."""
    assert KNOWN[name].degrees_of_freedom == freedom
    assert f"{10 ** KNOWN[name].log10_size:.1e}" == size


def test_what_is_fixed_is_no_degree_of_freedom():
    assert (
        KNOWN["RegNetX_w_m_2"].degrees_of_freedom
        == KNOWN["RegNetX_w_0_is_w_a"].degrees_of_freedom
        == KNOWN["RegNetX_b_1"].degrees_of_freedom
        == 5
    )
    assert KNOWN["AnyNetR_A"].degrees_of_freedom == 12
    assert KNOWN["AnyNetV_A"].degrees_of_freedom == 8
    assert KNOWN["AnyNetX_C_same_width"].degrees_of_freedom == 7


def test_symbols_are_one_a_stage_or_one_for_all():
    assert KNOWN["AnyNetX_D_same_depth"].symbols == {
        "d": True, "w_1": True, "w_2": True, "w_3": True, "w_4": True, "b": True, "g": True,
    }  # fmt: skip
    assert KNOWN["RegNetX_w_0_is_w_a"].symbols == {
        "d": True, "w_0": True, "w_a": False, "w_m": True, "b": True, "g": True,
    }  # fmt: skip


def test_a_constraint_may_speak_of_what_is_fixed_and_of_stages():
    space = replace(KNOWN["RegNetX_w_0_is_w_a"], where=("w_a <= w_0", "w_4 >= w_1", "d_3 > d_4", "b * g >= g_1"))
    assert len(space.where) == 4


A, X = AnyNetSpace("a"), RegNetSpace("x")


@pytest.mark.parametrize(
    ("space", "changes", "said"),
    [
        (A, {"name": ""}, "a space needs a name"),
        (A, {"name": "two\nlines"}, "a space needs a name on one line"),
        (A, {"name": 3}, "a space needs a name on one line of at most 80 characters, got 3"),
        (A, {"block": "z"}, "a: block must be one of x, y, r, v, vr, got 'z'"),
        (A, {"stages": 0}, "a: stages must be a number from 1 to 8, got 0"),
        (A, {"stages": True}, "a: stages must be a number from 1 to 8, got True"),
        (A, {"stages": 4.0}, "a: stages must be a number from 1 to 8, got 4.0"),
        (A, {"depth": same(Values((0,)))}, "a: depth must be from 1 to 1000, got 0"),
        (A, {"depth": Stages((Range(1, 2000),))}, "a: depth must be from 1 to 1000, got 1..2000"),
        (A, {"depth": Stages((Range(1, 4, 0.5),))}, "a: depth must be whole numbers, got 1..4 step 0.5"),
        (A, {"width": Stages((Range(4, 64, 4),))}, "a: width must be from 8 to 131072, got 4..64 step 4"),
        (A, {"width": Stages((Values((8, 8.5)),))}, r"a: width must be whole numbers, got \{8, 8.5\}"),
        (A, {"group_width": Stages((Values((1, 2.5)),))}, "a: group_width must be whole numbers"),
        (A, {"bottleneck": same(Values((1, 1.5)))}, r"a: bottleneck must be 1, 1/2, 1/3 .* got \{1, 1.5\}"),
        (A, {"bottleneck": same(Range(1, 2, 0.5))}, "a: bottleneck must be 1, 1/2, 1/3"),
        (A, {"bottleneck": same(Values((0.3,)))}, "a: bottleneck must be 1, 1/2, 1/3"),
        (A, {"bottleneck": same(Values((0.01,)))}, "a: bottleneck must be from 0.03125 to 1024, got 0.01"),
        (A, {"width": Stages((ONE, ONE))}, "a: width has 2 ranges for 4 stages"),
        (A, {"block": "v"}, "a: block v has no bottleneck: set it to 1"),
        (A, {"block": "vr", "bottleneck": same(ONE)}, "a: block vr has no groups: set group_width to 1"),
        (A, {"block": "r"}, "a: block r has no groups: set group_width to 1"),
        (
            A,
            {"where": ("w_0 > 3",)},
            r"a: the constraint 'w_0 > 3' names w_0 \(did you mean w_\d\?\); the columns are d_1,",
        ),
        (A, {"where": ("w_1",)}, "a: the constraint 'w_1' compares nothing"),
        (A, {"where": "w_1 > 1"}, "a: where must be lines of text, got 'w_1 > 1'"),
        (X, {"block": "v"}, "x: a RegNet has block x, y or r, got v"),
        (X, {"block": "r"}, "x: block r has no groups: set group_width to 1"),
        (X, {"w_a": "w_m"}, "x: w_a must be a range or the word w_0, got 'w_m'"),
        (X, {"w_a": Range(-1, 1)}, "x: w_a must be from 0 to 131072, got -1..1"),
        (X, {"w_0": Range(10, 20)}, "x: w_0 must be multiples of 8, got 10..20"),
        (X, {"w_0": Range(8, 20, 4)}, "x: w_0 must be multiples of 8, got 8..20 step 4"),
        (X, {"w_0": Values((8, 12))}, r"x: w_0 must be multiples of 8, got \{8, 12\}"),
        (X, {"w_m": Range(1, 2)}, "x: w_m must be from 1.001 to 1000, got 1..2"),
        (X, {"d": "many"}, r"x: d must be Range\(...\) or Values\(...\), got 'many'"),
        (X, {"w_a": 3}, r"x: w_a must be Range\(...\) or Values\(...\), got 3"),
        (A, {"width": 64}, r"a: width must be Stages\(...\), got 64"),
        (X, {"d": Range(0, 20)}, "x: d must be from 1 to 1000, got 0..20"),
        (X, {"d": Range(1, 20, 0.1)}, "x: d must be whole numbers"),
        (X, {"group_width": Range(0, 20)}, "x: group_width must be from 1 to 131072"),
        (X, {"bottleneck": Values((-1,))}, "x: bottleneck must be from 0.03125 to 1024, got -1"),
        (X, {"where": ("9**9**9",)}, "x: the constraint '9[*][*]9[*][*]9' compares nothing"),
    ],
)
def test_what_nothing_can_be_drawn_from_is_refused_in_one_line(space, changes, said):
    with pytest.raises(UsageError, match=said) as caught:
        replace(space, **changes)
    assert "\n" not in str(caught.value)


def test_stages_relate_in_four_ways():
    with pytest.raises(UsageError, match=r"across must be one of free, same, rising, falling, got 'risin' \(did you"):
        Stages((ONE,), "risin")
    with pytest.raises(UsageError, match="the relation same needs one range, not one for each stage"):
        Stages((ONE, ONE), "same")
    with pytest.raises(UsageError, match="stages need one range, or one for each stage, got none"):
        Stages(())
    with pytest.raises(UsageError, match=r"each of the choices of Stages must be Range\(...\) or Values\(...\), got 3"):
        Stages((3,))
    with pytest.raises(UsageError, match="choices of Stages must be a tuple of ranges, got Values"):
        Stages(ONE)
