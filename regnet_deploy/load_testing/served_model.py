"""A server, made sure of before the load: it is ready, has the model, and answers as the bundle's network does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import ServerError, UsageError
from regnet_deploy.images.preprocessing import Preprocessing
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
    MOST,
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
    """A server that answers as it should, and what to send there.

    Attributes:
        target: the server.
        load: what is sent.
        kind: ``tensor`` or ``image``.
        model: name of the model.
        source: where the images come from, in words.
        served: what the server says that it runs, such as its ``variant``; empty where it says nothing.
    """

    target: Target
    load: Load
    kind: Kind
    model: str
    source: str
    served: dict[str, str] = field(default_factory=dict)


def open_served_model(
    target: Target, bundle: Bundle, *, kind: Kind = "tensor", images: str | Path | None = None, model: str = "regnet"
) -> ServedModel:
    """Ask a server what it serves and for the answer to every image, one by one.

    Args:
        target: the server.
        bundle: that it is to serve: its golden set says what is right.
        kind: what to send.
        images: folder of images to send in place of the golden ones; the answers to them are held against the first.
        model: its name there.

    Raises:
        ServerError: it does not answer, is not ready, or refuses the images.
        UsageError: it has no such model, or another network than the bundle.
        MissingPart: the bundle has no golden set.
        DataError: the images cannot be used.
    """
    golden = load_golden(bundle)
    preprocessing = Preprocessing.from_json(bundle.part("preprocessing"))
    files = read_images(images) if images is not None else []
    interface, served = _ask(target, model)
    if interface.classes != golden.logits.shape[1]:
        raise UsageError(
            f"model {model} at {target.url} has {interface.classes} classes, {bundle.path} has "
            f"{golden.logits.shape[1]}: give the bundle that is served there"
        )
    # All golden images are looked at once, so that another network is found; as many as suffice take turns in the load.
    pixels = golden.images
    read: Read
    if kind == "tensor":
        requests, read = tensor_requests(target, interface, pixels, preprocessing), logits_reader(interface.classes)
        wanted: Scores = golden.logits.astype(np.float64)
    else:
        requests = file_requests(target, as_files(pixels, preprocessing))
        read, wanted = probabilities_reader(interface.classes), log_softmax(golden.logits)
    varies = logit_spread(golden.logits)
    first = _answers(target, requests, read)
    _hold_against_golden(target, bundle, first, wanted, varies)
    source = f"{min(len(requests), MOST)} golden images"
    if files:
        source = f"{len(files)} images of {images}"
        if kind == "tensor":
            requests = tensor_requests(target, interface, pixels_of_files(files, preprocessing), preprocessing)
        else:
            requests = file_requests(target, files)
        first = _answers(target, requests, read)
    check = make_answer_check(first[:MOST], read, CLOSE * varies)
    return ServedModel(target, Load(requests[:MOST], check), kind, model, source, served)


def _ask(target: Target, model: str) -> tuple[Interface, dict[str, str]]:
    status, document = get(target, "/v2/health/ready")
    said = f": {error_of(document)}" if error_of(document) else ""
    if status in (401, 403):
        raise ServerError(f"{target.url} wants a token (status {status}{said}): give --token-file FILE")
    if status == 404:
        raise ServerError(f"{target.url} does not speak the Open Inference Protocol: it has no /v2/health/ready")
    if status != 200:
        raise ServerError(f"the server at {target.url} is not ready (status {status}{said}): wait until it is")
    status, document = get(target, f"/v2/models/{model}")
    said = f": {error_of(document)}" if error_of(document) else ""
    if status == 404:
        raise UsageError(f"no model {model!r} at {target.url}{said}; give its name with --name")
    if status != 200:
        raise ServerError(f"{target.url} does not say what model {model} takes (status {status}{said})")
    properties = document.get("properties") if isinstance(document, dict) else None
    told = properties if isinstance(properties, dict) else {}
    return interface_of(model, document), {str(name): str(value) for name, value in told.items()}


def _answers(target: Target, requests: Sequence[bytes], read: Read) -> list[Scores]:
    """Return the scores that the server gives to each image, asked one by one."""
    answers = run_on_event_loop(lambda: request_each(target, requests))
    scores = []
    for answer in answers:
        if isinstance(answer, str):
            raise ServerError(f"the server at {target.url} does not answer: {answer}")
        found = read(answer) if answer.status == 200 else None
        if found is None:
            raise ServerError(f"the server at {target.url} does not take the images: {_said(answer)}")
        scores.append(found)
    return scores


def _said(answer: HttpReply) -> str:
    text = answer.body[:300].decode("utf-8", "replace") if answer.status != 200 else "its answer is not understood"
    return f"status {answer.status}, {' '.join(text.split())}"


def _hold_against_golden(
    target: Target, bundle: Bundle, first: Sequence[Scores], wanted: NDArray[np.float64], varies: float
) -> None:
    """Refuse a server that answers as another network; the loosest gate of the bundle's variants says how many may."""
    right = sum(
        logits_agree(reference, scores, LOOSE * varies) for reference, scores in zip(wanted, first, strict=True)
    )
    if right < math.floor(len(first) * _least_share(bundle)):
        raise UsageError(
            f"{target.url} serves another network than {bundle.path}: {len(first) - right} of {len(first)} golden "
            "images are answered otherwise; give the bundle that is served there"
        )


def _least_share(bundle: Bundle) -> float:
    variants: dict[str, dict[str, Any]] = bundle.parts.get("variants") or {}
    return min([1.0, *(gate_to_serve(variant).top1 for variant in variants.values())])
