"""Writes a folder of images from ``glyphs64.npz`` (62 characters in many fonts), the data of docs/design-spaces.md.

    python benchmarks/glyph_folder.py glyphs64.npz glyphs --train 160 --val 60

It takes the first images of each class from the training fonts and from the validation fonts, which are disjoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def class_name(character: str) -> str:
    """Return a folder name that is unique on case-insensitive file systems."""
    kind = "digit" if character.isdigit() else "upper" if character.isupper() else "lower"
    return f"{kind}_{character}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=160, help="images a class to train on")
    parser.add_argument("--val", type=int, default=60, help="images a class to validate with")
    options = parser.parse_args()
    glyphs = np.load(options.npz)
    for subset, count in (("train", options.train), ("val", options.val)):
        images, labels = glyphs[f"{subset}_images"], glyphs[f"{subset}_labels"]
        for label, character in enumerate(glyphs["classes"]):
            folder = options.folder / subset / class_name(str(character))
            folder.mkdir(parents=True, exist_ok=True)
            for number, row in enumerate(np.flatnonzero(labels == label)[:count]):
                Image.fromarray(images[row]).save(folder / f"{number:04d}.png")
    print(f"{options.folder}: {options.train} and {options.val} images of each of {len(glyphs['classes'])} classes")


if __name__ == "__main__":
    main()
