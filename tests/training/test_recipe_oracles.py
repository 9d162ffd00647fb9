"""The parts of recipes beside torchvision and timm, in the environment of `make oracles`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from regnet_deploy.training.auto_augment import apply, operations
from regnet_deploy.training.batch_augmentation import Mix
from regnet_deploy.training.loss import training_loss
from regnet_deploy.training.recipe import Recipe

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

ENVIRONMENT = Path(os.environ.get("ORACLES") or Path(__file__).parents[2] / "build" / "oracles")
LEVELS = (0, 4, 9, 16, 23, 30)
BOX = (2, 1, 6, 5)


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (40, 56, 3), dtype=np.uint8),
        "levels": np.array(LEVELS),
        "images": draw.normal(size=(4, 3, 8, 12)).astype(np.float32),
        "labels": np.array([0, 2, 1, 2]),
        "logits": draw.normal(size=(4, 3)).astype(np.float32),
        "box": np.array(BOX),
    }


@pytest.fixture(scope="module")
def theirs(given: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    python, folder = ENVIRONMENT / "bin" / "python", tmp_path_factory.mktemp("oracles")
    if not python.exists():
        pytest.skip("needs the environment of `make oracles`")
    np.savez(folder / "given.npz", **given)
    program = Path(__file__).with_name("oracle_parts.py")
    subprocess.run([python, "-W", "ignore", program, folder / "given.npz", folder / "result.npz"], check=True)
    return dict(np.load(folder / "result.npz"))


@pytest.mark.parametrize("policy", ["trivialaugment", "randaugment"])
def test_every_operation_gives_the_pixels_of_torchvision(
    policy: str, given: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> None:
    image, compared = Image.fromarray(given["image"]), 0
    for each in operations(Recipe(auto_augment=policy), image.width, image.height):
        for level in LEVELS:
            for sign in (1, -1) if each.signed else (1,):
                for mode in ("RGB", "L"):
                    ours = np.asarray(apply(image.convert(mode), each.name, sign * (each.largest or 0.0) * level / 30))
                    wanted = theirs[f"{policy} {each.name} {level} {sign} {mode}"]
                    different = np.abs(ours.astype(int) - wanted.astype(int)) > 1  # theirs are float32 magnitudes
                    assert different.mean() < 0.002, (each.name, level, sign, mode)
                    compared += 1
    assert compared == sum(key.startswith(f"{policy} ") for key in theirs)


@pytest.mark.parametrize(("name", "mix"), [("mixup", Mix(0.7)), ("cutmix", Mix(0.7, BOX))])
def test_batches_are_mixed_as_torchvision_does(
    name: str, mix: Mix, given: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> None:
    mixed = mix.images(torch.from_numpy(given["images"]))
    np.testing.assert_allclose(mixed.numpy(), theirs[f"{name} images"], rtol=1e-6, atol=1e-6)
    labels, logits = torch.from_numpy(given["labels"]), torch.from_numpy(given["logits"])
    ours = 0.7 * training_loss(logits, labels, Recipe()) + 0.3 * training_loss(logits, labels.roll(1), Recipe())
    wanted = F.cross_entropy(logits, torch.from_numpy(theirs[f"{name} labels"]))
    torch.testing.assert_close(ours, wanted)


def test_binary_cross_entropy_is_timms(given: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    logits, labels = torch.from_numpy(given["logits"]), torch.from_numpy(given["labels"])
    ours = training_loss(logits, labels, Recipe(loss="bce", label_smoothing=0.1))
    assert ours.item() == pytest.approx(float(theirs["bce"]), rel=1e-5)
