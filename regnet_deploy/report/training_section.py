"""The section of the model card on the training of the weights, or on where they come from."""

from __future__ import annotations

from collections.abc import Iterator

from regnet_deploy.bundle.manifest import WeightsOrigin
from regnet_deploy.bundle.training import Training
from regnet_deploy.html import Section
from regnet_deploy.report.card import ModelCard

#: Classes whose numbers of images are listed.
_CLASSES_SHOWN = 20


def training_section(card: ModelCard) -> Section:
    """Return how the weights were trained, with which images and to which accuracy."""
    training, measured, origin = card.manifest.training, card.accuracy, card.manifest.imported
    if training is None and origin is not None:
        return _imported_weights(origin)
    if training is None or measured is None:
        return Section("Training", [("state", "not trained yet: the weights are random")])
    data = training.data
    facts = [
        (
            "validation top-1",
            f"{measured.val_top1 * 100:.2f} % of {measured.val_images:,} images "
            f"(95 % interval {measured.low * 100:.2f} to {measured.high * 100:.2f} %), {training.best_name}"
            f"{f' of {len(training.history)}' if measured.epoch else ''}; chosen on these images, so accuracy on new "
            "images is slightly lower",
        ),
        *_baseline(card),
        *_pixels(training),
        *_test(training),
        ("data", f"{data.train_images:,} training images of {data.classes:,} classes; {data.split}"),
        *_class_sizes(card),
        *_linear_probe(training),
        *_learning_rate(training),
        *(("finding", finding) for finding in data.findings),
        ("left out", f"files and folders that are no images for training: {len(data.rejected):,}"),
        ("digest of the data", data.digest),
        ("start", training.lineage.start),
        ("time", f"{training.seconds:.0f} s on {training.device}"),
        *(("speed", f"{epoch.speed}, in the last epoch") for epoch in training.history[-1:]),
    ]
    if origin is not None:  # fine-tuned from it
        facts.append(("imported weights", f"{origin.file}, license {origin.license_text or 'not known'}"))
    return Section("Training", facts)


def recipe_section(training: Training) -> Section:
    """Return the recipe that was really used: also what trials and the linear probe decided, and how steps ran."""
    used = dict(training.recipe)
    if training.lr_probe:
        asked = used.get("lr")
        used["lr"] = f"{training.lr_probe.lr:g}, which trials chose" + ("" if asked is None else f" (asked: {asked})")
    tested = training.probe or training.pixels
    if tested and not tested.mirror_safe:
        if used.get("flip_probe"):
            used["flip"] = "False, as mirrored images are recognized worse"
        if used.get("aligned_crop_area"):
            used["crop_area"] = f"{used['aligned_crop_area']}, as mirrored images are recognized worse"
    for retry in training.retries or ():
        used["lr"] = f"{used.get('lr')}; {retry.lr:g} from epoch {retry.epoch} on, as {retry.reason}"
    ran = len(training.history)
    if training.stopped or training.early:
        used["epochs"] = f"{ran} of {used.get('epochs')}"
    threads = f", {training.execution.threads} threads" if training.execution.threads else ""
    named = [("name", training.recipe_name)] if training.recipe_name else []
    facts = [(name.replace("_", " "), str(value)) for name, value in used.items() if value is not None]
    return Section("Recipe", [*named, *facts, ("execution", f"{training.execution.execution}{threads}")])


def _imported_weights(origin: WeightsOrigin) -> Section:
    """Return where imported weights come from."""
    facts = [("file", f"{origin.file}, of {origin.source} ({origin.container}), SHA-256 {origin.sha256}")]
    if origin.location:
        facts.append(("downloaded from", origin.location))
    if origin.published:
        facts.append(("public weights", origin.published + origin.doubt))
    facts.append(("license", origin.license_text or "not known"))
    if origin.top1_percent is not None:
        text = f"{origin.top1_percent:.2f} % on ImageNet-1k ({origin.top1_setting}){origin.doubt}"
        facts.append(("published top-1", text))
    facts += [("assumed", text) for text in origin.assumptions]
    facts += [("read", text) for text in origin.remarks]
    return Section("Imported weights", facts)


def _test(training: Training) -> Iterator[tuple[str, str]]:
    """Yield the accuracy on the images that no choice saw, and what they are."""
    images, measured = training.data.test, training.test
    if images is None:
        return
    text = "not measured"
    if measured:
        text = (
            f"{measured.top1 * 100:.2f} % of {measured.images:,} images (95 % interval {measured.low * 100:.2f} to "
            f"{measured.high * 100:.2f} %), which no choice saw"
        )
    yield "test top-1", f"{text}; {images.split}"
    yield from (("test images seen before", remark) for remark in images.remarks)


def _linear_probe(training: Training) -> Iterator[tuple[str, str]]:
    probe = training.probe
    if probe:
        accuracy = f"{probe.val_top1 * 100:.2f} % of {probe.val_images:,} validation images"
        if probe.l2 is None:
            yield "before fine-tuning", accuracy
        else:
            yield "linear probe", f"{accuracy}; fitted to {probe.train_images:,} images"
        if probe.mirrored_top1 is not None:
            decided = "images were mirrored at random" if probe.mirror_safe else "no image was mirrored"
            yield "mirrored images", f"{probe.mirrored_top1 * 100:.2f} % by {probe.name}: {decided}"


def _pixels(training: Training) -> Iterator[tuple[str, str]]:
    """Yield what the logistic regression on small pixels reaches, and what followed for mirrored images."""
    pixels = training.pixels
    if pixels:
        yield (
            "pixel baseline",
            f"{pixels.val_top1 * 100:.2f} % of {pixels.val_images:,} validation images by a logistic regression on "
            f"{pixels.side} x {pixels.side} pixels; of {pixels.tested:,} images that it was not fitted to, it "
            f"recognizes {pixels.right:,}, and {pixels.mirrored_right:,} if they are mirrored",
        )


def _learning_rate(training: Training) -> Iterator[tuple[str, str]]:
    """Yield the rate that trials have chosen, which may be another than that of the recipe."""
    if training.lr_probe:
        yield "learning rate", str(training.lr_probe)


def _baseline(card: ModelCard) -> Iterator[tuple[str, str]]:
    if card.baseline:
        verdict = f"; {card.baseline.verdict}" if card.baseline.verdict else ""
        yield "baseline", f"{card.baseline.top1 * 100:.2f} % by always answering {card.baseline.label}{verdict}"


def _class_sizes(card: ModelCard) -> Iterator[tuple[str, str]]:
    """Yield the images of each class, to train on, to validate with and to test on; of many classes the smallest."""
    training, labels = card.manifest.training, card.manifest.labels
    if training is None or len(training.data.train_by_class) != len(labels):
        return
    data = training.data
    counts = [data.train_by_class, data.val_by_class, *([data.test.by_class] if data.test else [])]
    sizes = list(zip(labels, zip(*counts, strict=True), strict=True))
    shown = sizes if len(sizes) <= _CLASSES_SHOWN else sorted(sizes, key=lambda size: size[1][0])[:_CLASSES_SHOWN]
    which = "" if len(shown) == len(sizes) else f"the {_CLASSES_SHOWN} smallest classes: "
    yield "images by class", which + ", ".join(f"{name} {' + '.join(f'{n:,}' for n in each)}" for name, each in shown)
