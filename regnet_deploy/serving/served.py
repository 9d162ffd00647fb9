"""A bundle made ready to answer: bytes of a request in, bytes of an answer out. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.bundle import Bundle
from regnet_deploy.errors import ProofError
from regnet_deploy.images.decode import decode, pixels_of
from regnet_deploy.images.preprocess import Preprocessing, resize_and_crop
from regnet_deploy.runtimes.gates import Gate, gate_to_serve
from regnet_deploy.runtimes.golden import Agreement, Golden, load_golden, replay
from regnet_deploy.runtimes.predictions import labels_of, top_k
from regnet_deploy.runtimes.runtime import Device, Session, classify_pixels, find_variant, open_variant
from regnet_deploy.runtimes.variants import choose_variant, must_be_built, proof_of
from regnet_deploy.serving.admission import Budget
from regnet_deploy.serving.protocol import Interface, infer_response, parse_infer

VERSION = "1"

#: Opens the engine of a variant, built for this machine.
BuildEngine = Callable[[Bundle, str], Session]

#: Formats that are decoded for whoever can reach the server: those of the web, whose decoders are the most tried.
FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_batch: images in an infer request.
        max_body_bytes: of a request's body, as sent and unpacked.
        max_bodies_bytes: of the bodies of all requests in flight, as sent.
        max_pixels: width times height of an image to classify, and of all those that are being decoded at a time.
        max_in_flight: requests being read or answered; more are told to come back.
        max_connections: open connections; more are told to come back and closed.
        read_timeout_s: seconds in which the head of a request must have arrived, and then its body.
    """

    max_batch: int = 32
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_pixels: int = 25_000_000
    max_in_flight: int = 64
    max_connections: int = 512
    read_timeout_s: float = 30.0


@dataclass(frozen=True, eq=False)
class Served:
    """An opened variant with all it takes to answer; its methods may be called from several threads."""

    variant: str
    session: Session
    interface: Interface
    preprocessing: Preprocessing
    golden: Golden
    gate: Gate
    limits: Limits
    # One inference at a time has all the cores; several at once only get into each other's caches.
    _turn: threading.Lock = field(default_factory=threading.Lock)
    # One JSON at a time becomes Python's objects: it holds the interpreter anyhow, and several would take their memory.
    _parsing: threading.Lock = field(default_factory=threading.Lock)
    # Pixels that are being decoded.
    _decoding: Budget = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_decoding", Budget(self.limits.max_pixels))

    def prove(self) -> Agreement:
        """Replay the golden set.

        Raises:
            ProofError: the variant does not agree with the trained model on this machine.
        """
        batch = min(8, self.limits.max_batch)
        agreement = replay(self.session, self.golden, self.preprocessing, self.gate, batch)
        if not agreement.passed:
            raise ProofError(f"variant {self.variant} does not agree with its golden set: {agreement}")
        return agreement

    def infer(self, body: bytes, header_length: str | None) -> tuple[bytes, dict[str, str]]:
        """Answer an infer request with a body and its headers; see :mod:`regnet_deploy.serving.protocol`.

        Raises:
            RequestError: the client's mistake.
            ProofError: the runtime failed.
        """
        with self._parsing:
            request = parse_infer(body, header_length, self.interface)
        with self._turn:
            logits = self.session.run(request.images)
        return infer_response(request, logits, self.interface)

    def classify(self, image: bytes, k: int) -> dict[str, Any]:
        """Return the ``k`` likeliest classes of an encoded image and how long each step took, as JSON data.

        Raises:
            DataError: not a usable image.
            ProofError: the runtime failed.
        """
        start = time.perf_counter()
        pixels = self._pixels(image)
        decoded = time.perf_counter()
        with self._turn:
            entered = time.perf_counter()
            logits = classify_pixels(self.session, pixels[None], self.preprocessing)
        end = time.perf_counter()
        if not np.isfinite(logits).all():
            raise ProofError("the network's answer to this image is not finite")
        return {
            "model": self.interface.model,
            "predictions": [prediction.to_json() for prediction in top_k(logits, self.interface.labels, k)[0]],
            "timing_ms": {
                "decode": _ms(decoded - start),
                "wait": _ms(entered - decoded),
                "inference": _ms(end - entered),
                "total": _ms(end - start),
            },
        }

    def _pixels(self, image: bytes) -> NDArray[np.uint8]:
        most = self.limits.max_pixels
        with self._decoding.hold(pixels_of(image, max_pixels=most, formats=FORMATS)):
            return resize_and_crop(decode(image, max_pixels=most, formats=FORMATS), self.preprocessing)


def load_served(
    bundle: Bundle,
    *,
    variant: str | None = None,
    model: str = "regnet",
    threads: int | None = None,
    device: Device = "auto",
    limits: Limits | None = None,
    build: BuildEngine | None = None,
) -> Served:
    """Open a variant of a bundle for serving.

    Args:
        bundle: that has it.
        variant: its name; by default the fastest.
        model: what clients call it.
        threads: of the CPU.
        device: where to run it.
        limits: what clients may ask for.
        build: makes the engine of a variant that has none for this machine; None where that is not allowed. The golden
            set is replayed on it as on every other before anybody is answered.

    Raises:
        MissingPart: nothing has been exported; the message names the command.
        UsageError: the variant is unknown, unproved, or cannot be run here.
        BundleError: a file is damaged.
    """
    preprocessing = Preprocessing.from_json(bundle.part("preprocessing"))
    golden = load_golden(bundle)
    if build is not None and variant is not None and must_be_built(bundle, variant, device):
        chosen, session = variant, build(bundle, variant)
    else:
        chosen = choose_variant(bundle, variant, device)
        session = open_variant(bundle, chosen, threads=threads, device=device)
    limits = limits or Limits()
    side = preprocessing.crop
    interface = Interface(
        model=model,
        version=VERSION,
        input=session.input_name,
        dtype=session.input,
        image=(side, side, 3) if session.input == "uint8" else (3, side, side),
        output=session.output_name,
        labels=labels_of(bundle),
        max_batch=limits.max_batch,
    )
    gate = gate_to_serve(find_variant(bundle, chosen) | {"proof": proof_of(bundle, chosen)})
    return Served(chosen, session, interface, preprocessing, golden, gate, limits)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
