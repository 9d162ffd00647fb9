"""Files of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save an object with torch.save."""

    def save(content: object, name: str = "weights.pth", *, legacy: bool = False) -> Path:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        return tmp_path / name

    return save
