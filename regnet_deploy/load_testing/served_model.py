"""Checks a server before the load: it is ready, has the model, and answers as the network of the bundle does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.variants import EngineVariant
from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.load_testing.answer_check import (
    CLOSE,
    LOOSE,
    Read,
    Scores,
    log_softmax,
    logits_agree,
    logits_reader,
    make_answer_check,
    probabilities_reader,
)
from regnet_deploy.load_testing.event_loop import run_on_event_loop
from regnet_deploy.load_testing.generator import Load, request_each
from regnet_deploy.load_testing.http_client import HttpReply
from regnet_deploy.load_testing.payloads import (
    MAX_IMAGES,
    Interface,
    Kind,
    as_files,
    file_requests,
    interface_of,
    pixels_of_files,
    read_images,
    tensor_requests,
)
from regnet_deploy.load_testing.target import Target, error_of, get
from regnet_deploy.runtimes.gates import gate_to_serve, logit_spread
from regnet_deploy.runtimes.golden_set import load_golden


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A server whose answers were checked, and the requests to send there.

    Attributes:
        load: the requests.
        kind: ``tensor`` or ``image``.
        model: name of the model.
        source: number and origin of the images, in words.
        properties: properties of the model as the server states them, such as its ``variant``.
    """

    load: Load
    kind: Kind
    model: str
    source: str
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        """The server."""
        return self.load.target


def open_served_model(
    target: Target, bundle: Bundle, *, kind: Kind = "tensor", images: str | Path | None = None, model: str = "regnet"
) -> ServedModel:
    """Read the metadata of a served model and check its answers to all images, one by one.

    Args:
        target: the server.
        bundle: the bundle that it serves; its golden set has the expected logits.
        kind: what to send.
        images: folder of images to send in place of the golden ones; their answers are compared with the first ones.
        model: name of the model on the server.

    Raises:
        ServerError: the server does not answer, is not ready, or refuses the images.
        UsageError: it has no such model, or serves another network than the bundle.
        MissingPart: the bundle has no golden set.
        DataError: the images cannot be used.
    """
    golden = load_golden(bundle)
    preprocessing = bundle.preprocessing
    files = read_images(images) if images is not None else []
    interface, properties = _read_metadata(target, model)
    if interface.classes != golden.logits.shape[1]:
        raise UsageError(
            f"model {model} at {target.url} has {interface.classes} classes, {bundle.path} has "
            f"{golden.logits.shape[1]}: give the bundle that is served there"
        )
    # All golden images are sent once, to recognize another network; the load uses only the first of them.
    pixels = golden.images
    read: Read
    if kind == "tensor":
        requests, read = tensor_requests(target, interface, pixels, preprocessing), logits_reader(interface.classes)
        expected: Scores = golden.logits.astype(np.float64)
    else:
        requests = file_requests(target, as_files(pixels, preprocessing))
        read, expected = probabilities_reader(interface.classes), log_softmax(golden.logits)
    spread = logit_spread(golden.logits)
    first = _answers(target, requests, read)
    _compare_with_golden(target, bundle, first, expected, spread)
    source = f"{min(len(requests), MAX_IMAGES)} golden images"
    if files:
        source = f"{len(files)} images of {images}"
        if kind == "tensor":
            requests = tensor_requests(target, interface, pixels_of_files(files, preprocessing), preprocessing)
        else:
            requests = file_requests(target, files)
        first = _answers(target, requests, read)
    check = make_answer_check(first[:MAX_IMAGES], read, CLOSE * spread)
    return ServedModel(Load(target, requests[:MAX_IMAGES], check), kind, model, source, properties)


def _read_metadata(target: Target, model: str) -> tuple[Interface, dict[str, str]]:
    status, document = get(target, "/v2/health/ready")
    detail = f": {error_of(document)}" if error_of(document) else ""
    if status in (401, 403):
        raise ServerError(f"{target.url} requires a token (status {status}{detail}): give --token-file FILE")
    if status == 404:
        raise ServerError(f"{target.url} does not speak the Open Inference Protocol: it has no /v2/health/ready")
    if status != 200:
        raise ServerError(f"the server at {target.url} is not ready (status {status}{detail}): wait until it is")
    status, document = get(target, f"/v2/models/{model}")
    detail = f": {error_of(document)}" if error_of(document) else ""
    if status == 404:
        raise UsageError(f"no model {model!r} at {target.url}{detail}; give its name with --name")
    if status != 200:
        raise ServerError(f"{target.url} does not describe the model {model} (status {status}{detail})")
    properties = document.get("properties") if isinstance(document, dict) else None
    stated = properties if isinstance(properties, dict) else {}
    return interface_of(model, document), {str(name): str(value) for name, value in stated.items()}


def _answers(target: Target, requests: Sequence[bytes], read: Read) -> list[Scores]:
    """Return the scores of the answers to requests, sent one by one."""
    answers = run_on_event_loop(lambda: request_each(target, requests))
    scores = []
    for answer in answers:
        if isinstance(answer, str):
            raise ServerError(f"the server at {target.url} does not answer: {answer}")
        found = read(answer) if answer.status == 200 else None
        if found is None:
            raise ServerError(f"the server at {target.url} does not accept the images: {_describe(answer)}")
        scores.append(found)
    return scores


def _describe(answer: HttpReply) -> str:
    text = answer.body[:300].decode("utf-8", "replace") if answer.status != 200 else "its answer cannot be parsed"
    return f"status {answer.status}, {' '.join(text.split())}"


def _compare_with_golden(
    target: Target, bundle: Bundle, first: Sequence[Scores], expected: NDArray[np.float64], spread: float
) -> None:
    """Refuse a server of another network: more answers differ than the loosest gate of the bundle's variants allows."""
    right = sum(
        logits_agree(reference, scores, LOOSE * spread) for reference, scores in zip(expected, first, strict=True)
    )
    if right < math.floor(len(first) * _least_share(bundle)):
        raise UsageError(
            f"{target.url} serves another network than {bundle.path}: {len(first) - right} of {len(first)} golden "
            "images have other answers; give the bundle that is served there"
        )


def _least_share(bundle: Bundle) -> float:
    limits = [1.0]
    for variant in bundle.manifest.variants.values():
        proofs = [one.proof for one in variant.engines] if isinstance(variant, EngineVariant) else [variant.proof]
        limits += [gate_to_serve(variant.precision, proof).limit("top1") for proof in proofs or [None]]
    return min(limits)
