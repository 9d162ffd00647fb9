"""One side of benchmarks/input_pipeline.py, in the interpreter that has its library.

    python benchmarks/input_pipeline_side.py SIDE FOLDER

Each line on stdin is `SIDE THREADS SECONDS` in numbers: the side of the views in pixels, processes or threads that
load, on so many cores, and seconds of CPU time. The answer is a line with images/s, and images per second of CPU time.
Every side reads JPEG files, and makes batches of 16 views, uint8: a random crop of 8 to 100 % of the area, resized,
mirrored half of the time. Normalization is left out: it runs on the device.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BATCH = 16
#: More images than can be loaded in the time that is measured.
MANY = 10**6

Batches = Iterable[Any]


def rate(batches: Batches, seconds: float) -> tuple[float, float]:
    """Return images per second, and images per second of CPU time of this process and those that load.

    What was loaded before the second batch is left out.
    """
    iterator = iter(batches)
    next(iterator)
    begun, used, done = time.perf_counter(), cpu_seconds(), 0
    while (spent := cpu_seconds() - used) < seconds or not done:
        next(iterator)
        done += BATCH
    return done / (time.perf_counter() - begun), done / spent


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that are running."""
    children = Path("/proc/self/task").glob("*/children")
    found = [child for path in children for child in path.read_text().split()]
    fields = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split() for child in found]
    ticks = sum(int(each[11]) + int(each[12]) for each in fields)  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def endless(images: int) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of keys of regnet-deploy, epoch after epoch."""
    keys = ((epoch, number) for epoch in itertools.count() for number in range(images))
    while True:
        yield list(itertools.islice(keys, BATCH))


def ours(name: str, folder: Path) -> Callable[[int, int], Batches]:
    from PIL import Image

    from regnet_deploy.images.dataset import LabelledImage
    from regnet_deploy.images.decode import Scaled, decode, decode_scaled
    from regnet_deploy.images.image_source import FolderSource
    from regnet_deploy.images.preprocessing import default_preprocessing
    from regnet_deploy.training import data_loader
    from regnet_deploy.training.recipe import Recipe
    from regnet_deploy.training.stored_images import ImageStore

    names = tuple(sorted(path.name for path in folder.glob("*.jpg")))
    source, images = FolderSource(folder, names), []
    for index, each in enumerate(names):
        with Image.open(folder / each) as image:
            images.append(LabelledImage(index, 0, *image.size))

    def whole(data: bytes, enough: Any, name: str, colours: str) -> Scaled:
        image = decode(data, name, colours=colours)
        return Scaled(image, image.size)

    def by_simplejpeg(data: bytes, enough: Any, name: str, colours: str) -> Scaled:
        import simplejpeg

        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        wide, high = enough(width, height)
        scale = next((scale for scale in (8, 4, 2) if min(width // wide, height // high) >= scale), 1)
        pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // scale), min_width=-(-width // scale), min_factor=1
        )
        return Scaled(Image.fromarray(pixels), (width, height), scale)

    decoders = {"whole": whole, "simplejpeg": by_simplejpeg}
    data_loader.decode_scaled = decoders.get(name, decode_scaled)  # type: ignore[assignment]

    def opened(side: int) -> data_loader.TrainingDataset:
        store = ImageStore(False, folder / "packed" if name == "packed" else None)
        return data_loader.training_dataset(source, images, Recipe(), default_preprocessing(side), store=store)

    def batches(side: int, threads: int) -> Batches:
        if name == "threads":
            return in_threads(opened(side), threads, len(images))
        return data_loader.load(opened(side), endless(len(images)), 0 if threads == 1 else threads, pin=False)

    return batches


def in_threads(dataset: Any, threads: int, images: int) -> Batches:
    """Yield batches that threads of this process make."""
    from regnet_deploy.training.data_loader import _Batches

    make, keys = _Batches(dataset).__getitems__, endless(images)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(make, next(keys)) for _ in range(2 * threads)]
        while True:
            waiting.append(pool.submit(make, next(keys)))
            yield waiting.pop(0).result().batch()


class Files:
    """Images of a folder again and again, as torchvision and timm read them."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return MANY

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        assert self.transform is not None
        with Image.open(self.paths[number % len(self.paths)]) as image:
            return self.transform(image.convert("RGB")), 0


def torchvision(name: str, folder: Path) -> Callable[[int, int], Batches]:
    import training_peer_operators  # noqa: F401 - before torchvision
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    def batches(side: int, threads: int) -> Batches:
        files = Files(folder)
        files.transform = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        return DataLoader(files, BATCH, shuffle=False, num_workers=0 if threads == 1 else threads)

    return batches


def timm(name: str, folder: Path) -> Callable[[int, int], Batches]:
    import torch
    import training_peer_operators  # noqa: F401 - before torchvision
    from timm.data import create_loader

    def batches(side: int, threads: int) -> Batches:
        workers = 0 if threads == 1 else threads
        loader = create_loader(
            Files(folder), side, BATCH, is_training=True, color_jitter=0.0, interpolation="bilinear",
            num_workers=workers, persistent_workers=workers > 0, device=torch.device("cpu"),
        )  # fmt: skip
        return loader.loader  # without the normalization

    return batches


def spdl(name: str, folder: Path) -> Callable[[int, int], Batches]:
    """SPDL's pipeline of threads, with the functions of torchvision: its own decoder needs the libraries of FFmpeg."""
    import torch
    import training_peer_operators  # noqa: F401 - before torchvision
    from spdl.pipeline import PipelineBuilder
    from torchvision.transforms import v2

    def batches(side: int, threads: int) -> Batches:
        files = Files(folder)
        files.transform = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        pipeline = (
            PipelineBuilder()
            .add_source(range(MANY))
            .pipe(lambda number: files[number][0], concurrency=threads, output_order="input")
            .aggregate(BATCH)
            .pipe(torch.stack)
            .add_sink(2)
            .build(num_threads=threads)
        )

        def items() -> Iterator[Any]:
            with pipeline.auto_stop():
                yield from pipeline

        return items()

    return batches


def difference(folder: Path, side: int) -> float:
    """Return how much the pixels of views change by reduced decoding: mean absolute difference, of 255."""
    import numpy as np

    views = []
    for name in ("decoded", "whole"):
        batches = iter(ours(name, folder)(side, 1))
        views.append(np.concatenate([next(batches).pixels.numpy() for _ in range(4)]).astype(float))
    return float(np.abs(views[0] - views[1]).mean())


SIDES = {"torchvision": torchvision, "timm": timm, "spdl": spdl}


def main() -> None:
    """Answer the lines on stdin."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    os.environ["OMP_NUM_THREADS"] = "1"
    if name == "difference":
        for line in sys.stdin:
            print(difference(folder, int(line)), 0, flush=True)
        return
    batches = SIDES.get(name, ours)(name, folder)
    cores = sorted(os.sched_getaffinity(0))
    for line in sys.stdin:
        side, threads, seconds = line.split()
        os.sched_setaffinity(0, cores[: int(threads)])
        print(*rate(batches(int(side), int(threads)), float(seconds)), flush=True)


if __name__ == "__main__":
    main()
