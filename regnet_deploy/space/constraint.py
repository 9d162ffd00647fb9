"""Evaluates constraints of design spaces, which are lines of text such as ``activations <= 6500 * macs ** 0.5``.

A line compares expressions of numbers and columns. Python's parser reads it, and everything except arithmetic,
comparisons and ``and``, ``or``, ``not`` is rejected, so that a space file cannot execute code.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.errors import UsageError, did_you_mean
from regnet_deploy.space.ranges import short_repr

Columns = Mapping[str, NDArray[Any]]

#: Maximum number of characters of a line, which limits the recursion of the parser and of the evaluation.
MAX_LENGTH = 400

_NUMBERS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARISONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def names_in(line: str) -> set[str]:
    """Return the columns that a constraint refers to.

    Raises:
        UsageError: the line cannot be parsed.
    """
    return {node.id for node in ast.walk(_parse(line)) if isinstance(node, ast.Name)}


def check_constraint(line: Any, columns: Iterable[str]) -> None:
    """Check that a line is a valid constraint on columns.

    Raises:
        UsageError: it is not; the message has the line and the reason.
    """
    satisfied(line, {name: np.ones(1) for name in columns})


def satisfied(line: str, columns: Columns) -> NDArray[np.bool_]:
    """Return which rows of the columns satisfy a constraint, ``(n,)``.

    Raises:
        UsageError: the line cannot be parsed, or refers to an unknown column.
    """
    with np.errstate(all="ignore"):  # a comparison with an undefined value is False
        value = _truth(_parse(line), columns, line)
    n = len(next(iter(columns.values())))
    result: NDArray[np.bool_] = np.broadcast_to(value, (n,))
    return result


def _parse(line: Any) -> ast.expr:
    if not isinstance(line, str):
        raise UsageError(f"a constraint must be a line of text as 'w_a >= w_0', got {short_repr(line)}")
    if len(line) > MAX_LENGTH:
        raise UsageError(
            f"the constraint {short_repr(line)} has {len(line)} characters, {MAX_LENGTH} at most: split it"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the parser are not for the user
            return ast.parse(line.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"the constraint {short_repr(line)} cannot be read: write it as in 'w_a >= w_0'") from None


def _truth(node: ast.expr, columns: Columns, line: str) -> NDArray[np.bool_]:
    """Evaluate a comparison, or several that are combined with ``and``, ``or``, ``not``."""
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
        sides = [_number(side, columns, line) for side in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides[:-1], sides[1:], strict=True)
        known = [~np.isnan(side) for side in sides]
        return _combine(np.logical_and, [*(_COMPARISONS[type(op)](left, right) for op, left, right in pairs), *known])
    if isinstance(node, ast.BoolOp):
        truths = [_truth(value, columns, line) for value in node.values]
        return _combine(np.logical_and if isinstance(node.op, ast.And) else np.logical_or, truths)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_truth(node.operand, columns, line)
    if isinstance(node, ast.Constant | ast.Name | ast.BinOp):
        raise UsageError(f"the constraint {short_repr(line)} compares nothing: use <, <=, ==, !=, >= or >")
    raise _not_allowed(line)


def _number(node: ast.expr, columns: Columns, line: str) -> NDArray[np.float64]:
    """Evaluate arithmetic by the rules of NumPy: overflow gives infinity, undefined results are NaN."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        try:
            return np.asarray(float(node.value))
        except OverflowError:
            return np.asarray(np.inf)
    if isinstance(node, ast.Name):
        if node.id not in columns:
            known = f"{did_you_mean(node.id, columns)}; the columns are {', '.join(columns)}"
            raise UsageError(f"the constraint {short_repr(line)} names {node.id}{known}")
        return columns[node.id].astype(np.float64)
    if isinstance(node, ast.BinOp) and type(node.op) in _NUMBERS:
        left, right = _number(node.left, columns, line), _number(node.right, columns, line)
        return np.asarray(_NUMBERS[type(node.op)](left, right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _NUMBERS:
        return np.asarray(_NUMBERS[type(node.op)](_number(node.operand, columns, line)))
    raise _not_allowed(line)


def _combine(logic: np.ufunc, truths: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Combine truth values; a comparison of constants is a single value."""
    result: NDArray[np.bool_] = logic.reduce(np.broadcast_arrays(*truths))
    return result


def _not_allowed(line: str) -> UsageError:
    allowed = "numbers, columns, + - * / **, comparisons, and, or, not (sqrt(x) is x ** 0.5)"
    return UsageError(f"the constraint {short_repr(line)} may only have {allowed}")
