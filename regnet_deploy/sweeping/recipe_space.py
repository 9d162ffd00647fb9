"""Spaces of recipes: which values of the recipe are searched, in which ranges, and the recipes that are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_deploy.errors import UsageError, require
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_checks import suggestion

#: Values that a search does not vary: they are the same for all, or decide what is compared.
_FIXED = frozenset({"epochs", "steps", "minutes", "seed", "fine_tune", "lr_probe", "retries"})
#: Searched unless the user names something else; rates are times that of the recipe that `train` would use.
_RATES = (1 / 8, 4.0)
_DEFAULT = {"weight_decay": "1e-5:2e-3:log", "crop_area": "0.1:0.9", "label_smoothing": "0,0.05,0.1,0.2"}
_TYPES = {
    field.name: kind
    for field in fields(Recipe)
    if (kind := str(field.type).split("|")[0].strip()) in ("int", "float", "bool", "str")
}

Value = str | int | float | bool


@dataclass(frozen=True)
class ValueRange:
    """The values that one value of the recipe may have: an interval, or a list of choices.

    Attributes:
        choices: the values; empty for an interval.
        low: lower end.
        high: upper end.
        log: whether equal ratios rather than equal differences are equally likely.
        whole: whether values are whole numbers.
    """

    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, place: float) -> Value:
        """Return the value at a place from 0 to 1."""
        if self.choices:
            return self.choices[min(len(self.choices) - 1, int(place * len(self.choices)))]
        value = self.low + (self.high - self.low) * place
        if self.log:
            value = math.exp(math.log(self.low) + math.log(self.high / self.low) * place)
        if self.whole:
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.4g}")))

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that have to be possible for all of them to be."""
        return self.choices or (self.at(0.0), self.at(1.0))

    def __str__(self) -> str:
        if self.choices:
            return ",".join(map(str, self.choices))
        return f"{self.low:g}:{self.high:g}{':log' if self.log else ''}"


RecipeSpace = Mapping[str, ValueRange]


def default_space(base: Recipe) -> dict[str, ValueRange]:
    """Return the space that is searched unless another one is given: rate, weight decay and augmentation strength."""
    rate = base.lr
    return parse_space({"lr": f"{rate * _RATES[0]:.3g}:{rate * _RATES[1]:.3g}:log", **_DEFAULT})


def read_space(path: Path) -> dict[str, ValueRange]:
    """Return the space of a YAML file: names of values of the recipe, each with ``LOW:HIGH[:log]`` or a list.

    Raises:
        UsageError: the file cannot be read, is not YAML, or names values or ranges that are not possible.
    """
    yaml = require("yaml", "sweep")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # 1:30 is no number of base 60
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split()):.200}") from None
    if not isinstance(data, dict) or not data:
        raise UsageError(f"{path} has to be a mapping such as `lr: 0.02:0.8:log`, one line for each value")
    try:
        return parse_space(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_space(given: Mapping[str, Any]) -> dict[str, ValueRange]:
    """Return the space of names with texts ``LOW:HIGH[:log]`` or ``A,B,C``, or lists of texts.

    Raises:
        UsageError: with everything that is wrong.
    """
    space, wrong = {}, []
    for name, text in given.items():
        try:
            space[name] = _value_range(name, text)
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError("; ".join(wrong))
    return space


def check_space(space: RecipeSpace, base: Recipe) -> None:
    """Check that every value of a space is possible in a recipe.

    Raises:
        UsageError: with everything that is not.
    """
    wrong = []
    for name, values in space.items():
        for value in values.ends:
            try:
                recipe_with(base, {name: value})
            except UsageError as error:
                wrong.append(f"{name} {value}: {error}")
    if wrong:
        raise UsageError("; ".join(wrong))


def draw_recipes(space: RecipeSpace, n: int, seed: int) -> list[dict[str, Value]]:
    """Return what is different in each of ``n`` recipes; nothing is in the first one.

    The others are a Latin hypercube: of each value, every part of its range is drawn equally often.
    """
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, Value]] = [{} for _ in range(n)]
    for name, values in space.items():
        places = (rng.permutation(max(1, n - 1)) + rng.random(max(1, n - 1))) / max(1, n - 1)
        for values_of, place in zip(drawn[1:], places.tolist(), strict=False):
            values_of[name] = values.at(place)
    return drawn


def recipe_with(base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values; trials of the learning rate do not change one that is among them.

    Raises:
        UsageError: a value is not possible.
    """
    fixed: dict[str, Any] = {"lr_probe": False} if "lr" in values else {}
    if not values.get("flip", True) and base.flip_probe:
        fixed["flip_probe"] = False
    if "crop_area" in values:
        fixed["aligned_crop_area"] = 0.0
    return replace(base, **{**fixed, **values})


def _value_range(name: str, text: str | Sequence[str]) -> ValueRange:
    known = [each for each in _TYPES if each not in _FIXED]
    if name in _FIXED:
        raise UsageError(f"{name} is the same for all recipes of a search: leave it out")
    if name not in _TYPES:
        raise UsageError(f"a recipe has no {name!r:.60}{suggestion(str(name), known)}: it has {', '.join(known)}")
    if not isinstance(text, str):
        return ValueRange(choices=_choices(name, text))
    parts = text.split(":")
    if len(parts) == 1:
        return ValueRange(choices=_choices(name, text.split(",")))
    log = len(parts) == 3 and parts[2] == "log"
    if _kind(name) not in ("int", "float") or not (len(parts) == 2 or log):
        raise UsageError(f"{name} {text!r:.60}: give LOW:HIGH, LOW:HIGH:log, or values such as A,B")
    low, high = (_value(name, part) for part in parts[:2])
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low < high and (low > 0 or not log)):
        raise UsageError(f"{name} {text!r:.60}: LOW has to be below HIGH{', and above 0 with log' if log else ''}")
    return ValueRange(low=low, high=high, log=log, whole=_kind(name) == "int")


def _choices(name: str, texts: Iterable[Any]) -> tuple[Value, ...]:
    values = tuple(dict.fromkeys(_value(name, text) for text in texts))
    if not values:
        raise UsageError(f"{name} has no values to choose from: give some, such as A,B")
    return values


def _value(name: str, text: Any) -> Value:
    """Return a value of the type that it has in a recipe."""
    kind, word = _kind(name), str(text).strip()
    if kind == "bool":
        if word.lower() in ("true", "false"):
            return word.lower() == "true"
        raise UsageError(f"{name} {word!r:.60}: give true or false")
    if kind == "str":
        return word
    try:
        number = int(word) if kind == "int" else float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} {word!r:.60}: give {'a whole number' if kind == 'int' else 'a number'}")
    return number


def _kind(name: str) -> str:
    return _TYPES[name]
