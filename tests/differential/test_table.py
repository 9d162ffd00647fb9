"""docs/compatibility.md is generated from the table of differences; COMPATIBILITY_WRITE=1 writes it."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

_TEXT = """# Compatibility with Triton

Clients of Triton work unchanged: `tritonclient` over HTTP and gRPC, `perf_analyzer`, and other clients of the Open
Inference Protocol v2 with the extensions that `GET /v2` lists. `pytest -m triton tests/differential` sends the same
valid and invalid requests to this server and to a real Triton 2.51 (24.10) with the same network, and compares
statuses, names, shapes, types and numbers. This table lists all differences: the test fails for any other difference,
and for an entry that is no longer true. Texts of errors are not compared. Over gRPC the codes are those of Triton,
except for the differences of HTTP in the table.

| request | this server | Triton 2.51 | why |
| --- | --- | --- | --- |
"""

_CALLS = (
    "Over gRPC, Triton also has these calls, which this server answers with UNIMPLEMENTED: {calls}. A model without "
    "state gains nothing from a stream of requests: `ModelInfer` on one connection runs as many at a time."
)

_END = """
Triton lacks these limits, so they are not compared: 413 for a body, an image or JSON that is too large, 408 for a
body that does not arrive, 431 for a head that is too large, 503 with `Retry-After` for too many requests, connections
or images, 504 for a deadline, 401 without the token.
"""


def page(differences: Any) -> str:
    """Return the page."""
    rows = [f"| {entry.request} | {entry.ours} | {entry.triton} | {entry.why} |\n" for entry in differences.JUSTIFIED]
    calls = ", ".join(f"`{name}`" for name in differences.UNSUPPORTED_CALLS)
    return (
        _TEXT
        + "".join(rows)
        + textwrap.fill(_CALLS.format(calls=calls).strip(), 118, initial_indent="\n")
        + "\n"
        + _END
    )


def test_the_page_is_the_table(differences: Any):
    made = page(differences)
    if os.environ.get("COMPATIBILITY_WRITE"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, "COMPATIBILITY_WRITE=1 pytest tests/differential writes it"


def test_entries_have_names_of_their_own(differences: Any):
    names = [entry.name for entry in differences.JUSTIFIED]
    assert len(set(names)) == len(names)
    assert all("|" not in cell for entry in differences.JUSTIFIED for cell in (entry.request, entry.ours, entry.why))
