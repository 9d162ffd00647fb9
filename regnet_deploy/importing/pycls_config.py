"""Values of the configuration that a checkpoint of pycls holds as YAML text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Smallest and largest size of images, pixels, that is believed.
_SIZES = range(16, 4097)


def uses_ffcv(metadata: Mapping[str, Any]) -> bool | None:
    """Tell whether images were loaded by ffcv, as RGB, and not as BGR; None where the checkpoint does not say."""
    text = str(metadata.get("cfg", ""))
    return _value(text, "DATA_LOADER", "MODE") == "ffcv" if text else None


def sizes_of_test(metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the short side of an image and the side of its central crop in the test, pixels; None if unknown."""
    text = str(metadata.get("cfg", ""))
    resize, crop = (_value(text, section, "IM_SIZE") for section in ("TEST", "TRAIN"))  # the crop is that of training
    if resize is None or crop is None or not (resize.isdecimal() and crop.isdecimal()):
        return None
    sizes = int(resize), int(crop)
    return sizes if sizes[0] in _SIZES and sizes[1] in _SIZES and sizes[0] >= sizes[1] else None


def _value(text: str, section: str, key: str) -> str | None:
    """Return a value of a section, which PyYAML writes as an indented block, and before 5.1 in braces."""
    found = re.search(rf"^{section}:(?:[ ]*\n((?:[ \t]+.*\n?)+)|\s*\{{([^}}]*)\}})", text, re.MULTILINE)
    if found is None:
        return None
    value = re.search(rf"(?:^|[\s,]){key}:\s*['\"]?([\w.]+)", found[1] or found[2] or "")
    return value[1] if value else None
