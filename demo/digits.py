"""Write scikit-learn's handwritten digits as an image folder.

The 1,797 digits (8x8, grey; E. Alpaydin and C. Kaynak, UCI "Optical Recognition of Handwritten Digits") come with the
package. 70 % go to train/, 15 % to val/ and 15 % to test/, split by class from a fixed seed.

    python demo/digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def write_digits(folder: Path) -> dict[str, int]:
    """Write ``train/<digit>/*.png``, ``val`` and ``test``; return how many images each has."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, rest = train_test_split(np.arange(len(pixels)), test_size=0.3, random_state=0, stratify=digits.target)
    val, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=digits.target[rest])
    splits = {"train": train, "val": val, "test": test}
    for split, members in splits.items():
        for row in members:
            target = folder / split / str(digits.target[row])
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(target / f"{row:04d}.png")
    return {split: len(members) for split, members in splits.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_digits(Path(sys.argv[1])))
