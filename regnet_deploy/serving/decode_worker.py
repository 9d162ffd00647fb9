"""The decode process: decodes images one after the other, so that a malicious file can harm only this process.

It communicates with the server through one socket, in frames: a header of fixed size, then the payload.

* from the worker, once: ``HELLO``, when it is ready;
* to the worker: preprocessing, then the encoded image;
* from the worker: ``PIXELS`` and ``(crop, crop, channels)`` uint8, or ``REFUSED`` and what is wrong with the image, in
  UTF-8.

Nothing else is ever sent, so a worker that an image has taken over can send the server wrong pixels at most. It
inherits nothing but stderr, and can open no file, socket or process after its ``HELLO``. It ends when the socket is
closed.
"""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import socket
import struct
from typing import Literal, NamedTuple

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.errors import DataError
from regnet_deploy.images.decode import WEB_FORMATS
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.serving.scheduling import restore_default_scheduling

#: Header of a response: its kind and the bytes of its payload.
ANSWER = struct.Struct("<BI")
HELLO, PIXELS, REFUSED = 0, 1, 2
#: Bytes of an error text, at most.
MAX_TEXT = 1024
#: Memory that decoding may take: bytes per pixel (1.5 times what the most demanding files need: WebP with
#: transparency), and bytes for everything else.
_PIXEL_BYTES, _OTHER_BYTES = 32, 256 * 2**20
#: Header of a request: resized short side, crop, interpolation, whether decoding is scaled, whether resizing is
#: antialiased, channels; bytes of the image.
_REQUEST = struct.Struct("<IIBBBBI")
_INTERPOLATIONS: tuple[Literal["bilinear", "bicubic"], ...] = ("bilinear", "bicubic")


class DecodeRequest(NamedTuple):
    """Preprocessing of an image, and the bytes of the image that follow."""

    preprocessing: Preprocessing
    size: int

    def to_bytes(self) -> bytes:
        """Return the header; it has the part of the preprocessing that determines the pixels."""
        of = self.preprocessing
        interpolation = _INTERPOLATIONS.index(of.interpolation)
        return _REQUEST.pack(
            of.resize, of.crop, interpolation, of.scaled_decoding, of.antialias, of.channels, self.size
        )

    @classmethod
    def from_bytes(cls, head: bytes) -> DecodeRequest:
        """Parse what :meth:`to_bytes` returned."""
        resize, crop, interpolation, scaled, antialias, channels, size = _REQUEST.unpack(head)
        preprocessing = default_preprocessing(crop, channels).replace(
            resize=resize,
            interpolation=_INTERPOLATIONS[interpolation],
            scaled_decoding=bool(scaled),
            antialias=bool(antialias),
        )
        return cls(preprocessing, size)


def main(descriptor: int, max_pixels: int, timeout_s: float, batch_scheduled: bool = False) -> None:
    """Decode the images that arrive on a socket until it is closed.

    Args:
        descriptor: of the socket.
        max_pixels: limit of an image's width times height.
        timeout_s: seconds after which a decode ends this process, even where the server is gone.
        batch_scheduled: this process has inherited the scheduling policy of the server's event loop; it is undone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends this process after its last request
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    restore_default_scheduling(batch_scheduled)
    warm_up_decoder()
    set_resource_limits(max_pixels)
    with socket.socket(fileno=descriptor) as server, contextlib.suppress(ConnectionError):
        server.sendall(ANSWER.pack(HELLO, 0))
        while head := _receive(server, _REQUEST.size):
            request = DecodeRequest.from_bytes(head)
            image = _receive(server, request.size)
            if len(image) < request.size:
                return  # the server is gone
            signal.setitimer(signal.ITIMER_REAL, timeout_s)  # its signal ends the process, in C code too
            answer = _answer(image, request.preprocessing, max_pixels)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del image
            server.sendall(answer)


def warm_up_decoder() -> None:
    """Import everything that decoding needs: encode and decode one image of each kind."""
    from PIL import Image, MpoImagePlugin, WebPImagePlugin  # noqa: F401  # Pillow imports them late

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
            with contextlib.suppress(DataError):  # the last format is not accepted; errors are warmed up as well
                preprocessing = Preprocessing(4, 4, scaled_decoding=scaled)
                load_pixels(stream.getvalue(), preprocessing, formats=WEB_FORMATS)


def set_resource_limits(max_pixels: int) -> None:
    """Limit memory, and forbid files, processes and core dumps.

    A limit that the system refuses is left as it is.
    """
    used = _address_space()
    memory = used + max_pixels * _PIXEL_BYTES + _OTHER_BYTES if used else None
    # Where the machine runs out of memory, this process is killed before the server.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    limits = {"RLIMIT_AS": memory, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 0}
    for name, limit in limits.items():
        if limit is not None and hasattr(resource, name):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(getattr(resource, name), (limit, limit))


def _address_space() -> int | None:
    """Return the bytes of this process's address space; None where the system does not report them."""
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
        return _refusal("image: needs more memory to decode than an image of its size should")
    return ANSWER.pack(PIXELS, len(pixels)) + pixels


def _refusal(text: str) -> bytes:
    line = text.encode("utf-8", "replace")[:MAX_TEXT]
    return ANSWER.pack(REFUSED, len(line)) + line


def _receive(server: socket.socket, size: int) -> bytes:
    """Return ``size`` bytes, or none where the stream ends before."""
    data = server.recv(size, socket.MSG_WAITALL)
    if len(data) in (0, size):
        return data
    parts, missing = [data], size - len(data)
    while missing and data:
        data = server.recv(missing, socket.MSG_WAITALL)
        parts.append(data)
        missing -= len(data)
    return b"" if missing else b"".join(parts)
