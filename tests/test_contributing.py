"""CONTRIBUTING.md names every reason for which a test is skipped."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def skip_reasons():
    """Yield the reasons in the tests that are literals."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                arguments = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
                if node.func.attr == "skip":
                    arguments += node.args
                yield from (value.value for value in arguments if isinstance(value, ast.Constant))


def test_every_reason_to_skip_a_test_is_explained():
    reasons = set(skip_reasons())
    assert len(reasons) > 10
    assert not sorted(reason for reason in reasons if reason not in TEXT)


def test_every_reason_that_is_explained_is_one_of_a_test():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    rows = re.findall(r"^\| (needs .+?) \|", TEXT, re.M)
    explained = [reason for row in rows for reason in re.split(r", (?=needs )", row)]
    assert len(explained) > 10
    assert not [reason for reason in explained if f'"{reason}"' not in sources]
