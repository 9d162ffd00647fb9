"""A small folder of real image files and a bundle with a network that learns it in seconds."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regnet_deploy.bundle import Bundle, create_bundle
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.bundle.training import Execution
from regnet_deploy.images.dataset import ImageDataset, build_dataset
from regnet_deploy.images.image_check import check_images
from regnet_deploy.images.listing import list_images
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.space.network import Network
from regnet_deploy.training.data_loader import ImageSubset, TrainingDataset
from regnet_deploy.training.recipe import Recipe
from regnet_deploy.training.train import ExecutionRequest, TrainOptions
from regnet_deploy.training.trainer import Trainer, make_trainer

RESOLUTION = 16
COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small networks are not worth two threads, least of all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def network() -> Network:
    return Network((1, 1), (16, 24), (8, 8), (1.0, 1.0), se_ratio=0.25, stem_stride=1, stem_width=8)


@pytest.fixture
def preprocessing() -> Preprocessing:
    return default_preprocessing(RESOLUTION)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(epochs=3, batch_size=8, crop_area=0.5, warmup_epochs=1)


@pytest.fixture
def put_images() -> Callable[[Path, int], None]:
    """Write so many images of each class: its colour with noise, of several sizes."""

    def put(root: Path, count: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        for name, colour in COLOURS.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                height, width = draw.integers(14, 24, 2)
                pixels = np.clip(colour + draw.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / name / f"{i:03d}.png")

    return put


@pytest.fixture
def data(tmp_path: Path, put_images: Callable[..., None]) -> Path:
    """30 images to train on and 12 to validate with."""
    put_images(tmp_path / "data" / "train", 10, seed=1)
    put_images(tmp_path / "data" / "val", 4, seed=2)
    return tmp_path / "data"


@pytest.fixture
def folder(data: Path) -> ImageDataset:
    listing = list_images(data)
    return build_dataset(listing, check_images(listing.source))


@pytest.fixture
def views(folder: ImageDataset, recipe: Recipe, preprocessing: Preprocessing) -> TrainingDataset:
    return TrainingDataset(ImageSubset(folder.source, folder.train), recipe, preprocessing)


@pytest.fixture
def trainer(network: Network, recipe: Recipe, preprocessing: Preprocessing) -> Trainer:
    return make_trainer(AnyNet(network, 3, seed=0), Execution("cpu"), recipe, preprocessing)


@pytest.fixture
def bundle(tmp_path: Path, network: Network, preprocessing: Preprocessing) -> Bundle:
    """As `select` leaves it when nobody says how many classes there are."""
    architecture = Architecture.of(network, name="tiny", classes=1000, resolution=RESOLUTION)
    parts = {"architecture": architecture, "preprocessing": preprocessing.to_json()}
    return create_bundle(tmp_path / "bundle", parts)


@pytest.fixture
def options() -> TrainOptions:
    """One thread, which is enough for a tiny network."""
    return TrainOptions(ExecutionRequest("cpu", "fp32", "off", "off", threads=1), workers=0)


@pytest.fixture
def start_processes() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Start so many processes of one group, as launchers do; all of them have ended after the test.

    Python is ``code``, or the command line with these arguments.
    """
    started: list[subprocess.Popen[str]] = []

    def start(count: int, *arguments: object, code: str = "") -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        program = ["-c", code] if code else ["-m", "regnet_deploy"]
        processes = [
            subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    **place,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(count),
                    "OMP_NUM_THREADS": "1",
                },
            )
            for rank in range(count)
        ]
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_processes(
    start_processes: Callable[..., list[subprocess.Popen[str]]],
) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Run so many processes of one group to their end."""

    def call(count: int, *arguments: object, code: str = "") -> list[subprocess.CompletedProcess[str]]:
        processes = start_processes(count, *arguments, code=code)
        with ThreadPoolExecutor(count) as pool:
            said = list(pool.map(lambda process: process.communicate(timeout=280), processes))
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *each)
            for process, each in zip(processes, said, strict=True)
        ]

    return call
