"""Recipes as YAML files: those that are shipped, and the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from regnet_deploy.errors import UsageError, did_you_mean, require
from regnet_deploy.field_types import field_type_problem
from regnet_deploy.space.published import data_folder
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.recipe_checks import Problem, contradictions, range_problems, suggestion

#: The shipped recipes in the order in which they are listed.
NAMES = ("auto", "fine-tune", "paper", "low-compute", "fast", "strong")
#: What decides the values that a file does not name: rules for random weights or for fine-tuning, or for the latter
#: alone. Without a rule they are the defaults of :class:`Recipe`.
RULES = ("auto", "fine-tune")
#: Maximum number of characters of a recipe file.
MAX_LENGTH = 50_000
_TEXTS = ("description", "source", "measured")
_KEYS = (*_TEXTS, "rule", "values")
_FIELDS = tuple(each.name for each in fields(Recipe))
#: Values that say how long a run is, each in its way.
_LENGTHS = ("epochs", "steps", "minutes")
#: Levels of mappings in a file: its keys, and its values.
_LEVELS = 2


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe of a file.

    Attributes:
        name: that of a shipped recipe, or of the file.
        description: what it is for.
        source: where its values are from.
        measured: which accuracy was measured with it, and by whom.
        rule: ``auto`` or ``fine-tune``: rules decide the values that ``values`` does not name; None: they are the
            defaults of :class:`Recipe`.
        values: of :class:`Recipe` by name.
        text: the file.
        changed: names of the values that were changed after it was read.
    """

    name: str
    description: str = ""
    source: str = ""
    measured: str = ""
    rule: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    changed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first sentence of the description, without its period."""
        return self.description.partition(". ")[0].rstrip(".")

    @property
    def title(self) -> str:
        """The name, and what was changed."""
        return f"{self.name} with other {', '.join(self.changed)}" if self.changed else self.name

    def with_values(self, values: Mapping[str, Any]) -> NamedRecipe:
        """Return the recipe with other values, which win over those of the file: one length over every other."""
        new = {name: value for name, value in values.items() if value is not None}
        lengths = _LENGTHS if any(name in new for name in _LENGTHS) else ()
        kept = {name: value for name, value in self.values.items() if name not in lengths}
        changed = [name for name, value in new.items() if name not in self.values or self.values[name] != value]
        return replace(self, values={**kept, **new}, changed=tuple(dict.fromkeys((*self.changed, *changed))))

    def resolved(self) -> Recipe | dict[str, Any]:
        """Return what :func:`regnet_deploy.training.train.train` takes: a complete recipe, or values for the rules.

        Raises:
            UsageError: a value is not possible.
        """
        if self.rule is None:
            return Recipe(**self.values)
        return {**({"fine_tune": True} if self.rule == "fine-tune" else {}), **self.values}


def load_recipe(name: str | Path) -> NamedRecipe:
    """Return a shipped recipe by its name, or the recipe of a YAML file.

    Raises:
        UsageError: there is none, or the file does not describe one; the message has all that is wrong with it.
        MissingExtra: PyYAML is not installed.
    """
    word = str(name)
    if word.lower() in NAMES:
        path = data_folder() / "recipes" / f"{word.lower()}.yaml"
        return read_recipe(_text(path), word.lower(), word.lower())
    if not word.endswith((".yaml", ".yml")):
        raise UsageError(
            f"no recipe {word[:60]!r}{did_you_mean(word, NAMES)}: give a name that `regnet-deploy recipes` lists, or a "
            ".yaml file"
        )
    return read_recipe(_text(Path(word)), Path(word).name, word)


def name_and_values(recipe: NamedRecipe | Recipe | Mapping[str, Any]) -> tuple[str | None, Recipe | Mapping[str, Any]]:
    """Return the name of a recipe, if it has one, with what has changed, and the recipe itself or values for the rules.

    Raises:
        UsageError: a value is not possible.
    """
    return (recipe.title, recipe.resolved()) if isinstance(recipe, NamedRecipe) else (None, recipe)


def shipped_recipes() -> list[NamedRecipe]:
    """Return the shipped recipes."""
    return [load_recipe(name) for name in NAMES]


def read_recipe(text: str, name: str, source: str) -> NamedRecipe:
    """Return the recipe that YAML describes; ``source`` is its name in error messages.

    Raises:
        UsageError: with all that is wrong, by line.
        MissingExtra: PyYAML is not installed.
    """
    document = _Document(text, source)
    problems = list(document.problems())
    values, texts = document.scalars(document.values, _FIELDS), document.scalars(document.top, (*_TEXTS, "rule"))
    rule = texts.get("rule")
    for key in _TEXTS:
        if key in texts and not isinstance(texts[key], str):
            problems.append(Problem((key,), f"{key} must be a text, got {texts[key]!r:.60}"))
    if rule is not None and rule not in RULES:
        known = did_you_mean(str(rule), RULES)
        problems.append(Problem(("rule",), f"rule must be {' or '.join(RULES)}, got {rule!r:.60}{known}"))
    values = {key: _number(key, value) for key, value in values.items()}
    wrong = {key: problem for key, value in values.items() if (problem := field_type_problem(Recipe, key, value))}
    problems += [Problem((key,), problem) for key, problem in wrong.items()]
    problems += range_problems({key: value for key, value in values.items() if key not in wrong})
    lengths = tuple(name for name in _LENGTHS if name in values)
    if len(lengths) > 1:
        problems.append(Problem(lengths, f"{' and '.join(lengths)} say how long the run is: set one of them"))
    if not problems and rule is None:
        problems += contradictions(_unchecked(values))
    if problems:
        raise UsageError(f"{source}: {'; '.join(document.located(problem) for problem in problems)}")
    description, origin, measured = (" ".join(texts.get(key, "").split()) for key in _TEXTS)
    return NamedRecipe(name, description, origin, measured, rule, values, text)


class _Document:
    """The nodes of a recipe file, with what is wrong with its form.

    Attributes:
        top: the file's keys with the nodes of their values.
        values: the names of the recipe's values with the nodes of these.
    """

    def __init__(self, text: str, source: str) -> None:
        self._yaml = require("yaml", "train")
        if len(text) > MAX_LENGTH:
            raise UsageError(f"{source} has {len(text):,} characters; the maximum for a recipe is {MAX_LENGTH:,}")
        try:
            self._check_form(text)
            self._loader = self._yaml.SafeLoader(text)
            root = self._loader.get_single_node()
        except self._yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            where = f" line {mark.line + 1}" if mark else ""
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UsageError(f"{source}{where} is not the YAML of a recipe: {reason}") from None
        if not isinstance(root, self._yaml.MappingNode):
            raise UsageError(
                f"{source} must have keys with values, such as `values:`; see `regnet-deploy recipes fast`"
            )
        self._keys: list[tuple[str, int, bool]] = []  # name, line, whether it is a value of the recipe
        self.top = self._members(root, False)
        inner = self.top.get("values")
        self.values: dict[str, Any] = {}
        if isinstance(inner, self._yaml.MappingNode):
            self.values = self._members(inner, True)

    def problems(self) -> Iterator[Problem]:
        """Yield keys that are unknown or repeated, and values of another kind than a recipe has."""
        for name, line, inner in self._keys:
            known = _FIELDS if inner else _KEYS
            if name not in known:
                others = suggestion(name, known)
                if not others and not inner and name in _FIELDS:
                    others = " (it belongs under values:)"
                what = "a recipe has no value" if inner else "a recipe file has no key"
                yield Problem((), f"line {line}: {what} {name!r:.60}{others}")
        for (name, _), times in Counter((name, inner) for name, _, inner in self._keys).items():
            if times > 1:
                yield Problem((), f"{name[:60]} is there {times} times")
        for name, node in (*self.top.items(), *self.values.items()):
            is_values = name == "values" and node is self.top.get("values")
            if is_values and not isinstance(node, self._yaml.MappingNode):
                yield Problem(("values",), "values must be names with values, such as `epochs: 50`")
            elif not is_values and not isinstance(node, self._yaml.ScalarNode):
                yield Problem((), f"line {node.start_mark.line + 1}: {name[:60]} must be one value")

    def scalars(self, members: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Return the values of members with these names; :meth:`problems` names those that are lists or mappings."""
        return {
            name: self._scalar(node)
            for name, node in members.items()
            if name in names and isinstance(node, self._yaml.ScalarNode)
        }

    def _scalar(self, node: Any) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, self._yaml.YAMLError):  # for example a date that does not exist
            return node.value

    def located(self, problem: Problem) -> str:
        """Return the text of a problem with the lines that it is about."""
        own = [(line, name) for name, line, inner in self._keys if inner == (name in _FIELDS)]
        lines = sorted({line for line, name in own if name in problem.names})
        if not lines:
            return problem.message
        return f"line{'s' if len(lines) > 1 else ''} {' and '.join(map(str, lines))}: {problem.message}"

    def _members(self, node: Any, inner: bool) -> dict[str, Any]:
        members = {}
        for key, value in node.value:
            name = str(getattr(key, "value", "")) if isinstance(key, self._yaml.ScalarNode) else "a list or mapping"
            self._keys.append((name, key.start_mark.line + 1, inner))
            members[name] = value
        return members

    def _check_form(self, text: str) -> None:
        """Refuse what a recipe does not need and what could fill the memory: aliases and deep nesting."""
        depth = 0
        for event in self._yaml.parse(text, Loader=self._yaml.SafeLoader):
            if isinstance(event, self._yaml.AliasEvent):
                raise self._yaml.MarkedYAMLError(problem="aliases (*) are not allowed", problem_mark=event.start_mark)
            depth += isinstance(event, self._yaml.CollectionStartEvent)
            depth -= isinstance(event, self._yaml.CollectionEndEvent)
            if depth > _LEVELS + 1:  # one more is named as a value that must be one
                raise self._yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=event.start_mark)


def _number(name: str, value: Any) -> Any:
    """Return a number that YAML 1.1 takes for a text: it needs the point in ``5.0e-5``."""
    if isinstance(value, str) and "float" in Recipe.__annotations__[name]:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _unchecked(values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with these values that has not been checked, to look for contradictions."""
    recipe = object.__new__(Recipe)
    for name in _FIELDS:
        object.__setattr__(recipe, name, values.get(name, getattr(Recipe, name)))
    return recipe


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or an invalid path
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"cannot read the recipe {str(path)[:200]}: {reason}") from None
