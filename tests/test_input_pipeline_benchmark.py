"""The program that measures the input pipeline: its sides make batches, and its page judges."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.alone  # loaders fork


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import input_pipeline_side

    return input_pipeline_side


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import input_pipeline_page

    return input_pipeline_page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(20):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((200, 150), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg", quality=90)
    return tmp_path


@pytest.fixture(autouse=True)
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sides replace the decoder of the loader: put it back afterwards."""
    from regnet_deploy.training import data_loader

    monkeypatch.setattr(data_loader, "decode_scaled", data_loader.decode_scaled)


@pytest.mark.parametrize("name", ["decoded", "packed", "whole", "threads"])
def test_every_side_makes_batches_of_views(side: ModuleType, folder: Path, name: str) -> None:
    batch = next(iter(side.ours(name, folder)(24, 1)))
    assert batch.pixels.shape == (16, 24, 24, 3)
    assert batch.pixels.dtype == torch.uint8
    assert min(side.rate(side.ours(name, folder)(24, 1), 0.01)) > 0


def test_the_views_of_a_packed_file_are_those_of_the_images(side: ModuleType, folder: Path) -> None:
    batches = [next(iter(side.ours(name, folder)(24, 1))).pixels for name in ("decoded", "packed", "threads")]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_the_difference_of_reduced_decoding_is_small_and_not_none(side: ModuleType, folder: Path) -> None:
    assert 0 < side.difference(folder, 24) < 1.5


@pytest.mark.parametrize(
    ("ratios", "said"),
    [([1.1, 1.3], "that is worth"), ([1.09, 1.3], "that is not worth"), ([0.8, 0.9], "that is not worth")],
)
def test_what_gains_less_than_a_tenth_is_not_used(page: ModuleType, ratios: list[float], said: str) -> None:
    assert page.verdict(ratios).startswith(said)
