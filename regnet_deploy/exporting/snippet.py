"""The program that is written beside a plain file: it classifies images without regnet-deploy."""

from __future__ import annotations

from dataclasses import dataclass

#: Is in the program, so that no other file is taken for it.
MARK = "Written by regnet-deploy"


@dataclass(frozen=True)
class _Parts:
    """What differs between the formats: the library, and the lines that open and run the network."""

    library: str
    imports: str
    opening: str
    run: str


_ONNX = _Parts(
    "ONNX Runtime",
    'os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before the import\nimport onnxruntime',
    'session = onnxruntime.InferenceSession(str(HERE / FILE), {options}, providers=["CPUExecutionProvider"])',
    'session.run(["logits"], {"images": images})[0]',
)
_PARTS = {
    "onnx": _ONNX,
    "torchscript": _Parts(
        "PyTorch",
        "import torch",
        "network = torch.jit.load(HERE / FILE)",
        "network(torch.from_numpy(images)).numpy(force=True)",
    ),
    "pt2": _Parts(
        "PyTorch",
        "import torch",
        "network = torch.export.load(HERE / FILE).module()",
        "network(torch.from_numpy(images)).numpy(force=True)",
    ),
    "openvino": _Parts(
        "OpenVINO",
        'sys.modules["openvino.tools.ovc"] = None  # the converter, which reports its uses to its vendor\n'
        "import openvino",
        'network = openvino.compile_model(HERE / FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "network(images)[0]",
    ),
}

_NORMALIZE = """\
    mean, std = np.array(STEPS["mean"]), np.array(STEPS["std"])
    images = pixels.astype(np.float32) * np.float32(1 / (255 * std)) + np.float32(-mean / std)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, crop, crop)
"""
_PIXELS = "    images = pixels  # the network normalizes them\n"

_EXACT = """\
options = onnxruntime.SessionOptions()  # computes every operator in the type that the file has
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
"""

_RESIZE = """\
    method = Image.Resampling[STEPS["interpolation"].upper()]
    image = image.convert("RGB").convert(colours).resize((crop, crop), method, box=(*corners[0], *corners[1]))
    return np.asarray(image).reshape(crop, crop, -1)
"""
_INTERPOLATE = """\
    width, height, places = *image.size, []
    image = np.asarray(image.convert("RGB").convert(colours)).reshape(height, width, -1)
    for i in (1, 0):  # without antialiasing: each pixel is interpolated between its four nearest ones, as in OpenCV
        step = (corners[1][i] - corners[0][i]) / crop
        place = corners[0][i] + (np.arange(crop) + 0.5) * step - 0.5
        near, last = np.floor(place), image.shape[1 - i] - 1
        share = (place - near).astype(np.float32)
        places.append([np.clip(near + j, 0, last).astype(np.int64) for j in (0, 1)] + [share])
    (rows, share_down), (columns, share) = [(each[:2], each[2]) for each in places]
    down, right = share_down[:, None, None], share[None, :, None]
    two = [image[np.ix_(row, columns[0])] * (1 - right) + image[np.ix_(row, columns[1])] * right for row in rows]
    return np.floor(two[0] * (1 - down) + two[1] * down + 0.5).astype(np.uint8)
"""

_TEMPLATE = '''\
"""Classifies the image files that are named on the command line. {mark}.

Needs {library}, NumPy and Pillow.
"""

import json
{standard}import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

HERE, FILE, DESCRIPTION = Path(__file__).parent, {file!r}, {description!r}
for name in (FILE, DESCRIPTION):
    if not (HERE / name).exists():
        sys.exit(f"{{HERE / name}} is missing: it belongs beside {{Path(__file__).name}}")
ABOUT = json.loads((HERE / DESCRIPTION).read_text(encoding="utf-8"))
STEPS = ABOUT["preprocessing"]
{opening}


def logits(pixels):
    """Return the logits, (n, classes) float32, of pixels, (n, crop, crop, channels) uint8."""
{images}    return {run}


def load_pixels(path):
    """Return the pixels of an image file that the network gets, (crop, crop, channels) uint8."""
    resize, crop, colours = STEPS["resize"], STEPS["crop"], STEPS["colours"]  # RGB, or L: gray
    with Image.open(path) as image:
        full = [max(resize, round(side * resize / min(image.size))) for side in image.size]
        # A JPEG is decoded without its colors where they are not wanted, and a large one at 1/2, 1/4 or 1/8.
        scaled = image.draft(colours, full if STEPS["scaled_decoding"] else None)
        size = scaled[1][2:] if scaled else image.size
        turn = image.getexif().get(0x0112, 1)  # EXIF orientation
        image = ImageOps.exif_transpose(image)
    if turn > 4:
        full, size = full[::-1], size[::-1]
    if image.mode.startswith("I"):  # gray of 16 bits, or of 8 bits in a file of 16
        levels = image.convert("I")
        step = 256 if levels.getextrema()[1] > 255 else 1
        image = levels.point(lambda level: level / step).convert("L")
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        low, high = colors.getchannel("A").getextrema()
        for ground in ("white", "black"):  # white shapes on transparent ground would vanish on white
            image = Image.new("RGB", colors.size, ground)
            image.paste(colors, mask=colors)
            if high - low <= 3 or any(most - least > 3 for least, most in image.getextrema()):
                break
    spare = (image.width - size[0]) * (turn in (2, 3, 6, 7)), (image.height - size[1]) * (turn in (3, 4, 7, 8))
    start = [(side - crop) // 2 for side in full]
    corners = [[(start[i] + at) * size[i] / full[i] + spare[i] for i in (0, 1)] for at in (0, crop)]
{resize}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage:", Path(__file__).name, "IMAGE ...", file=sys.stdout if len(sys.argv) > 1 else sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    for path in sys.argv[1:]:
        try:
            pixels = load_pixels(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow raises them
            sys.exit(f"cannot read {{path}}: {{getattr(error, 'strerror', None) or error}}")
        scores = logits(pixels[None])[0]
        shares = np.exp(scores - scores.max())
        for number in np.argsort(-shares)[:5]:
            print(f"{{path}}: {{ABOUT['labels'][number]}} {{shares[number] / shares.sum():.1%}}")
'''


def snippet(
    target: str, file: str, description: str, *, pixels: bool = False, exact: bool = False, antialias: bool = True
) -> str:
    """Return a program that opens a plain file and classifies images with it.

    Args:
        target: the format of the file.
        file: its name; both files are in the folder of the program.
        description: name of the JSON file that describes it.
        pixels: whether the network takes pixels, uint8 ``(n, h, w, channels)``.
        exact: whether ONNX Runtime must compute it without graph optimizations.
        antialias: whether images are resized with antialiasing.
    """
    parts = _PARTS[target]
    opening = parts.opening
    if target == "onnx":
        opening = (_EXACT if exact else "") + opening.replace("{options}, ", "options, " if exact else "")
    return _TEMPLATE.format(
        mark=MARK,
        library=parts.library,
        standard="import os\n" if "os.environ" in parts.imports else "",
        imports=parts.imports,
        file=file,
        description=description,
        opening=opening,
        images=_PIXELS if pixels else _NORMALIZE,
        run=parts.run,
        resize=_RESIZE if antialias else _INTERPOLATE,
    )
