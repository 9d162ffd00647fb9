"""Design spaces as data: the ranges of the parameters and the relations between stages (arXiv 2003.13678, section 3).

A space of AnyNets has, for each of depth, width, bottleneck ratio and group width, the ranges of the stages and their
relation: ``free``, ``same``, ``rising`` (no stage is smaller than the previous one) or ``falling``. A space of RegNets
has the ranges of the parameters of the quantized line. :mod:`regnet_deploy.space.sampling` draws from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from regnet_deploy.errors import UsageError
from regnet_deploy.space.constraint import check_constraint
from regnet_deploy.space.ranges import Domain, Range, Values, check_type, short_repr, suggestion

#: x: bottleneck with grouped 3x3; y: with squeeze-and-excitation; r: without groups; v: one 3x3; vr: with residual.
BLOCKS = ("x", "y", "r", "v", "vr")
ACROSS = ("free", "same", "rising", "falling")
#: Parts of a stage and the symbols of the paper, which name the columns.
SYMBOLS = {"depth": "d", "width": "w", "bottleneck": "b", "group_width": "g"}

B_VALUES = Values((1, 2, 4))
G_VALUES = Values((1, 2, 4, 8, 16, 32))
ONE = Values((1,))

#: The ranges of the paper for RegNets, with the scales and steps of pycls.
D_RANGE = Range(1, 63, counted=64)
W_0_RANGE = Range(8, 248, 8, "log", counted=64)
W_A_RANGE = Range(8, 255.9, 0.1, "log", counted=64)
W_M_RANGE = Range(1.5, 3, 0.001, "log", counted=64)

#: Limits of a space: blocks (of a stage or a line), channels, stages, and the factor between levels.
MAX_BLOCKS, MAX_CHANNELS = 1000, 1 << 17
MAX_STAGES = 8
MIN_W_M, MAX_W_M = 1.001, 1000.0
MIN_B, MAX_B = 1 / 32, 1024

_COSTS = ("macs", "parameters", "activations")
#: Prefix of the costs at 224 pixels with a stem of stride 2 and 1,000 classes, for which published bounds are stated.
REFERENCE = "reference_"


@dataclass(frozen=True)
class Stages:
    """The values of one part (depth, width, bottleneck or group width) in the stages of an AnyNet.

    Attributes:
        choices: one range for all stages, or one for each stage.
        across: relation of the stages: ``free``, ``same``, ``rising`` or ``falling``.
    """

    choices: tuple[Domain, ...]
    across: str = "free"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value is not valid; the message names the allowed values.
        """
        if self.across not in ACROSS:
            given = f"{short_repr(self.across)}{suggestion(self.across, ACROSS)}"
            raise UsageError(f"across must be one of {', '.join(ACROSS)}, got {given}")
        check_type(self.choices, tuple, "choices of Stages", "a tuple of ranges")
        for choice in self.choices:
            check_type(choice, Range | Values, "each of the choices of Stages", "Range(...) or Values(...)")
        if not self.choices:
            raise UsageError("stages need one range, or one for each stage, got none")
        if self.across == "same" and len(self.choices) > 1:
            raise UsageError("the relation same needs one range, not one for each stage")

    def choice(self, stage: int) -> Domain:
        """Return the range of stage 0, 1, ..."""
        return self.choices[stage] if len(self.choices) > 1 else self.choices[0]

    def degrees_of_freedom(self, stages: int) -> int:
        """Return the number of degrees of freedom."""
        if self.across == "same":
            return int(self.choices[0].free)
        return sum(self.choice(i).free for i in range(stages))

    def log10_size(self, stages: int) -> float:
        """Return log10 of the number of combinations; an order divides it by the permutations, as in the paper."""
        if self.across == "same":
            return math.log10(self.choices[0].size)
        permutations = (
            math.factorial(stages) if self.across in ("rising", "falling") and self.degrees_of_freedom(stages) else 1
        )
        return sum(math.log10(self.choice(i).size) for i in range(stages)) - math.log10(permutations)


def same(choice: Domain) -> Stages:
    """Return the same value for all stages."""
    return Stages((choice,), "same")


#: The ranges of the paper for AnyNets, free in every stage.
DEPTHS = Stages((Range(1, 16, 1, "log"),))
WIDTHS = Stages((Range(8, 1024, 8, "log"),))
BOTTLENECKS = Stages((B_VALUES,))
GROUP_WIDTHS = Stages((G_VALUES,))


@dataclass(frozen=True)
class AnyNetSpace:
    """A space of AnyNets; the defaults are AnyNetX_A.

    Attributes:
        name: name in tables and figures.
        depth: number of blocks of a stage.
        width: output channels of a stage, before they are fitted to the group width.
        bottleneck: width divided by bottleneck width; 1 for blocks v and vr.
        group_width: channels per group; 1 for blocks r, v and vr.
        block: one of ``x``, ``y``, ``r``, ``v``, ``vr``.
        stages: number of stages.
        where: constraints on the columns, see :mod:`regnet_deploy.space.constraint`.

    Raises:
        UsageError: a value is not valid; the message names the allowed values.
    """

    name: str
    depth: Stages = DEPTHS
    width: Stages = WIDTHS
    bottleneck: Stages = BOTTLENECKS
    group_width: Stages = GROUP_WIDTHS
    block: str = "x"
    stages: int = 4
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self.name, self.block, self.stages)
        for what, each in self.parts().items():
            check_type(each, Stages, f"{self.name}: {what}", "Stages(...)")
            if len(each.choices) not in (1, self.stages):
                raise UsageError(f"{self.name}: {what} has {len(each.choices)} ranges for {self.stages} stages")
            for choice in each.choices:
                if what == "bottleneck":
                    _check_bottleneck(self.name, choice)
                else:
                    most = MAX_BLOCKS if what == "depth" else MAX_CHANNELS
                    _check_whole(self.name, what, choice, 8 if what == "width" else 1, most)
        if self.block in ("v", "vr") and self.bottleneck != same(ONE):
            raise UsageError(f"{self.name}: block {self.block} has no bottleneck: set it to 1")
        if self.block in ("r", "v", "vr") and self.group_width != same(ONE):
            raise UsageError(f"{self.name}: block {self.block} has no groups: set group_width to 1")
        _check_where(self.name, self.where, self.columns)

    @property
    def symbols(self) -> dict[str, bool]:
        """The symbols of the drawn parameters, for all stages or for each stage, and whether each is free.

        If all stages have the same depth, the parameter is d, the number of blocks of the network.
        """
        symbols: dict[str, bool] = {}
        for symbol, part in zip("dwbg", self.parts().values(), strict=True):
            if part.across == "same":
                symbols[symbol] = part.degrees_of_freedom(self.stages) > 0
            else:
                symbols |= {f"{symbol}_{i + 1}": part.choice(i).free for i in range(self.stages)}
        return symbols

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a constraint can refer to."""
        return tuple(dict.fromkeys((*self.symbols, *_stage_columns(self.stages), *_cost_columns())))

    def parts(self) -> dict[str, Stages]:
        """Return the parts of the stages by name."""
        return {
            "depth": self.depth,
            "width": self.width,
            "bottleneck": self.bottleneck,
            "group_width": self.group_width,
        }

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom."""
        return sum(part.degrees_of_freedom(self.stages) for part in self.parts().values())

    @property
    def log10_size(self) -> float:
        """log10 of the number of networks, as the paper counts them."""
        return sum(part.log10_size(self.stages) for part in self.parts().values())


@dataclass(frozen=True)
class RegNetSpace:
    """A space of RegNets; the defaults are RegNetX with the paper's ranges, drawn on the scales of pycls's sampler.

    Attributes:
        name: name in tables and figures.
        d: blocks.
        w_0: width of the first block, a multiple of 8.
        w_a: slope, channels a block; the word ``w_0`` makes it equal to w_0.
        w_m: factor between levels.
        bottleneck: b, width over bottleneck width.
        group_width: g, channels per group.
        block: ``x``, ``y`` or ``r``.
        stages: number of stages that a line must quantize to.
        where: constraints on the columns, see :mod:`regnet_deploy.space.constraint`.

    Raises:
        UsageError: a value is not valid; the message names the allowed values.
    """

    name: str
    d: Domain = D_RANGE
    w_0: Domain = W_0_RANGE
    w_a: Domain | str = W_A_RANGE
    w_m: Domain = W_M_RANGE
    bottleneck: Domain = B_VALUES
    group_width: Domain = G_VALUES
    block: str = "x"
    stages: int = 4
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        _check(self.name, self.block, self.stages)
        if self.block in ("v", "vr"):
            raise UsageError(f"{self.name}: a RegNet has block x, y or r, got {self.block}")
        if self.block == "r" and self.group_width != ONE:
            raise UsageError(f"{self.name}: block r has no groups: set group_width to 1")
        if isinstance(self.w_a, str) and self.w_a != "w_0":
            raise UsageError(f"{self.name}: w_a must be a range or the word w_0, got {short_repr(self.w_a)}")
        for what in ("d", "w_0", "w_a", "w_m", "bottleneck", "group_width"):
            if what != "w_a" or not isinstance(self.w_a, str):
                check_type(getattr(self, what), Range | Values, f"{self.name}: {what}", "Range(...) or Values(...)")
        _check_whole(self.name, "d", self.d, 1, MAX_BLOCKS)
        _check_whole(self.name, "w_0", self.w_0, 8, MAX_CHANNELS, unit=8)
        _check_whole(self.name, "group_width", self.group_width, 1, MAX_CHANNELS)
        _check_bottleneck(self.name, self.bottleneck)
        if not isinstance(self.w_a, str):
            _check_between(self.name, "w_a", self.w_a, 0, MAX_CHANNELS)
        _check_between(self.name, "w_m", self.w_m, MIN_W_M, MAX_W_M)
        _check_where(self.name, self.where, self.columns)

    @property
    def symbols(self) -> dict[str, bool]:
        """The symbols of the parameters, and whether each is free."""
        parts = self.parts()
        return {s: s in parts and parts[s].free for s in ("d", "w_0", "w_a", "w_m", "b", "g")}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a constraint can refer to."""
        return tuple(dict.fromkeys((*self.symbols, *_stage_columns(self.stages), *_cost_columns())))

    def parts(self) -> dict[str, Domain]:
        """Return the ranges of the drawn parameters, by symbol."""
        drawn = {"d": self.d, "w_0": self.w_0, "w_a": self.w_a, "w_m": self.w_m, "b": self.bottleneck}
        drawn["g"] = self.group_width
        return {name: choice for name, choice in drawn.items() if not isinstance(choice, str)}

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom."""
        return sum(part.free for part in self.parts().values())

    @property
    def log10_size(self) -> float:
        """log10 of the number of parameter settings, as the paper counts them."""
        return sum(math.log10(part.size) for part in self.parts().values())


Space = AnyNetSpace | RegNetSpace


def _check(name: Any, block: Any, stages: Any) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 80:
        raise UsageError(f"a space needs a name on one line of at most 80 characters, got {short_repr(name)}")
    if block not in BLOCKS:
        raise UsageError(f"{name}: block must be one of {', '.join(BLOCKS)}, got {short_repr(block)}")
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= MAX_STAGES:
        raise UsageError(f"{name}: stages must be a number from 1 to {MAX_STAGES}, got {short_repr(stages)}")


def _check_between(name: str, what: str, choice: Domain, least: float, most: float) -> None:
    if choice.low < least or choice.high > most:
        raise UsageError(f"{name}: {what} must be from {least:g} to {most:g}, got {choice}")


def _check_whole(name: str, what: str, choice: Domain, least: int, most: int, unit: int = 1) -> None:
    _check_between(name, what, choice, least, most)
    if any(value % unit for value in _spanned(choice)):
        raise UsageError(
            f"{name}: {what} must be {f'multiples of {unit}' if unit > 1 else 'whole numbers'}, got {choice}"
        )


def _check_bottleneck(name: str, choice: Domain) -> None:
    """Reject ratios for which the bottleneck width does not follow from the integer width of a stage."""
    _check_between(name, "bottleneck", choice, MIN_B, MAX_B)
    if isinstance(choice, Range) and choice.free:
        fits = choice.low >= 2 or all(value.is_integer() for value in map(float, _spanned(choice)))
    else:
        values = choice.values if isinstance(choice, Values) else (choice.low,)
        fits = all(value >= 2 or (1 / value).is_integer() for value in values)
    if not fits:
        raise UsageError(f"{name}: bottleneck must be 1, 1/2, 1/3 and so on, or 2 or more, got {choice}")


def _spanned(choice: Domain) -> tuple[float, ...]:
    """Return numbers whose integer combinations include every value that can be drawn."""
    if isinstance(choice, Values):
        return choice.values
    return (choice.low, choice.step) if choice.low < choice.high else (choice.low,)


def _check_where(name: str, where: Any, columns: tuple[str, ...]) -> None:
    if not isinstance(where, tuple):
        raise UsageError(f"{name}: where must be lines of text, got {short_repr(where)}")
    try:
        for line in where:
            check_constraint(line, columns)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _stage_columns(stages: int) -> list[str]:
    return ["d", *(f"{symbol}_{i + 1}" for symbol in "dwbg" for i in range(stages))]


def _cost_columns() -> tuple[str, ...]:
    return (*_COSTS, *(f"{REFERENCE}{name}" for name in _COSTS))
