"""The stored configuration of pycls says how images are loaded and of which size they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_weights import X, weights_of

from regnet_deploy.importing.foreign_weights import read_foreign_weights
from regnet_deploy.importing.import_weights import import_weights
from regnet_deploy.importing.pycls_config import sizes_of_test, uses_ffcv

Save = Callable[..., Path]
BLOCK = (
    "DATA_LOADER:\n  MODE: {mode}\n  NUM_WORKERS: 8\nTEST:\n  BATCH_SIZE: 2\n  IM_SIZE: 144\nTRAIN:\n  IM_SIZE: 128\n"
)
BRACES = (
    "DATA_LOADER: {{MODE: {mode}, NUM_WORKERS: 8}}\nTEST: {{BATCH_SIZE: 2,\n  IM_SIZE: 144}}\nTRAIN: {{IM_SIZE: 128}}\n"
)


@pytest.mark.parametrize("text", [BLOCK, BRACES])
def test_values_are_read_in_both_styles_of_yaml(text: str) -> None:
    assert uses_ffcv({"cfg": text.format(mode="ffcv")}) is True
    assert uses_ffcv({"cfg": text.format(mode="pytorch")}) is False
    assert sizes_of_test({"cfg": text.format(mode="ffcv")}) == (144, 128)


def test_what_is_missing_or_cannot_be_is_not_known() -> None:
    assert uses_ffcv({}) is None
    assert uses_ffcv({"cfg": "OTHER:\n  MODE: ffcv\nDATA_LOADER:\n  MODE: pytorch\n"}) is False
    for text in ("", "TEST:\n  IM_SIZE: 144\n", "TEST:\n  IM_SIZE: 100\nTRAIN:\n  IM_SIZE: 128\n", "TEST: {IM_SIZE"):
        assert sizes_of_test({"cfg": text}) is None


def test_the_test_of_the_checkpoint_becomes_the_preprocessing(saved: Save, tmp_path: Path) -> None:
    state = weights_of(X)
    file = saved({"model_state": state, "cfg": BLOCK.format(mode="ffcv")})
    assert torch.equal(read_foreign_weights(file).state["stem.conv.weight"], state["stem.conv.weight"])
    bundle = import_weights(file, tmp_path / "b")
    assert (bundle.preprocessing.resize, bundle.preprocessing.crop) == (144, 128)


def test_errors_that_are_not_finite_choose_nothing(saved: Save) -> None:
    state = weights_of(X)
    content = {"model_state": state, "ema_state": state, "test_err": float("nan"), "ema_err": 20.0}
    (remark,) = read_foreign_weights(saved(content)).file.remarks
    assert remark == "of the plain and the averaged weights, model_state is taken, because their errors are not stored"
