"""What an epoch says of its speed."""

import pytest

from regnet_deploy.bundle.training import Epoch

EPOCH = Epoch(
    epoch=1, lr=0.1, train_loss=1.0, train_top1=0.5, val_loss=1.0, val_top1=0.5, val_images=9, images_per_s=900.4,
    seconds=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("waiting", "words"),
    [(0.38, "waits for images 38% of the time"), (0.05, "waits for images 5%"), (0.04, "is the limit")],
)
def test_an_epoch_names_which_of_loading_and_steps_waits(waiting: float, words: str) -> None:
    timed = EPOCH.replace(loaded_images_per_s=1234.0, step_images_per_s=1500.0, waiting=waiting)
    assert timed.speed.startswith(f"900 images/s (loading alone 1,234, the network alone 1,500: the network {words}")


def test_an_epoch_of_an_earlier_version_has_one_rate() -> None:
    assert Epoch.from_json(EPOCH.to_json()).speed == "900 images/s"
