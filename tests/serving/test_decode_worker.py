"""The process that decodes: its frames, its end, and what it may not do. Real processes, spoken to through a socket."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import default_preprocessing, load_pixels
from regnet_deploy.serving.decode_worker import ANSWER, HELLO, MAX_TEXT, PIXELS, REFUSED, DecodeRequest

VIEW = Preprocessing(10, 8, scaled_decoding=True)
PLAIN = "from regnet_deploy.serving.decode_worker import main; import sys; main(int(sys.argv[1]), 10**6, 30.0)"


def encoded(mode: str = "RGB", kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@contextmanager
def worker(program: str = PLAIN) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [sys.executable, "-c", program, str(theirs.fileno())]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, env=environment)
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.communicate()


def read(stream: socket.socket) -> tuple[int, bytes]:
    """Return the kind of a frame and what is behind its head."""
    kind, size = ANSWER.unpack(stream.recv(ANSWER.size, socket.MSG_WAITALL))
    return kind, stream.recv(size, socket.MSG_WAITALL) if size else b""


def ask(stream: socket.socket, image: bytes, preprocessing: Preprocessing = VIEW) -> tuple[int, bytes]:
    stream.sendall(DecodeRequest(preprocessing, len(image)).to_bytes() + image)
    return read(stream)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    "resizing",
    [{"interpolation": "bilinear"}, {"interpolation": "bicubic"}, {"interpolation": "bilinear", "antialias": False}],
)
def test_what_is_wanted_survives_the_way(scaled: bool, resizing: dict[str, Any]) -> None:
    wanted = DecodeRequest(Preprocessing(300, 280, scaled_decoding=scaled, **resizing), 2**25)
    assert DecodeRequest.from_bytes(wanted.to_bytes()) == wanted


def test_it_says_hello_answers_and_ends_with_its_socket() -> None:
    with worker() as (process, stream):
        assert read(stream) == (HELLO, b"")
        for image in (encoded(), encoded(kind="JPEG", size=(640, 480)), encoded()):
            kind, pixels = ask(stream, image)
            assert kind == PIXELS
            assert pixels == load_pixels(image, VIEW).tobytes()
        kind, text = ask(stream, b"hello")
        assert (kind, text.decode()) == (REFUSED, "image: not an image in a format that is read (JPEG, PNG, WEBP)")
        stream.close()
        assert process.wait(30) == 0


def test_a_frame_that_is_cut_short_is_the_end() -> None:
    with worker() as (process, stream):
        read(stream)
        stream.sendall(DecodeRequest(VIEW, 1000).to_bytes() + b"half")
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""
        assert process.wait(30) == 0


def test_the_number_of_pixels_is_limited_before_they_are_made() -> None:
    with worker() as (_, stream):
        read(stream)
        kind, text = ask(stream, encoded("1", size=(1001, 1000)))
        assert (kind, text) == (REFUSED, b"image: 1001x1000 is more than 1,000,000 pixels")


#: Ends with what it was that something else than memory was asked of the system after the greeting.
WATCHED = """
import os, sys
import regnet_deploy.serving.decode_worker as module
watched = []
def hook(event, arguments):
    if watched and event in ("open", "import", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)
sys.addaudithook(hook)
limits = module.set_resource_limits
def limit_and_watch(max_pixels):
    limits(max_pixels)
    watched.append(True)
module.set_resource_limits = limit_and_watch
module.main(int(sys.argv[1]), 10**6, 30.0)
"""


def test_whatever_comes_it_opens_and_imports_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 5, "camera"
    images = [
        encoded(kind="JPEG", exif=exif, progressive=True, size=(640, 480)),
        encoded("CMYK", "JPEG"),
        encoded("L", "MPO", save_all=True, append_images=[Image.new("L", (40, 30))]),
        encoded("P", "PNG", transparency=bytes(range(200))),
        encoded("I;16", "PNG"),
        encoded("1", "PNG"),
        encoded("LA", "PNG", exif=exif, save_all=True, append_images=[Image.new("LA", (40, 30))]),
        encoded("RGBA", "WEBP", exif=exif),
        encoded("RGB", "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (40, 30))]),
    ]
    with worker(WATCHED) as (process, stream):
        assert read(stream) == (HELLO, b"")
        for image in images:
            assert ask(stream, image) == (PIXELS, load_pixels(image, VIEW).tobytes()), process.poll()
        for image in [each[: len(each) // 2] for each in images] + [b"", b"BM", b"GIF89a" * 99, b"II*\0" * 99, b"%!PS"]:
            assert ask(stream, image)[0] in (REFUSED, PIXELS), process.poll()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_it_has_given_up_what_decoding_does_not_need() -> None:
    with worker() as (process, stream):
        read(stream)
        about = Path(f"/proc/{process.pid}")
        limits = {line[:26].strip(): line[26:47].strip() for line in (about / "limits").read_text().splitlines()}
        assert limits["Max open files"] == limits["Max processes"] == limits["Max core file size"] == "0"
        assert 300 * 2**20 < int(limits["Max address space"]) < 2**30
        assert (about / "oom_score_adj").read_text().strip() == "1000"
        assert len(os.listdir(about / "task")) == 1


HUNGRY = """
import sys
import regnet_deploy.serving.decode_worker as module
load = module.load_pixels
module.load_pixels = lambda image, *more, **named: bytearray(2**31) if image == b"much" else load(image, *more, **named)
module.main(int(sys.argv[1]), 10**6, 30.0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_an_image_that_takes_too_much_memory_is_refused_and_the_next_is_not() -> None:
    with worker(HUNGRY) as (_, stream):
        read(stream)
        assert ask(stream, b"much") == (REFUSED, b"image: needs more memory to decode than an image of its size should")
        assert ask(stream, encoded())[0] == PIXELS


def test_a_refusal_has_a_length_whatever_the_decoder_says() -> None:
    program = """
import sys
import regnet_deploy.serving.decode_worker as module
def refuse(*arguments, **named):
    if "max_pixels" in named:  # not while it is starting
        raise module.DataError("x" * 10**6)
module.load_pixels = refuse
module.main(int(sys.argv[1]), 10**6, 30.0)
"""
    with worker(program) as (_, stream):
        read(stream)
        assert ask(stream, encoded()) == (REFUSED, b"x" * MAX_TEXT)


def test_without_a_server_a_decode_does_not_last_forever() -> None:
    program = """
import sys, time
import regnet_deploy.serving.decode_worker as module
module.load_pixels = lambda *arguments, **named: time.sleep(1000) if "max_pixels" in named else None
module.main(int(sys.argv[1]), 10**6, 0.2)
"""
    with worker(program) as (process, stream):
        read(stream)
        stream.sendall(DecodeRequest(VIEW, 5).to_bytes() + b"image")
        time.sleep(0.05)
        stream.close()
        assert process.wait(30) < 0


def test_it_imports_neither_the_server_nor_a_runtime() -> None:
    program = "import regnet_deploy.serving.decode_worker, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "onnx", "onnxruntime", "starlette", "uvicorn", "asyncio", "grpc", "multiprocessing"}
    assert "regnet_deploy.images.preprocessing" in modules
    assert not heavy & set(modules)


def test_frames_of_many_megabytes_come_through() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    image = stream.getvalue() + bytes(20 * 2**20)  # what comes behind its end is not looked at
    with worker() as (_, connection):
        read(connection)
        preprocessing = Preprocessing(880, 860)
        assert ask(connection, image, preprocessing) == (PIXELS, load_pixels(image, preprocessing).tobytes())


def test_gray_pixels_come_back_in_one_channel() -> None:
    gray = default_preprocessing(8, 1).replace(resize=10)
    assert DecodeRequest.from_bytes(DecodeRequest(gray, 7).to_bytes()) == DecodeRequest(gray, 7)
    data = encoded("RGB", "JPEG")
    with worker() as (_, server):
        assert read(server) == (HELLO, b"")
        assert ask(server, data, gray) == (PIXELS, load_pixels(data, gray).tobytes())
    assert load_pixels(data, gray).shape == (8, 8, 1)
