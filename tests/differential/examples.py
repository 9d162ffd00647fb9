"""Requests that show one difference each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from differential_drafts import PACKED, Case, plain


def infer(tag: str, **changes: Any) -> Any:
    """A plain request with fields of its draft changed."""
    draft = plain(binary=changes.pop("binary", False), **changes.pop("top", {}))
    for name, value in changes.items():
        setattr(draft, name, value)
    draft.tags.add(tag)
    return draft.done()


def data(tag: str, change: Callable[[list[float]], Any]) -> Any:
    draft = plain(binary=False)
    draft.tensor["data"] = change(draft.tensor["data"])
    draft.tags.add(tag)
    return draft.done()


def tensor(tag: str, **fields: Any) -> Any:
    draft = plain(binary=False)
    draft.tensor.update(fields)
    draft.tags.add(tag)
    return draft.done()


def packed(kind: str) -> Any:
    encoding, pack = PACKED[kind]
    return infer(f"packed-{kind}", headers={"Content-Encoding": encoding}, pack=pack)


def ask(method: str, path: str, body: bytes = b"", *tags: str) -> Any:
    return Case(method, path, (), body, frozenset({"question", *tags}))


def with_text(tag: str, start: bytes) -> Any:
    draft = plain(binary=False)
    draft.text = start + draft.json()[1:]
    draft.tags.add(tag)
    return draft.done()
