"""Ranges of activations, measured on images: the values that a quantised tensor has room for.

The FP32 graph runs once. Of every tensor the lowest and the highest value are kept, and a histogram of magnitudes from
which each method then takes its own threshold, beyond which values are clipped.

The histograms are our own: those of ONNX Runtime's calibrators print to stdout, grow without bound where a later image
has larger values, and search the threshold of a tensor in Python loops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import ProofError, UsageError, did_you_mean
from regnet_deploy.exporting.progress import Advance, quiet
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.images.preprocessing import Preprocessing, normalize
from regnet_deploy.runtimes.onnx_session import create_session, ort_failures, run_error, session_options
from regnet_deploy.runtimes.runtime import installed_onnxruntime

#: Ways to choose a range: all that was seen; least loss of information; all but the largest magnitudes.
METHODS = ("minmax", "entropy", "percentile")
#: Share of the values, zeros left out, that ``percentile`` keeps: the best or nearly the best of those that
#: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, tried on convolutional networks.
KEPT = 0.9999

#: Bins of a histogram. At least half of them are below the largest magnitude, as many as NVIDIA's calibration has.
_BINS = 4096
#: Magnitudes that INT8 has, and the bins that a candidate for the threshold must have at least.
_LEVELS = 128
#: Values of a tensor and an image that go into the histogram; the lowest and highest are of all of them.
_SAMPLED = 8192
#: Bytes that the tensors of a batch may take. More would be slower: memory is mapped anew for each of them.
_BATCH_BYTES = 64 * 2**20
_MOST_IMAGES = 32


@dataclass(eq=False)
class Activations:
    """What was seen of one tensor.

    Attributes:
        low: lowest value.
        high: highest value.
        width: of a bin.
        counts: ``(4096,)`` int64, how many sampled magnitudes lie in each bin. Zeros are left out: every scale holds
            them exactly.
    """

    low: float = math.inf
    high: float = -math.inf
    width: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the values of a batch, ``(n, ...)``.

        Raises:
            ProofError: they are not finite.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ProofError("values inside the network are not finite: train again (a lower --lr)")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room()
        images = values.reshape(len(values), -1)
        sample = np.abs(images[:, :: _stride(images.shape[1], math.prod(values.shape[2:]))])
        sample = sample[sample > 0]
        if len(sample):
            bins = np.minimum((sample.astype(np.float64) / self.width).astype(np.int64), _BINS - 1)
            self.counts += np.bincount(bins, minlength=_BINS)

    def _make_room(self) -> None:
        """Double the width, joining pairs of bins, until the largest magnitude fits."""
        if self.width == 0.0:
            self.width = self.largest / _BINS
            return
        while self.largest > self.width * _BINS:
            self.width *= 2
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([joined, np.zeros_like(joined)])


@dataclass(frozen=True, eq=False)
class ObservedActivations:
    """What was seen of each tensor, by name, on so many images."""

    tensors: Mapping[str, Activations]
    images: int


def observe_activations(
    onnx_fp32: bytes,
    tensors: Sequence[str],
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    advance: Advance = quiet,
    threads: int | None = None,
) -> ObservedActivations:
    """Run a network on images and keep what its activations look like.

    Args:
        onnx_fp32: the graph in FP32, with normalised images as its input.
        tensors: names of tensors in it, as ``graph.tensors_between`` gives them; the input may be one.
        pixels: ``(n, h, w, 3)`` uint8.
        preprocessing: of the bundle.
        advance: called with the images done and ``n``.
        threads: of the CPU; by default what ``available_cores`` says.

    Raises:
        ProofError: values are not finite.
        MissingExtra: ONNX Runtime is not installed.
        UsageError: it is installed twice.
    """
    threads = threads or available_cores()
    session, entered = _open(onnx_fp32, tensors, threads)
    inside = [name for name in tensors if name != entered]
    seen = {name: Activations() for name in [*inside, entered] if name in tensors}
    done, size = 0, 1  # the first image alone: it tells how many fit
    with ThreadPoolExecutor(threads) as pool:
        while done < len(pixels):
            images = normalize(pixels[done : done + size], preprocessing)
            try:
                values = [*session.run(inside, {entered: images}), images][: len(seen)]
            except ort_failures() as error:
                raise run_error(images, error) from None
            list(pool.map(Activations.add, seen.values(), values))
            done += len(images)
            advance(done, len(pixels))
            size = max(1, min(_MOST_IMAGES, _BATCH_BYTES // sum(value[:1].nbytes for value in values)))
    return ObservedActivations({name: seen[name] for name in tensors}, len(pixels))


def activation_ranges(observed: ObservedActivations, method: str) -> dict[str, TensorRange]:
    """Return the range of every tensor: what was seen, clipped to the method's threshold on both sides.

    Args:
        observed: by :func:`observe`.
        method: ``minmax`` clips nothing. ``percentile`` keeps a share of 0.9999 of the values. ``entropy`` loses least
            information, as the Kullback-Leibler divergence counts it, when the rest is rounded to 128 magnitudes:
            S. Migacz, "8-bit Inference with TensorRT", GTC 2017. It is made for smooth distributions: of drawings,
            whose even parts put many values into one bin, it clips far too many. No method is always the best.

    Raises:
        UsageError: no such method.
    """
    thresholds = {"minmax": lambda seen: seen.largest, "entropy": _least_divergence, "percentile": _percentile}
    if method not in thresholds:
        raise UsageError(
            f"no calibration method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}"
        )
    found = {}
    for name, seen in observed.tensors.items():
        most = thresholds[method](seen)
        found[name] = TensorRange(max(seen.low, -most), min(seen.high, most))
    return found


def _percentile(seen: Activations) -> float:
    total = np.cumsum(seen.counts)
    if not total[-1]:
        return seen.largest
    return min(seen.largest, float(np.searchsorted(total, KEPT * total[-1]) + 1) * seen.width)


def _least_divergence(seen: Activations) -> float:
    """Return the magnitude at which to clip so that the distribution changes least.

    A candidate is a number of bins, 128 or more. P is what is in them, with all that is clipped in the last; Q is the
    same rounded to 128 levels, each spread over those of its bins that P has something in. All candidates at once: a
    level's sums are differences of running sums.
    """
    used = int(np.flatnonzero(seen.counts).max(initial=-1)) + 1
    if used <= _LEVELS:
        return seen.largest
    counts = seen.counts[:used].astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    entropies = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    candidates = np.arange(_LEVELS, used + 1)
    edges = candidates[:, None] * np.arange(_LEVELS + 1) // _LEVELS
    kept = np.diff(sums[edges], axis=1)
    bins = np.diff(filled[edges], axis=1).astype(np.float64)
    last, clipped = counts[candidates - 1], sums[-1] - sums[candidates]
    bins[:, -1] += (last == 0) & (clipped > 0)  # what is clipped fills the last bin of P
    held = kept.copy()
    held[:, -1] += clipped
    level = np.divide(kept, bins, out=np.ones_like(kept), where=kept > 0)
    # Sum of P log(P / Q), both made to sum to 1.
    of_p = entropies[candidates] - _x_log_x(last) + _x_log_x(last + clipped)
    of_p_and_q = (held * np.log(level)).sum(axis=1)
    divergence = (of_p - of_p_and_q) / sums[-1] - np.log(sums[-1] / np.maximum(sums[candidates], 1.0))
    divergence[(kept[:, -1] == 0) & (held[:, -1] > 0)] = np.inf  # P has something where Q has nothing
    return min(seen.largest, float(candidates[divergence.argmin()]) * seen.width)


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = x * np.log(np.where(x > 0, x, 1.0))
    return product


def _stride(values: int, places: int) -> int:
    """Return the step at which an image's values are sampled.

    It has no factor in common with the places of a map, height times width, so that in time it comes to every place: a
    step of 7 would meet a single column of maps 7 wide.
    """
    step = -(-values // _SAMPLED)
    while math.gcd(step, places) > 1:
        step += 1
    return step


def _open(data: bytes, tensors: Sequence[str], threads: int) -> tuple[Any, str]:
    """Return a session of ONNX Runtime that puts out these tensors, and the name of its input."""
    model = onnx.load_from_string(data)
    entered = model.graph.input[0].name
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name != entered
    )
    installed_onnxruntime()
    return create_session(
        model.SerializeToString(), session_options(threads, exact=False), ["CPUExecutionProvider"]
    ), entered
