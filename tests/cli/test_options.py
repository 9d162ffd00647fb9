"""Options of all commands: what they have in common."""

import re

import click
import pytest

from regnet_deploy.cli.bench import Rates
from regnet_deploy.cli.main import COMMANDS, load_command
from regnet_deploy.cli.options import FiniteFloat, IntList, PositiveFloat, RangeParam, Scaled, Whole, seed_type

#: What nobody means, whatever the option: too large for 64 bits, for a float, or no number.
EXTREMES = ["99999999999999999999", "-99999999999999999999", "1e400", "nan", "inf", "-inf"]


def number_options() -> list[tuple[str, click.Parameter]]:
    commands = {name: load_command(name) for name in COMMANDS}
    kinds = (click.types.IntParamType, click.types.FloatParamType, IntList, RangeParam, Rates)
    return [
        (f"{name} {option.opts[0]}", option)
        for name, command in commands.items()
        for option in command.params
        if isinstance(option.type, kinds)
    ]


NUMBERS = pytest.mark.parametrize("option", [pytest.param(option, id=name) for name, option in number_options()])


@NUMBERS
def test_every_number_is_bounded_on_both_sides(option: click.Parameter):
    kind = option.type
    if not isinstance(kind, IntList | RangeParam | Rates):
        assert isinstance(kind, Whole | FiniteFloat)
        assert kind.min is not None
        assert kind.max is not None


@pytest.mark.parametrize("value", EXTREMES)
@NUMBERS
def test_an_extreme_number_is_refused_with_its_value(option: click.Parameter, value: str):
    with pytest.raises(click.BadParameter) as caught:
        option.type.convert(value, option, None)
    said = caught.value.message
    assert any(text in said for text in (value, str(float(value)), f"{float(value):.0f}")), said


@NUMBERS
def test_the_default_of_a_number_is_in_its_range(option: click.Parameter):
    default = getattr(option, "default", None)
    if isinstance(default, int | float | str):
        option.type.convert(default, option, None)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_a_number_that_is_not_finite_is_refused(value: str):
    with pytest.raises(click.BadParameter, match=r"is not a finite number|is not in the range"):
        FiniteFloat(0, 1).convert(value, None, None)


@pytest.mark.parametrize("value", ["1,0", "4097", "8,99999999999999999999", "1,,2", "x"])
def test_a_list_of_whole_numbers_is_refused_with_its_value(value: str):
    with pytest.raises(click.BadParameter, match=value):
        IntList(4096).convert(value, None, None)


@pytest.mark.parametrize("value", ["nan:2", "1:inf", "-1:2", "1:1e10", "1:2:3"])
def test_a_range_is_refused_with_its_value(value: str):
    with pytest.raises(click.BadParameter, match=value):
        RangeParam(float).convert(value, None, None)


@pytest.mark.parametrize(
    ("text", "gmacs"),
    [("4", 4), ("0.4", 0.4), ("400M", 0.4), ("400mf", 0.4), ("4GF", 4), ("4 GMACs", 4), ("4e2M", 0.4), ("2T", 2000)],
)
def test_a_number_with_a_unit_is_converted(text: str, gmacs: float):
    assert Scaled("G", "MACs").convert(text, None, None) == pytest.approx(gmacs)


@pytest.mark.parametrize("text", ["4e9", "4000000000"])
def test_a_number_in_another_unit_gets_a_hint(text: str):
    meant = f"^{text} stands for {text} x 10\\^9 MACs: for 4e\\+09 MACs give 4 or 4G$"
    with pytest.raises(click.BadParameter, match=meant):
        Scaled("G", "MACs").convert(text, None, None)


@pytest.mark.parametrize("text", ["", "M", "4Q", "four", "1e400", "nan", "infG", "nanM", "4MM", "--4M"])
def test_what_is_no_number_with_a_unit_is_refused(text: str):
    with pytest.raises(click.BadParameter, match=r"is not a finite number such as 0\.4 or 400M"):
        Scaled("G", "MACs").convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (seed_type(), "0<=x<=2^63-1"),
        (Whole(1, 65535), "1<=x<=65535"),
        (PositiveFloat(), "0<x<=1e9"),
        (FiniteFloat(0.5, 1, max_open=True), "0.5<=x<1"),
    ],
)
def test_a_range_is_short(kind: Whole | FiniteFloat, shown: str):
    with pytest.raises(click.BadParameter, match=rf"-1(\.0)? is not in the range {re.escape(shown)}\.$"):
        kind.convert("-1", None, None)
