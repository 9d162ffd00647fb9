"""A space is narrowed to intervals, and its stages are related, as the paper goes from A to E."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from regnet_deploy.errors import UsageError
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.narrowing import SYMBOLS, narrow_space, with_relation
from regnet_deploy.space.ranges import Range, Values
from regnet_deploy.space.sampling import Band, draw_networks
from regnet_deploy.space.space_file import read_space, write_space
from regnet_deploy.space.spaces import AnyNetSpace, RegNetSpace, Stages, same

A = known_spaces()["AnyNetX_A"]
X = RegNetSpace("RegNetX")


def test_without_intervals_only_the_name_changes() -> None:
    for space in known_spaces().values():
        assert narrow_space(space, {}, "other") == replace(space, name="other")


def test_ranges_of_regnets_are_cut_by_symbol() -> None:
    made = narrow_space(X, {"d": (12, 28), "w_m": (2.0, 2.5), "b": (1, 1), "g": (8, 32)}, "cut")
    assert isinstance(made, RegNetSpace)
    assert (made.name, made.w_0, made.w_a) == ("cut", X.w_0, X.w_a)
    assert (made.d.low, made.d.high) == (12, 28)  # type: ignore[union-attr]
    assert (made.w_m.low, made.w_m.high) == (2.0, 2.5)  # type: ignore[union-attr]
    assert made.bottleneck == Values((1,))
    assert made.group_width == Values((8, 16, 32))
    assert made.log10_size < X.log10_size
    assert made.degrees_of_freedom == X.degrees_of_freedom - 1


def test_a_slope_that_is_the_first_width_is_not_drawn() -> None:
    tied = replace(X, w_a="w_0")
    assert narrow_space(tied, {"w_0": (16, 64)}, "cut").w_a == "w_0"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="RegNetX does not draw w_a, so this cannot be narrowed"):
        narrow_space(tied, {"w_a": (8, 16)}, "cut")


def test_stages_are_cut_one_by_one() -> None:
    made = narrow_space(A, {"d_1": (1, 3), "w_4": (256, 512), "b_2": (2, 4)}, "cut")
    assert isinstance(made, AnyNetSpace)
    assert [(each.low, each.high) for each in made.depth.choices] == [(1, 3), (1, 16), (1, 16), (1, 16)]
    assert [each.high for each in made.width.choices] == [1024, 1024, 1024, 512]
    assert made.bottleneck.choices == (Values((1, 2, 4)), Values((2, 4)), Values((1, 2, 4)), Values((1, 2, 4)))
    assert made.group_width == A.group_width


def test_stages_that_are_cut_alike_have_one_range() -> None:
    made = narrow_space(A, {f"d_{i}": (2, 5) for i in (1, 2, 3, 4)}, "cut")
    assert len(made.depth.choices) == 1  # type: ignore[union-attr]
    assert made.depth.choices[0].high == 5  # type: ignore[union-attr]


def test_what_is_the_same_in_all_stages_is_cut_once() -> None:
    b = known_spaces()["AnyNetX_B"]
    assert narrow_space(b, {"b": (1, 2)}, "cut").bottleneck == same(Values((1, 2)))  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="AnyNetX_B does not draw b_1"):
        narrow_space(b, {"b_1": (1, 2)}, "cut")


def test_the_depth_of_stages_that_have_the_same_is_that_of_all_of_them() -> None:
    space = replace(A, name="S", depth=same(Range(1, 16)))
    made = narrow_space(space, {"d": (8, 20)}, "cut")
    assert [(each.low, each.high) for each in made.depth.choices] == [(2, 5)]  # type: ignore[union-attr]


@pytest.mark.parametrize("column", ["d", "w", "e_fit", "d_5", "macs"])
def test_columns_that_are_not_drawn_are_refused(column: str) -> None:
    with pytest.raises(UsageError, match=f"AnyNetX_A does not draw {column}, so this cannot be narrowed"):
        narrow_space(A, {"d_1": (1, 2), column: (1, 2)}, "cut")


def test_an_interval_beside_the_range_leaves_its_nearest_end() -> None:
    made = narrow_space(A, {"d_1": (100, 200), "b_1": (2.6, 3.1)}, "cut")
    assert (made.depth.choices[0].low, made.depth.choices[0].high) == (16, 16)  # type: ignore[union-attr]
    assert made.bottleneck.choices[0] == Values((2,))  # type: ignore[union-attr]


@pytest.mark.parametrize(("part", "symbol"), SYMBOLS.items())
def test_stages_are_related_in_one_thing(part: str, symbol: str) -> None:
    made = with_relation(A, part, "rising")
    assert made.parts()[part] == Stages(A.parts()[part].choices, "rising")  # type: ignore[index,arg-type]
    assert {name: each for name, each in made.parts().items() if name != part} == {
        name: each for name, each in A.parts().items() if name != part
    }
    alike = with_relation(A, part, "same")
    assert alike.symbols.keys() >= {symbol} if part != "depth" else alike.depth.across == "same"  # type: ignore


def test_the_papers_steps_are_relations() -> None:
    known = known_spaces()
    steps = [
        ("B", "bottleneck", "same"),
        ("C", "group_width", "same"),
        ("D", "width", "rising"),
        ("E", "depth", "rising"),
    ]
    space = A
    for letter, part, across in steps:
        space = replace(with_relation(space, part, across), name=f"AnyNetX_{letter}")
        assert space == known[f"AnyNetX_{letter}"]


def test_ranges_of_stages_that_become_the_same_go_from_the_least_to_the_greatest() -> None:
    cut = narrow_space(A, {"d_1": (1, 3), "d_2": (4, 9), "d_3": (4, 9), "d_4": (2, 2), "b_1": (1, 1)}, "cut")
    made = with_relation(with_relation(cut, "depth", "same"), "bottleneck", "same")
    assert (made.depth.choices[0].low, made.depth.choices[0].high) == (1, 9)  # type: ignore[union-attr]
    assert made.bottleneck == same(Values((1, 2, 4)))  # type: ignore[union-attr]


def test_lists_and_ranges_have_nothing_in_common() -> None:
    mixed = replace(A, depth=Stages((Range(1, 4), Values((2, 3)), Range(1, 4), Range(1, 4))))
    with pytest.raises(UsageError, match="no common range: write the range into the space file"):
        with_relation(mixed, "depth", "same")
    assert with_relation(mixed, "depth", "rising").depth.across == "rising"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("part", "across", "said"),
    [
        ("bottelneck", "same", "(did you mean bottleneck?)"),
        ("b", "same", "the parts of stages are depth, width, bottleneck, group_width, got 'b'"),
        ("depth", "risng", "(did you mean rising?)"),
        ("depth", "", "across must be one of"),
    ],
)
def test_a_relation_that_is_none_is_refused(part: str, across: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        with_relation(A, part, across)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_regnets_have_no_relations() -> None:
    with pytest.raises(UsageError, match="RegNetX is a space of RegNets"):
        with_relation(X, "depth", "rising")


@pytest.mark.parametrize("name", ["AnyNetX_A", "AnyNetX_E", "RegNetX", "RegNetX_constrained"])
def test_a_narrowed_space_is_written_and_drawn_from(name: str) -> None:
    space = known_spaces()[name]
    regnet = isinstance(space, RegNetSpace)
    cut = {"d": (10, 25)} if regnet else {"d_2": (2, 5), "w_1": (16, 64)}
    made = narrow_space(space, cut, "cut")
    assert read_space(write_space(made), "cut.yaml") == made
    drawn = draw_networks(made, 20, Band(0, 2e9, 224), 0)
    for column, (low, high) in cut.items():
        values = np.asarray(drawn.columns[column])
        assert ((values >= low) & (values <= high)).all()
