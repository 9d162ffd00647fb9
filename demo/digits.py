"""Write scikit-learn's handwritten digits as an image folder.

The 1,797 digits (8x8, grey; E. Alpaydin and C. Kaynak, UCI "Optical Recognition of Handwritten Digits") come with the
package. Four of five go to train/, one of five to val/, split by class from a fixed seed.

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
    """Write ``train/<digit>/*.png`` and ``val/<digit>/*.png``; return how many images each has."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rows = np.arange(len(pixels))
    train, val = train_test_split(rows, test_size=0.2, random_state=0, stratify=digits.target)
    for split, members in (("train", train), ("val", val)):
        for row in members:
            target = folder / split / str(digits.target[row])
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(target / f"{row:04d}.png")
    return {"train": len(train), "val": len(val)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_digits(Path(sys.argv[1])))
