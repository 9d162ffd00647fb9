"""Decoded images in a file: whatever ends the packing, the next one goes on, and what changed is packed again."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regnet_deploy.errors import DataError
from regnet_deploy.images.image_source import FolderSource
from regnet_deploy.progress import NoProgress
from regnet_deploy.training import packed_images
from regnet_deploy.training.packed_images import PackedImages, Packing, drop_packed, pack_images

COUNT = 12


def image_of(number: int, version: int = 0) -> Image.Image:
    draw = np.random.default_rng((number, version))
    return Image.fromarray(draw.integers(0, 256, (5 + number, 7, 3), dtype=np.uint8))


class Folder:
    """Image files, and which of them were decoded."""

    def __init__(self, root: Path, count: int = COUNT) -> None:
        root.mkdir()
        for number in range(count):
            image_of(number).save(root / f"{number}.png")
        self.source = FolderSource(root, tuple(f"{number}.png" for number in range(count)))
        self.decoded: list[int] = []

    def decode(self, number: int) -> Image.Image:
        self.decoded.append(number)
        return Image.open(self.source.root / self.source.names[number])

    def packing(self, **changes: object) -> Packing:
        indices = list(range(len(self.source.names)))
        total = sum(3 * 7 * (5 + number) for number in indices)
        return replace(Packing(self.source, indices, 3, "16 px", total, self.decode), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "images")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packed_images, "_CHUNK", 4)
    return tmp_path / "cache"


def assert_whole(packed: PackedImages, count: int = COUNT) -> None:
    assert len(packed) == count
    for number in range(count):
        image = packed[number]
        assert image is not None
        assert image.mode == "RGB"
        assert image.tobytes() == image_of(number).tobytes()


def test_images_come_out_as_they_went_in_and_are_decoded_once(folder: Folder, cache: Path) -> None:
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))
    assert sorted(folder.decoded) == list(range(COUNT))
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))
    assert len(folder.decoded) == COUNT
    assert sum(path.stat().st_size for path in cache.glob("*.pixels")) == folder.packing().total


def test_gray_images_have_one_channel(folder: Folder, cache: Path) -> None:
    packing = folder.packing(channels=1, decoded=lambda number: image_of(number).convert("L"))
    packed = pack_images(cache, packing, NoProgress())
    assert packed[3].mode == "L"  # type: ignore[union-attr]
    assert packed[3].tobytes() == image_of(3).convert("L").tobytes()  # type: ignore[union-attr]


def test_only_images_that_changed_or_are_new_are_decoded_again(folder: Folder, cache: Path) -> None:
    pack_images(cache, folder.packing(), NoProgress())
    folder.decoded.clear()
    image_of(3, version=1).save(folder.source.root / "3.png")
    image_of(COUNT).save(folder.source.root / f"{COUNT}.png")
    grown = FolderSource(folder.source.root, (*folder.source.names, f"{COUNT}.png"))
    folder.source = grown
    packed = pack_images(cache, folder.packing(source=grown, indices=list(range(COUNT + 1))), NoProgress())
    assert sorted(folder.decoded) == [3, COUNT]
    assert packed[3].tobytes() == image_of(3, version=1).tobytes()  # type: ignore[union-attr]
    assert packed[COUNT].tobytes() == image_of(COUNT).tobytes()  # type: ignore[union-attr]


def test_a_file_of_images_that_changed_does_not_grow_for_ever(folder: Folder, cache: Path) -> None:
    first = pack_images(cache, folder.packing(), NoProgress())
    for version in range(1, 6):
        for number in range(COUNT):
            image_of(number, version).save(folder.source.root / f"{number}.png")
        packed = pack_images(cache, folder.packing(), NoProgress())
        assert packed[5].tobytes() == image_of(5, version).tobytes()  # type: ignore[union-attr]
    assert sum(path.stat().st_size for path in cache.glob("*.pixels")) <= 2 * folder.packing().total
    assert_whole(first)  # whoever reads an earlier file keeps it


@pytest.mark.parametrize("harm", ["cut the index", "cut the pixels", "another header", "no JSON", "no pixels"])
def test_files_that_do_not_fit_together_are_written_anew(folder: Folder, cache: Path, harm: str) -> None:
    pack_images(cache, folder.packing(), NoProgress())
    (index,), (pixels,) = cache.glob("*.index"), cache.glob("*.pixels")
    if harm == "cut the index":
        os.truncate(index, index.stat().st_size - 5)
    elif harm == "cut the pixels":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif harm == "another header":
        index.write_bytes(index.read_bytes().replace(b"16 px", b"17 px"))
    elif harm == "no JSON":
        index.write_bytes(index.read_bytes().replace(b"[", b"{", 1))
    else:
        pixels.unlink()
    folder.decoded.clear()
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))
    assert len(folder.decoded) == (1 if harm == "cut the index" else COUNT)


def test_images_that_cannot_be_read_are_not_in_the_file(folder: Folder, cache: Path) -> None:
    (folder.source.root / "2.png").unlink()
    packing = folder.packing(decoded=lambda number: "broken" if number == 7 else folder.decode(number))
    packed = pack_images(cache, packing, NoProgress())
    assert [number for number in range(COUNT) if packed[number] is None] == [2, 7]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_packed_images as tests
from regnet_deploy.training import packed_images
packed_images._CHUNK = 2
folder = tests.Folder.__new__(tests.Folder)
folder.source = tests.FolderSource(Path({root!r}), tuple(f"{{n}}.png" for n in range(tests.COUNT)))
folder.decoded = []
def slow(number):
    print(number, flush=True)
    tests.time.sleep(0.05)
    return folder.decode(number)
tests.pack_images(Path({cache!r}), folder.packing(decoded=slow), tests.NoProgress())
"""


@pytest.mark.parametrize("after", [1, 5, 9])
def test_after_kill_9_the_packing_goes_on(folder: Folder, cache: Path, after: int) -> None:
    tests, root = str(Path(__file__).parent), str(folder.source.root)
    code = KILLED.format(tests=tests, root=root, cache=str(cache))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))
    assert COUNT - after <= len(folder.decoded) <= COUNT - after + 5  # a chunk, and what threads decoded ahead of it
    if after > 5:
        assert len(folder.decoded) < COUNT


def test_a_full_disk_is_one_line_and_leaves_no_pixels(
    folder: Folder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed_images, "sync", full)
    with pytest.raises(DataError, match=r"cannot pack images into .*: No space left on device; give another folder"):
        pack_images(cache, folder.packing(), NoProgress())
    assert not list(cache.glob("*.pixels"))
    monkeypatch.undo()
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))


def test_nothing_is_packed_where_it_would_not_leave_space(
    folder: Folder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=packed_images.FREE_BYTES + folder.packing().total - 1)
    monkeypatch.setattr(packed_images.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"has 1\.07 GB free, and the decoded images need .* --cache off"):
        pack_images(cache, folder.packing(), NoProgress())
    assert not folder.decoded
    monkeypatch.setattr(packed_images.shutil, "disk_usage", lambda _: usage._replace(free=usage.free + 1))
    assert_whole(pack_images(cache, folder.packing(), NoProgress()))


def test_a_folder_that_cannot_be_made_is_one_line(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot pack images into .*file/cache: Not a directory"):
        pack_images(tmp_path / "file" / "cache", folder.packing(), NoProgress())


def test_two_who_pack_the_same_images_share_the_work(folder: Folder, cache: Path, recorded_progress) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held(number: int) -> Image.Image:
        begun.set()
        go_on.wait(30)
        return folder.decode(number)

    first = threading.Thread(target=pack_images, args=(cache, folder.packing(decoded=held), NoProgress()))
    first.start()
    assert begun.wait(30)
    second: list[PackedImages] = []
    waiter = threading.Thread(
        target=lambda: second.append(pack_images(cache, folder.packing(), recorded_progress)),
    )
    waiter.start()
    wait_until(lambda: "waiting for another training" in recorded_progress.text)
    go_on.set()
    first.join(30)
    waiter.join(30)
    assert_whole(second[0])
    assert len(folder.decoded) == COUNT


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_other_packed_files_of_a_run_directory_are_dropped(folder: Folder, cache: Path) -> None:
    kept, other = folder.packing(), folder.packing(description="32 px")
    assert kept.name != other.name
    for packing in (kept, other):
        pack_images(cache, packing, NoProgress())
    (cache / "run-1").mkdir()
    drop_packed(cache, keep=kept.name)
    assert {path.name for path in cache.iterdir()} == {f"{kept.name}.pixels", f"{kept.name}.index", "run-1"}
