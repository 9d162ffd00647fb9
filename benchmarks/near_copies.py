"""How many altered copies of images the perceptual hash finds, and how many pairs of a folder it takes for copies.

    python benchmarks/near_copies.py DIR [--images 200]

Each row is an alteration and the share of copies whose hash differs in at most ``NEAR_BITS`` bits. The last row is the
number of pairs of different files of the folder that are within this limit. DIR has images in any subfolders.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from regnet_deploy.images.decode import PHASH_BITS, decode, image_facts
from regnet_deploy.images.folder_files import image_files
from regnet_deploy.images.image_source import read_image_file
from regnet_deploy.images.near_copies import NEAR_BITS, near_pairs


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(share * image.width), round(share * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


def resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


ALTERED: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG, quality 20": lambda image: encoded(image, "JPEG", quality=20),
    "half the size": lambda image: encoded(resized(image, 0.5)),
    "1.5 times the size": lambda image: encoded(resized(image, 1.5)),
    "20 % brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "20 % less contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.8)),
    "gray": lambda image: encoded(image.convert("L")),
    "2 % cut off each side": lambda image: encoded(cropped(image, 0.02)),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    names = image_files(options.folder).files
    hashes: dict[str, np.ndarray] = {}
    begun = time.perf_counter()
    for name in names:
        phash = image_facts(read_image_file(options.folder / name), name).phash
        if phash:
            hashes[name] = np.frombuffer(bytes.fromhex(phash), np.uint64)
    took = time.perf_counter() - begun
    chosen = np.random.default_rng(0).permutation(sorted(hashes))[: options.images]
    print(f"{len(hashes):,} images of {options.folder.name}: {1e3 * took / len(names):.2f} ms each to decode and hash")
    print(f"| alteration of {len(chosen)} images | found: at most {NEAR_BITS} of {PHASH_BITS} bits differ |")
    print("| --- | --- |")
    for alteration, alter in ALTERED.items():
        found = 0
        for name in chosen:
            copy = image_facts(alter(decode(read_image_file(options.folder / name), name))).phash
            if copy:
                other = np.frombuffer(bytes.fromhex(copy), np.uint64)
                found += int(np.bitwise_count(hashes[name] ^ other).sum()) <= NEAR_BITS
        print(f"| {alteration} | {found / len(chosen):.0%} |")
    begun = time.perf_counter()
    pairs = {
        (min(a, b), max(a, b))
        for ones, others, _ in near_pairs(np.stack(list(hashes.values())))
        for a, b in zip(ones.tolist(), others.tolist(), strict=True)
    }
    took = time.perf_counter() - begun
    print(f"| pairs of the folder | {len(pairs):,} of {len(hashes) * (len(hashes) - 1) // 2:,}, in {took:.2f} s |")


if __name__ == "__main__":
    main()
