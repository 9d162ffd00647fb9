"""Options of all commands: what they have in common."""

import importlib

import click
import pytest

from regnet_deploy.cli.main import COMMANDS
from regnet_deploy.cli.options import Finite


@pytest.mark.parametrize("name", COMMANDS)
def test_no_number_may_be_infinite_or_nan(name: str):
    command: click.Command = importlib.import_module(f"regnet_deploy.cli.{name}").command
    numbers = [option for option in command.params if isinstance(option.type, click.types.FloatParamType)]
    assert [option.name for option in numbers if not isinstance(option.type, Finite)] == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_a_number_that_is_not_finite_is_refused(value: str):
    with pytest.raises(click.BadParameter, match="is not a finite number"):
        Finite().convert(value, None, None)
