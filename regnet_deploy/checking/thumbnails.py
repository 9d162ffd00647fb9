"""Small pictures of images as data URIs, for a page that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from regnet_deploy.cpu import available_cores
from regnet_deploy.images.decode import ImageError, decode_scaled
from regnet_deploy.images.image_source import ImageSource
from regnet_deploy.progress import NoProgress, Progress

#: Longer side of a picture, pixels; smaller images stay as they are, without loss.
SIDE = 96
_QUALITY = 75


def thumbnails(source: ImageSource, names: Iterable[str], progress: Progress = NoProgress()) -> dict[str, str]:
    """Return name -> data URI of a small picture, for all images that can be read."""
    wanted = set(names)
    indices = [index for index, name in enumerate(source.names) if name in wanted]
    progress.step("drawing contact sheets", len(indices))
    found: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=min(16, available_cores()))
    try:
        for done, (index, uri) in enumerate(
            zip(indices, pool.map(lambda i: _thumbnail(source, i), indices), strict=True)
        ):
            if uri:
                found[source.names[index]] = uri
            progress.update(done + 1)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _thumbnail(source: ImageSource, index: int) -> str | None:
    """Return a data URI; None for an image that cannot be read any more, or never could be."""
    try:
        image = decode_scaled(source.read(index), _enough, source.names[index]).image
    except ImageError:
        return None
    small = max(image.size) <= SIDE
    if not small:
        image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    kind = "PNG" if small else "JPEG"
    image.save(file, kind, quality=_QUALITY, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _enough(width: int, height: int) -> tuple[int, int]:
    """Return the size that a JPEG needs at least, so that it is decoded at a reduced size."""
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
