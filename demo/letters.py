"""Draw letters in the fonts that come with matplotlib, as an image folder.

Six letters, 32 x 32 pixels, in six sizes. A font is in train/, val/ or test/, never in two of them.

    python demo/letters.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

LETTERS = "AEHKRS"
#: Heights of the fonts, pixels.
SIZES = range(20, 32, 2)
SIDE = 32
#: Split -> fonts that its letters are drawn in.
FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-BoldItalic"),
        *("STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmtt10"),
    ),
    "val": ("DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral"),
    "test": ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Italic", "STIXGeneralBolIta", "cmb10", "cmss10"),
}


def write_letters(folder: Path) -> dict[str, int]:
    """Write ``train``, ``val`` and ``test`` with a folder for each letter; return how many images each has."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for split, names in FONTS.items():
        for letter in LETTERS:
            target = folder / split / letter
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                for size in SIZES:
                    image = Image.new("L", (SIDE, SIDE))
                    font = ImageFont.truetype(fonts / f"{name}.ttf", size)
                    ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2), letter, fill=255, font=font, anchor="mm")
                    image.save(target / f"{name}-{size}.png")
    return {split: len(LETTERS) * len(names) * len(SIZES) for split, names in FONTS.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_letters(Path(sys.argv[1])))
