"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from regnet_deploy.bundle import DEFAULT_PATH

F = TypeVar("F", bound=Callable[..., Any])

#: Largest number of a range of values.
_HIGHEST = 1e9
_MAX_SEED = 2**63 - 1


def bundle_argument(function: F) -> F:
    """Add the optional argument BUNDLE, passed as ``bundle_path``."""
    return click.argument("bundle_path", metavar="[BUNDLE]", default=DEFAULT_PATH, type=click.Path())(function)


def json_option(function: F) -> F:
    """Add ``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout; messages go to stderr.")(
        function
    )


def default_option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """Return ``click.option`` of an option whose help shows the default."""
    return click.option(*names, show_default=True, **attributes)


def device_option(help_text: str) -> Callable[[F], F]:
    """Return ``--device`` of commands that run exported variants."""
    choices = click.Choice(["auto", "cpu", "cuda", "tensorrt"])
    return default_option("--device", type=choices, default="auto", help=help_text)


def runtime_option(help_text: str) -> Callable[[F], F]:
    """Return ``--runtime`` of commands that run exported variants."""
    choices = click.Choice(["auto", "onnxruntime", "tensorrt", "openvino"])
    return default_option("--runtime", type=choices, default="auto", help=help_text)


def images_option(function: F) -> F:
    """Add ``--images`` of commands that send requests."""
    text = "Send the images of this folder.  [default: the bundle's golden set]"
    return click.option("--images", metavar="DIR", help=text)(function)


def arrival_seed_option(function: F) -> F:
    """Add ``--seed`` of commands that send requests."""
    return default_option("--seed", type=seed_type(), default=0, help="Seed of the arrival times.")(function)


def recipe_options(*, lr: float) -> Callable[[F], F]:
    """Return the options of the recipe that commands which train share; ``lr`` is the default learning rate."""
    crop = "Smallest area of a random crop, as a fraction of the image; 1: no random crops."
    flip = "Mirror half of the training images at random. Fine-tuning tries first whether that does harm."
    options = [
        default_option(
            "--lr", type=PositiveFloat(), default=lr, help="Learning rate for 128 images; scaled with the batch."
        ),
        default_option(
            "--weight-decay", type=FiniteFloat(0, 1e9), default=5e-5, help="Weight decay of all parameters."
        ),
        default_option("--crop-area", type=FiniteFloat(0, 1, min_open=True), default=0.08, help=crop),
        default_option("--flip/--no-flip", default=True, help=flip),
        default_option(
            "--lighting", type=FiniteFloat(0, 1e9), default=0.1, help="Deviation of the random color shift; 0: none."
        ),
    ]

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def ray_option(runs: str) -> Callable[[F], F]:
    """Return the option ``--ray``, which says where something ``runs``."""
    return click.option(
        "--ray",
        is_flag=False,
        flag_value="local",
        metavar="[ADDRESS]",
        help=f"{runs} on Ray, on this machine or on the cluster at ADDRESS (auto, host:port, ray://...).",
    )


def ray_options(function: F) -> F:
    """Add the options of commands that train several networks at a time on Ray."""
    options = [
        ray_option("Run several trials at a time"),
        click.option(
            "--cpus-per-trial",
            type=FiniteFloat(0, 1024, min_open=True),
            help="With --ray: CPUs of a trial.  [default: 1]",
        ),
        click.option(
            "--gpus-per-trial",
            type=FiniteFloat(0, 1024),
            help="With --ray: GPUs of a trial; 0.25 runs four on a GPU.  [default: 1 with CUDA]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


class SectionedCommand(click.Command):
    """A command whose help has its options under headings.

    Args:
        sections: heading -> names of parameters; all others come last, under "Other".
        arguments: of click's command.
    """

    def __init__(self, *arguments: Any, sections: Mapping[str, Sequence[str]], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        named = {name for names in self.sections.values() for name in names}
        rest = [parameter.name or "" for parameter in self.get_params(ctx) if parameter.name not in named]
        for heading, names in {**self.sections, "Other": rest}.items():
            shown = [parameter for parameter in self.get_params(ctx) if parameter.name in names]
            records = [record for parameter in shown if (record := parameter.get_help_record(ctx)) is not None]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Whole(click.IntRange):
    """A whole number in a range that is closed on both sides: an option without an upper bound overflows somewhere."""

    name = "integer"

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__(lowest, highest)

    def _describe_range(self) -> str:
        return _range_text(self)


class FiniteFloat(click.FloatRange):
    """A finite number in a range that is bounded on both sides."""

    name = "number"

    def __init__(self, lowest: float, highest: float, *, min_open: bool = False, max_open: bool = False) -> None:
        super().__init__(lowest, highest, min_open=min_open, max_open=max_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):  # nan is in every range
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number

    def _describe_range(self) -> str:
        return _range_text(self)


def _range_text(kind: click.IntRange | click.FloatRange) -> str:
    """Return a range as help and errors show it: short where click writes 9223372036854775807 and 1000000000.0."""
    highest = "2^63-1" if kind.max == _MAX_SEED else f"{kind.max:.10g}" if (kind.max or 0) < 1e7 else f"{kind.max:g}"
    return f"{kind.min:.10g}{'<' if kind.min_open else '<='}x{'<' if kind.max_open else '<='}{highest}".replace(
        "e+0", "e"
    )


class PositiveFloat(FiniteFloat):
    """A finite number above 0 and at most 10^9."""

    def __init__(self) -> None:
        super().__init__(0, 1e9, min_open=True)


def seed_type() -> Whole:
    """Return the type of a seed: every generator takes 63 bits."""
    return Whole(0, _MAX_SEED)


def threads_type() -> Whole:
    """Return the type of a number of CPU threads."""
    return Whole(1, 1024)


#: Factors of the suffixes of numbers.
_PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_WITH_SUFFIX = re.compile(r"(?P<number>[^a-z]*(?:e[-+]?\d+)?)\s*(?P<prefix>[kmgt])(?:MACs?|FLOPs?|F|B)?", re.IGNORECASE)


def scaled_number(text: str, prefix: str, quantity: str) -> float:
    """Return a finite number in units of ``prefix`` (k, M, G or T): with ``G``, ``4`` and ``4000M`` are both 4.

    Args:
        text: a number, with or without a suffix such as ``M``, ``MF`` or ``GMACs``.
        prefix: the prefix of a number without a suffix.
        quantity: what is counted, such as MACs, for the message.

    Raises:
        ValueError: the text is not a finite number.
        click.BadParameter: the number is so large that another unit was meant.
    """
    with_suffix = _WITH_SUFFIX.fullmatch(text.strip())
    if with_suffix:
        found = with_suffix["prefix"]
        factor = _PREFIXES["k" if found in "kK" else found.upper()]
        number = float(with_suffix["number"]) * factor / _PREFIXES[prefix]
    else:
        number = float(text)
        if 1e6 <= number <= 1e6 * _PREFIXES[prefix]:
            meant = number / _PREFIXES[prefix]
            raise click.BadParameter(
                f"{text} stands for {text} x 10^{math.log10(_PREFIXES[prefix]):.0f} {quantity}: for {number:.4g} "
                f"{quantity} give {meant:.4g} or {meant:.4g}{prefix}"
            )
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


class Scaled(FiniteFloat):
    """A number above 0 and at most 10^9, in units of a prefix, such as 10^9 MACs; see :func:`scaled_number`."""

    def __init__(self, prefix: str, quantity: str) -> None:
        super().__init__(0, 1e9, min_open=True)
        self.prefix, self.quantity = prefix, quantity

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse ``0.4`` or ``400M``."""
        try:
            number = scaled_number(str(value), self.prefix, self.quantity)
        except ValueError:
            self.fail(f"{value!r} is not a finite number such as 0.4 or 400M", param, ctx)
        except click.BadParameter as error:
            self.fail(error.message, param, ctx)
        return super().convert(number, param, ctx)


class IntList(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.5 on
    """Whole numbers from 1 to ``highest``, separated by commas."""

    name = "n,n,..."

    def __init__(self, highest: int) -> None:
        self.highest = highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse ``1,8,32``."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 1,8,32", param, ctx)
        if min(numbers) < 1 or max(numbers) > self.highest:
            self.fail(f"{value!r} holds a number that is not in the range 1<=x<={self.highest}", param, ctx)
        return numbers


class RangeParam(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A pair ``low:high``, or one number for both, each from 0 to 10^9."""

    name = "low:high"

    def __init__(self, number: Callable[[str], float]) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, Any]:
        """Parse ``12:28`` or ``20``."""
        if isinstance(value, tuple):
            return value[0], value[1]
        low, _, high = str(value).partition(":")
        try:
            pair = self.number(low), self.number(high or low)
        except ValueError:
            self.fail(f"{value!r} is not a range such as 12:28, or one number", param, ctx)
        if not all(0 <= number <= _HIGHEST for number in pair):  # nan is in no range
            self.fail(f"{value!r} holds a number that is not in the range 0<=x<={_HIGHEST:g}", param, ctx)
        return pair
