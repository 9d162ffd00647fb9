"""The values of one parameter of a design space, and how they are drawn."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError, did_you_mean

Float = NDArray[np.float64]

SCALES = ("uniform", "log")

#: Larger numbers cannot be parameters of a network.
_LARGEST = 1e12
#: Up to this number of steps, floating-point multiples of a step are distinct.
_MAX_STEPS = 1e9
_MAX_VALUES = 1e6


@dataclass(frozen=True)
class Range:
    """Multiples of ``step`` from ``low`` to ``high``, drawn as in pycls.

    Uniform: from [low, high + step), rounded down. Log-uniform: from (low - min(step, low / 2), high], rounded up, so
    that the fraction of draws up to v is that of the continuous log-uniform distribution, for every possible v.

    Attributes:
        low: smallest value, a multiple of ``step``.
        high: largest value, a multiple of ``step``.
        step: difference of adjacent values.
        scale: ``uniform`` or ``log``.
        counted: number of values in the size of a space; None means the real number. The paper counts the real
            parameters of RegNet as 64 values each (arXiv 2003.13678, table 1).
    """

    low: float
    high: float
    step: float = 1.0
    scale: str = "uniform"
    counted: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value is not valid; the message names the allowed values.
        """
        for name in ("low", "high", "step"):
            check_number(getattr(self, name), f"{name} of a range")
        if self.scale not in SCALES:
            given = f"{short_repr(self.scale)}{suggestion(self.scale, SCALES)}"
            raise UsageError(f"the scale of a range must be {' or '.join(SCALES)}, got {given}")
        if self.step <= 0 or self.low > self.high:
            raise UsageError(f"a range needs low <= high and a step above 0, got {self}")
        if self.scale == "log" and self.low <= 0:
            raise UsageError(f"a range on a log scale must start above 0, got {self.low:g}")
        for name, value in (("low", self.low), ("high", self.high)):
            if abs(value) > _MAX_STEPS * self.step:
                raise UsageError(f"{name} must be at most a billion steps of {self.step:g}, got {value:g}")
            if abs(value / self.step - round(value / self.step)) > 1e-6:
                raise UsageError(f"{name} must be a multiple of the step {self.step:g}, got {value:g}")
        if (self.high - self.low) / self.step >= _MAX_VALUES:
            raise UsageError(f"a range has at most a million values, got {self}")
        if self.counted is not None:
            check_number(self.counted, "counted of a range")
            if self.counted < 1:
                raise UsageError(f"counted of a range must be 1 or more, got {self.counted:g}")

    def __str__(self) -> str:
        """Return ``low..high``, with step and scale unless they are the defaults."""
        step = "" if self.step == 1 else f" step {self.step:g}"
        return f"{self.low:g}..{self.high:g}{step}{', log' if self.scale == 'log' else ''}"

    @property
    def free(self) -> bool:
        """Whether it has more than one value."""
        return self.low < self.high

    @property
    def size(self) -> float:
        """Number of values in the size of a space."""
        return self.counted if self.counted is not None else round((self.high - self.low) / self.step) + 1

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
        """Draw values of a shape."""
        if self.scale == "log":
            start = math.log(self.low - min(self.step, self.low / 2))
            # 1 - u is in (0, 1]: the start, which would be rounded up to less than low, is never drawn.
            drawn = np.exp(start + (1.0 - rng.random(shape)) * (math.log(self.high) - start)) / self.step
            steps = np.ceil(drawn - 1e-9)
        else:
            steps = np.floor(rng.uniform(self.low / self.step, self.high / self.step + 1, shape) + 1e-9)
        values: Float = _multiple(np.clip(steps, round(self.low / self.step), round(self.high / self.step)), self.step)
        return values

    def probabilities(self) -> tuple[Float, Float]:
        """Return all values in ascending order, and their probabilities."""
        steps = np.arange(round(self.low / self.step), round(self.high / self.step) + 1, dtype=np.float64)
        values: Float = _multiple(steps, self.step)
        if self.scale == "uniform":
            return values, np.full(len(values), 1 / len(values))
        start = self.low - min(self.step, self.low / 2)
        return values, np.diff(np.log(values / start), prepend=0.0) / math.log(self.high / start)

    def within(self, low: float, high: float) -> Range:
        """Return the part between two values, extended to the steps at or below ``low`` and at or above ``high``.

        If both are on one side of the range, its end on that side remains.
        """
        below = _multiple(math.floor(low / self.step + 1e-9), self.step)
        above = _multiple(math.ceil(high / self.step - 1e-9), self.step)
        least, most = min(max(self.low, below), self.high), max(min(self.high, above), self.low)
        if self.counted is None:
            return replace(self, low=least, high=most)
        whole, part = (round((b - a) / self.step) + 1 for a, b in ((self.low, self.high), (least, most)))
        return replace(self, low=least, high=most, counted=max(1.0, round(self.counted * part / whole, 3)))

    def to_data(self) -> dict[str, Any]:
        """Return the data of a space file."""
        data: dict[str, Any] = {"low": _plain(self.low), "high": _plain(self.high)}
        if self.step != 1:
            data["step"] = _plain(self.step)
        if self.scale != "uniform":
            data["scale"] = self.scale
        if self.counted is not None:
            data["counted"] = _plain(self.counted)
        return data


@dataclass(frozen=True)
class Values:
    """A list of values with equal probabilities."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: the list is empty, has a duplicate, or a value is not a number.
        """
        for value in self.values:
            check_number(value, "each of a list of values")
        if not self.values or len(set(self.values)) != len(self.values):
            raise UsageError(f"a list of values needs different numbers, got {short_repr(list(self.values))}")

    def __str__(self) -> str:
        """Return ``{a, b, c}``, or the only value."""
        listed = ", ".join(f"{value:g}" for value in self.values)
        return listed if len(self.values) == 1 else f"{{{listed}}}"

    @property
    def low(self) -> float:
        """Smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Largest value."""
        return max(self.values)

    @property
    def free(self) -> bool:
        """Whether there is more than one value."""
        return len(self.values) > 1

    @property
    def size(self) -> float:
        """Number of values."""
        return len(self.values)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
        """Draw values of a shape."""
        if len(self.values) == 1:
            return np.full(shape, float(self.values[0]))
        drawn: Float = np.asarray(self.values, dtype=np.float64)[rng.integers(0, len(self.values), shape)]
        return drawn

    def probabilities(self) -> tuple[Float, Float]:
        """Return all values in ascending order, and their probabilities."""
        return np.sort(np.asarray(self.values, dtype=np.float64)), np.full(len(self.values), 1 / len(self.values))

    def within(self, low: float, high: float) -> Values:
        """Return the values from ``low`` to ``high``, or the nearest to their mean if there is none."""
        kept = tuple(value for value in self.values if low <= value <= high)
        return Values(kept or (min(self.values, key=lambda value: abs(value - (low + high) / 2)),))

    def to_data(self) -> list[float] | float:
        """Return the data of a space file."""
        listed = [_plain(value) for value in self.values]
        return listed[0] if len(listed) == 1 else listed


Domain = Range | Values


def choice_from(data: Any, what: str) -> Domain:
    """Read a range from a space file: a number, a list of numbers, or low and high with step and scale.

    Raises:
        UsageError: it is something else; ``what`` is the name of the parameter in the message.
    """
    if isinstance(data, Range | Values):
        return data
    try:
        if isinstance(data, int | float) and not isinstance(data, bool):
            return Values((data,))
        if isinstance(data, list | tuple):
            return Values(tuple(data))
        if isinstance(data, dict):
            known = ("low", "high", "step", "scale", "counted")
            for name in data:
                if name not in known:
                    raise UsageError(
                        f"{short_repr(name)} is not known{suggestion(name, known)}; use {', '.join(known)}"
                    )
            if "low" in data and "high" in data:
                return Range(**data)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    raise UsageError(f"{what} must be a number, a list of numbers, or have low and high, got {short_repr(data)}")


def check_number(value: Any, what: str) -> None:
    """Check that a value is a number of a valid size.

    Raises:
        UsageError: it is not; ``what`` is its name in the message.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        is_text = isinstance(value, str) and _is_number(value)
        advice = " (YAML reads this as text: write it without an exponent)" if is_text else ""
        raise UsageError(f"{what} must be a number, got {short_repr(value)}{advice}")
    if not abs(value) <= _LARGEST:
        raise UsageError(f"{what} must be a number up to {_LARGEST:g}, got {short_repr(value)}")


def check_type(value: Any, kind: Any, what: str, written: str) -> None:
    """Check the type of a value from a Python file.

    Raises:
        UsageError: the type is wrong; ``what`` is the name of the value in the message, ``written`` the expected form.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{what} must be {written}, got {short_repr(value)}")


def short_repr(value: Any) -> str:
    """Return the representation of a value for error messages, on one line and at most 160 characters long."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer with too many digits for Python to convert
        return "a number of thousands of digits"
    return text if len(text) <= 160 else f"{text[:157]}..."


def suggestion(word: Any, known: Iterable[str]) -> str:
    """Return the suggestion of :func:`did_you_mean` for text, and an empty string for other data."""
    return did_you_mean(word, known) if isinstance(word, str) else ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxtuple = 2, 8, 4, 8
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _multiple(steps: Any, step: float) -> Any:
    """Return multiples of a step; for 0.1 the floats nearest to 0.1, 0.2, 0.3 (3 * 0.1 is not the nearest to 0.3)."""
    parts = round(1 / step)
    return steps / parts if parts > 1 and abs(parts * step - 1) < 1e-9 else steps * step


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)
