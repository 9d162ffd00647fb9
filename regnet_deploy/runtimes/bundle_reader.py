"""Reads a bundle that another command may be writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from regnet_deploy.bundle import Bundle, open_bundle
from regnet_deploy.errors import BundleError

T = TypeVar("T")


def read_bundle(path: str | Path, use: Callable[[Bundle], T], spoiled: Callable[[T], bool] | None = None) -> T:
    """Open a bundle and use it; try once more if that failed because another command replaced the bundle meanwhile.

    A command that writes a bundle deletes the files that are not in the new manifest, which a reader of the old one may
    be about to read.

    Args:
        path: folder of the bundle.
        use: reads what it needs.
        spoiled: tells whether files may have been missing for this result; by default only an error says so.

    Raises:
        BundleError: missing, damaged or newer; or what ``use`` raises.
    """
    bundle = open_bundle(path)
    try:
        result = use(bundle)
    except BundleError:
        again = open_bundle(path)
        if again.digest == bundle.digest:
            raise
        return use(again)
    if spoiled is not None and spoiled(result):
        again = open_bundle(path)
        if again.digest != bundle.digest:
            return use(again)
    return result
