"""The chosen weights of a run on images: their logits, and their answers on the validation images for the card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.cpu import available_cores
from regnet_deploy.evaluation.answers import Answers, summarize_answers
from regnet_deploy.evaluation.metrics import softmax
from regnet_deploy.evaluation.record import MODEL
from regnet_deploy.images.dataset import ImageDataset, LabelledImage, stratified_order
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import inference_model
from regnet_deploy.progress import Progress
from regnet_deploy.training.checkpoint import Checkpoint
from regnet_deploy.training.data_loader import EvaluationDataset, ImageSubset, Sample, UnreadableImage, number_batches
from regnet_deploy.training.execution import disable_tf32
from regnet_deploy.training.interruption import Interrupted
from regnet_deploy.training.layer_calls import between_layers

#: Images in an inference.
_BATCH = 64
#: Validation images of which the answers are kept in short: more would delay the end of the training.
MAX_VALIDATION = 4096


@dataclass(frozen=True, eq=False)
class Classified:
    """Images that were classified.

    Attributes:
        numbers: of the images that could be read, ``(n,)``.
        labels: their classes, ``(n,)``.
        logits: ``(n, classes)`` float32.
        unreadable: name -> reason, of images that cannot be read any more.
    """

    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    unreadable: dict[str, str]


def classify(
    checkpoint: Checkpoint,
    images: EvaluationDataset,
    device: str,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> Classified:
    """Run the best weights of a run on images, in FP32 on the pixels that the server makes of them.

    Args:
        checkpoint: of the run.
        images: the images.
        device: ``cpu`` or ``cuda``.
        progress: receives the images done.
        stopping: whether to end now, for example after a signal.

    Raises:
        Interrupted: ``stopping`` said so.
    """
    disable_tf32()
    architecture = Architecture.from_json(checkpoint.identity["architecture"])
    model = AnyNet(architecture.network, architecture.classes)
    model.load_state_dict(dict(checkpoint.best))
    model.to(device).eval()
    numbers: list[int] = []
    labels: list[int] = []
    logits: list[NDArray[np.float32]] = [np.empty((0, architecture.classes), np.float32)]
    unreadable: dict[str, str] = {}

    def look() -> None:
        if stopping():
            raise Interrupted

    with ThreadPoolExecutor(max_workers=min(16, available_cores())) as pool, between_layers(model, look):
        for batch in number_batches(len(images), _BATCH):
            loaded = list(pool.map(images.__getitem__, batch))
            unreadable.update((each.name, each.reason) for each in loaded if isinstance(each, UnreadableImage))
            samples = [each for each in loaded if isinstance(each, Sample)]
            numbers += [number for number, each in zip(batch, loaded, strict=True) if isinstance(each, Sample)]
            if samples:
                inputs = normalize(np.stack([each.pixels for each in samples]), images.preprocessing)
                logits.append(inference_model(model, torch.from_numpy(inputs).to(device)).cpu().numpy())
                labels += [each.label for each in samples]
            progress.update(len(numbers) + len(unreadable))
            look()
    return Classified(np.array(numbers, np.int64), np.array(labels, np.int64), np.concatenate(logits), unreadable)


def validation_answers(
    checkpoint: Checkpoint,
    dataset: ImageDataset,
    device: str,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> Answers | None:
    """Return the answers of the best weights on the validation images, of 4,096 that are spread over the classes.

    Args:
        checkpoint: of the run.
        dataset: its images.
        device: ``cpu`` or ``cuda``.
        progress: receives the images done.
        stopping: whether to end now, for example after a signal.

    Returns:
        None if none of them can be read any more.

    Raises:
        Interrupted: ``stopping`` said so.
    """
    chosen: Sequence[LabelledImage] = dataset.val
    if len(chosen) > MAX_VALIDATION:
        order = stratified_order([image.label for image in chosen], checkpoint.identity["recipe"]["seed"])
        chosen = [chosen[i] for i in sorted(order[:MAX_VALIDATION])]
    images = EvaluationDataset(
        ImageSubset(dataset.source, chosen), Preprocessing.from_json(checkpoint.identity["preprocessing"])
    )
    progress.step("answers on the validation images", len(images))
    found = classify(checkpoint, images, device, progress, stopping)
    if not len(found.numbers):
        return None

    def pixels_of(rows: list[int]) -> Iterable[NDArray[np.uint8] | None]:
        for row in rows:
            sample = images[int(found.numbers[row])]
            yield sample.pixels if isinstance(sample, Sample) else None

    which = f"{len(chosen):,} of the {len(dataset.val):,} " if len(chosen) < len(dataset.val) else "the "
    return summarize_answers(
        found.labels,
        softmax(found.logits),
        lambda row: dataset.name(chosen[int(found.numbers[row])]),
        pixels_of,
        where=f"{which}validation images of the training",
        variant=MODEL,
    )
