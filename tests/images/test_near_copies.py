"""Near copies are found by perceptual hashes: all pairs within the limit, each image with the nearest before it."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from regnet_deploy.images import near_copies as near_copies_module
from regnet_deploy.images.image_check import ImageCheck, check_images
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.images.near_copies import NEAR_BITS, near_copies, near_pairs


def hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def flipped(one: np.ndarray, bits: int, seed: int) -> np.ndarray:
    """The hash with this number of bits inverted."""
    chosen = np.random.default_rng(seed).permutation(256)[:bits]
    mask = np.zeros(256, np.uint8)
    mask[chosen] = 1
    return one ^ np.packbits(mask).view(np.uint64)


def found(all_hashes: np.ndarray) -> dict[tuple[int, int], int]:
    return {
        (min(a, b), max(a, b)): bits
        for ones, others, distances in near_pairs(all_hashes)
        for a, b, bits in zip(ones.tolist(), others.tolist(), distances.tolist(), strict=True)
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_are_those_of_comparing_each_with_each(seed: int) -> None:
    start = hashes(20, seed)
    near = [flipped(one, bits, seed + bits) for one in start for bits in (1, NEAR_BITS, NEAR_BITS + 1, 40)]
    everything = np.concatenate([start, np.array(near), start[:2]])
    expected = {}
    for a, b in combinations(range(len(everything)), 2):
        bits = int(np.unpackbits((everything[a] ^ everything[b]).view(np.uint8)).sum())
        if bits <= NEAR_BITS:
            expected[a, b] = bits
    assert len(expected) > 40
    assert found(everything) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_hashes_there_is_no_pair(count: int) -> None:
    assert found(hashes(count, 0)) == {}


def test_of_very_many_alike_each_is_compared_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies_module, "_COMPARED", 10)
    (one,) = hashes(1, 0)
    alike = np.array([flipped(one, 2, seed) for seed in range(300)])
    pairs = [(a, b) for ones, others, _ in near_pairs(alike) for a, b in zip(ones, others, strict=True)]
    assert len(pairs) <= 16 * 10 * 300
    assert {index for pair in pairs for index in pair} == set(range(300))


def picture(seed: int, side: int = 64) -> Image.Image:
    """A picture with large shapes and finer ones, as a photo has."""
    draw, pixels = np.random.default_rng(seed), np.zeros((side, side, 3))
    for shapes, contrast in ((4, 60), (8, 40), (16, 25), (32, 15)):
        levels = Image.fromarray(draw.integers(0, 256, (shapes, shapes, 3), dtype=np.uint8))
        pixels += contrast * (np.asarray(levels.resize((side, side), Image.Resampling.BICUBIC)) / 128.0 - 1)
    return Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


def checked(root: Path, images: dict[str, Image.Image]) -> dict[str, ImageCheck]:
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return check_images(FolderSource(root, tuple(images)))


@pytest.mark.parametrize(
    "alter",
    [
        compressed,
        lambda image: image.resize((32, 32)),
        lambda image: image.resize((150, 150)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        lambda image: image.convert("L"),
    ],
    ids=["JPEG", "half the size", "enlarged", "darker", "less contrast", "gray"],
)
def test_an_altered_copy_in_val_is_found(tmp_path: Path, alter) -> None:
    train = checked(tmp_path, {f"train/a/{i}.png": picture(i) for i in range(6)})
    val = checked(tmp_path, {"val/a/copy.png": alter(picture(3)), "val/a/new.png": picture(9)})
    near = near_copies({"train": train, "val": val}, dict.fromkeys((*train, *val), "a"))
    ((one, other, bits),) = near.across["train", "val"]
    assert (one, other) == ("train/a/3.png", "val/a/copy.png")
    assert bits <= NEAR_BITS
    assert near.in_classes == near.within == []


def test_copies_in_two_classes_and_within_one_are_told_apart(tmp_path: Path) -> None:
    images = {"a/0.png": picture(0), "a/1.jpg": picture(0), "b/2.jpg": picture(1), "c/3.png": picture(1)}
    train = checked(tmp_path, images)
    near = near_copies({"train": train, "val": {}}, {name: name[0] for name in train})
    assert [pair[:2] for pair in near.within] == [("a/0.png", "a/1.jpg")]
    assert [pair[:2] for pair in near.in_classes] == [("b/2.jpg", "c/3.png")]
    assert near.across == {("train", "val"): []}


def test_exact_copies_are_no_near_ones(tmp_path: Path) -> None:
    train = checked(tmp_path, {"a/0.png": picture(0), "a/1.png": picture(0), "b/2.png": picture(0)})
    val = checked(tmp_path, {"val/0.png": picture(0)})
    near = near_copies({"train": train, "val": val}, {name: name[0] for name in (*train, *val)})
    assert (near.across["train", "val"], near.in_classes, near.within) == ([], [], [])


def test_many_copies_of_one_image_are_each_found_once(tmp_path: Path) -> None:
    images = {f"a/{i}.png": picture(0).resize((64 + i, 64 + i)) for i in range(9)}
    train = checked(tmp_path, images)
    near = near_copies({"train": train}, dict.fromkeys(train, "a"))
    assert sorted(other for _, other, _ in near.within) == sorted(images)[1:]


def test_images_of_one_color_are_near_copies_of_none(tmp_path: Path) -> None:
    train = checked(tmp_path, {f"a/{i}.png": Image.new("RGB", (16, 16), (i, i, i)) for i in range(4)})
    assert near_copies({"train": train}, dict.fromkeys(train, "a")).within == []


def test_images_without_a_class_are_in_no_two_classes(tmp_path: Path) -> None:
    train = checked(tmp_path, {"train/a/0.png": picture(0)})
    test = checked(tmp_path, {"test/0.jpg": picture(0)})
    near = near_copies({"train": train, "test": test}, dict.fromkeys(train, "a"))
    assert [pair[:2] for pair in near.across["train", "test"]] == [("train/a/0.png", "test/0.jpg")]
    assert near.in_classes == []
