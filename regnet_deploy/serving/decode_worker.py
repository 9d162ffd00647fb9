"""A process that decodes images for the server, one after the other: what it meets in a file hurts nobody but itself.

It talks with the server through one socket, in frames: a head of fixed size, then so many bytes.

* from the worker, once: ``HELLO``, when it is ready;
* to the worker: what is wanted, then the encoded image;
* from the worker: ``PIXELS`` and ``(crop, crop, 3)`` uint8, or ``REFUSED`` and what is wrong with the image, UTF-8.

Nothing else is ever sent, so a worker that an image has taken over can tell the server no more than wrong pixels. It
inherits nothing of the server but its errors' stream, and can open no file, socket or process of its own once it has
said ``HELLO``. It ends when the socket does.
"""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import socket
import struct
from typing import NamedTuple

from regnet_deploy.errors import DataError
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.preprocessing import Preprocessing, load_pixels
from regnet_deploy.serving.scheduling import restore_default_scheduling

#: Kind of an answer and the bytes behind it.
ANSWER = struct.Struct("<BI")
HELLO, PIXELS, REFUSED = 0, 1, 2
#: Bytes of a refusal, at most.
MAX_TEXT = 1024
#: What the most demanding files take while they are decoded and turned upright, and half as much again, in bytes a
#: pixel (WebP with transparency takes most); bytes for everything else.
_PIXEL_BYTES, _OTHER_BYTES = 32, 256 * 2**20
#: Resized short side, crop, interpolation, whether decoding is scaled; bytes of the image.
_WANTED = struct.Struct("<IIBBI")
_INTERPOLATIONS = ("bilinear", "bicubic")


class DecodeRequest(NamedTuple):
    """What the server wants of an image, and the bytes of it that follow."""

    preprocessing: Preprocessing
    size: int

    def to_bytes(self) -> bytes:
        """Return the head of a frame; of the preprocessing it has what decides the pixels."""
        of = self.preprocessing
        interpolation = _INTERPOLATIONS.index(of.interpolation)
        return _WANTED.pack(of.resize, of.crop, interpolation, of.scaled_decoding, self.size)

    @classmethod
    def from_bytes(cls, head: bytes) -> DecodeRequest:
        """Read what :meth:`to_bytes` wrote."""
        resize, crop, interpolation, scaled, size = _WANTED.unpack(head)
        kind = _INTERPOLATIONS[interpolation]
        return cls(Preprocessing(resize, crop, kind, scaled_decoding=bool(scaled)), size)


def main(descriptor: int, max_pixels: int, patience_s: float) -> None:
    """Decode what comes through a socket until it is closed.

    Args:
        descriptor: of the socket.
        max_pixels: width times height of an image, beyond which it is refused.
        patience_s: seconds after which a decode ends this process, whether or not there is still a server to do so.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the server, which answers first what it has begun
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    restore_default_scheduling()
    warm_up_decoder()
    set_resource_limits(max_pixels)
    with socket.socket(fileno=descriptor) as server, contextlib.suppress(ConnectionError):
        server.sendall(ANSWER.pack(HELLO, 0))
        while head := _receive(server, _WANTED.size):
            wanted = DecodeRequest.from_bytes(head)
            image = _receive(server, wanted.size)
            if len(image) < wanted.size:
                return  # the server has gone in the midst of it
            signal.setitimer(signal.ITIMER_REAL, patience_s)  # its signal ends the process, in the midst of C too
            answer = _answer(image, wanted.preprocessing, max_pixels)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del image
            server.sendall(answer)


def warm_up_decoder() -> None:
    """Have everything imported that decoding needs: one image of each kind is written and read."""
    from PIL import Image, MpoImagePlugin, WebPImagePlugin  # noqa: F401  # that Pillow would look for when it meets one

    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.new("P", (16, 16))
    palette.putpalette([9, 9, 9, 99, 99, 99])
    specimens: list[tuple[Image.Image, str, dict[str, object]]] = [
        (Image.new("RGB", (16, 16)), "JPEG", {"exif": exif}),
        (Image.new("CMYK", (16, 16)), "JPEG", {"progressive": True}),
        (Image.new("L", (16, 16)), "MPO", {"save_all": True, "append_images": [Image.new("L", (16, 16))]}),
        (palette, "PNG", {"transparency": bytes([0, 9]), "exif": exif}),
        (Image.new("I;16", (16, 16)), "PNG", {}),
        (Image.new("RGBA", (16, 16)), "WEBP", {"exif": exif}),
        (Image.new("1", (16, 16)), "PPM", {}),
    ]
    for image, kind, options in specimens:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        for scaled in (False, True):
            with contextlib.suppress(DataError):  # the last is no image of the web, which is a way to answer as well
                preprocessing = Preprocessing(4, 4, scaled_decoding=scaled)
                load_pixels(stream.getvalue(), preprocessing, formats=WEB_FORMATS)


def set_resource_limits(max_pixels: int) -> None:
    """Give up what decoding does not need: more memory than its images take, files, processes, dumps of the memory.

    A limit that the system refuses is left as it is.
    """
    used = _address_space()
    memory = used + max_pixels * _PIXEL_BYTES + _OTHER_BYTES if used else None
    # Where the memory of the machine ends, it is not the server that is to go.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    limits = {"RLIMIT_AS": memory, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 0}
    for name, limit in limits.items():
        if limit is not None and hasattr(resource, name):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(getattr(resource, name), (limit, limit))


def _address_space() -> int | None:
    """Return the bytes of this process's address space; None on a system that does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _answer(image: bytes, preprocessing: Preprocessing, max_pixels: int) -> bytes:
    try:
        pixels = load_pixels(image, preprocessing, max_pixels=max_pixels, formats=WEB_FORMATS).tobytes()
    except DataError as error:
        return _refusal(str(error))
    except MemoryError:
        return _refusal("image: takes more memory to decode than an image of its size should")
    return ANSWER.pack(PIXELS, len(pixels)) + pixels


def _refusal(text: str) -> bytes:
    line = text.encode("utf-8", "replace")[:MAX_TEXT]
    return ANSWER.pack(REFUSED, len(line)) + line


def _receive(server: socket.socket, size: int) -> bytes:
    """Return so many bytes, or none where the stream ends: there is nothing to be done with a part."""
    data = server.recv(size, socket.MSG_WAITALL)
    if len(data) in (0, size):
        return data
    parts, missing = [data], size - len(data)
    while missing and data:
        data = server.recv(missing, socket.MSG_WAITALL)
        parts.append(data)
        missing -= len(data)
    return b"" if missing else b"".join(parts)
