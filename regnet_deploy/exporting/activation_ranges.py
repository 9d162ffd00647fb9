"""Ranges of activations, measured on images.

The FP32 graph runs once. For every tensor the lowest and the highest value and a histogram of magnitudes are kept. Each
calibration method computes from the histogram the threshold at which it clips the values.

ONNX Runtime's calibrators are not used: they print to stdout, their histograms grow without bound where a later image
has larger values, and they search the threshold of a tensor in Python loops.
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

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import ProofError, UsageError, did_you_mean
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.images.preprocessing import normalize
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.onnx_session import create_session, ort_failures, run_error, session_options
from regnet_deploy.runtimes.runtime import installed_onnxruntime

#: Calibration methods: the full range; the smallest loss of information; all but the largest magnitudes.
METHODS = ("minmax", "entropy", "percentile")
#: Share of the values other than 0 that ``percentile`` does not clip: the best or nearly the best of those in
#: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, for convolutional networks.
PERCENTILE = 0.9999

#: Bins of a histogram. At least half of them are below the largest magnitude: as many as NVIDIA's calibration has.
_BINS = 4096
#: Number of INT8 magnitudes, and the smallest number of bins below a candidate threshold.
_LEVELS = 128
#: Number of values of a tensor and an image that enter the histogram; lowest and highest are of all values.
_SAMPLED = 8192
#: Largest size of the tensors of a batch, in bytes. A larger one is slower, because memory is mapped again for each.
_BATCH_BYTES = 64 * 2**20
_MAX_BATCH = 32


@dataclass(eq=False)
class ActivationHistogram:
    """Lowest value, highest value and a histogram of the magnitudes of one tensor.

    Attributes:
        low: lowest value.
        high: highest value.
        width: of a bin.
        counts: ``(4096,)`` int64, number of sampled magnitudes in each bin. Zeros are not counted: every scale
            represents them exactly.
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
        """Add the values of a batch, ``(n, ...)``.

        Raises:
            ProofError: a value is not finite.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ProofError("values inside the network are not finite: train again (a lower --lr)")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        images = values.reshape(len(values), -1)
        sample = np.abs(images[:, :: _stride(images.shape[1], math.prod(values.shape[2:]))])
        sample = sample[sample > 0]
        if len(sample):
            bins = np.minimum((sample.astype(np.float64) / self.width).astype(np.int64), _BINS - 1)
            self.counts += np.bincount(bins, minlength=_BINS)

    def _widen(self) -> None:
        """Double the width, merging pairs of bins, until the largest magnitude fits."""
        if self.width == 0.0:
            self.width = self.largest / _BINS
            return
        while self.largest > self.width * _BINS:
            self.width *= 2
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])


@dataclass(frozen=True, eq=False)
class ObservedActivations:
    """Histograms by the name of the tensor, and the number of images."""

    tensors: Mapping[str, ActivationHistogram]
    images: int


def observe_activations(
    onnx_fp32: bytes,
    tensors: Sequence[str],
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    progress: Progress | None = None,
    threads: int | None = None,
) -> ObservedActivations:
    """Run a network on images and return histograms of its activations.

    Args:
        onnx_fp32: the graph in FP32; its input is normalized images.
        tensors: names of its tensors, from :func:`regnet_deploy.exporting.onnx_graph.activation_names`; may include the
            input.
        pixels: ``(n, h, w, channels)`` uint8.
        preprocessing: of the bundle.
        progress: receives the images done.
        threads: of the CPU; by default all available cores.

    Raises:
        ProofError: a value is not finite.
        MissingExtra: ONNX Runtime is not installed.
        UsageError: it is installed twice.
    """
    progress, threads = progress or NoProgress(), threads or available_cores()
    session, graph_input = _open(onnx_fp32, tensors, threads)
    outputs = [name for name in tensors if name != graph_input]
    histograms = {name: ActivationHistogram() for name in [*outputs, graph_input] if name in tensors}
    done, size = 0, 1  # the first batch is one image; the size of its tensors sets the size of the other batches
    with ThreadPoolExecutor(threads) as pool:
        while done < len(pixels):
            images = normalize(pixels[done : done + size], preprocessing)
            try:
                values = [*session.run(outputs, {graph_input: images}), images][: len(histograms)]
            except ort_failures() as error:
                raise run_error(images, error) from None
            list(pool.map(ActivationHistogram.add, histograms.values(), values))
            done += len(images)
            progress.update(done, len(pixels))
            size = max(1, min(_MAX_BATCH, _BATCH_BYTES // sum(value[:1].nbytes for value in values)))
    return ObservedActivations({name: histograms[name] for name in tensors}, len(pixels))


def compute_ranges(observed: ObservedActivations, method: str) -> dict[str, TensorRange]:
    """Return the range of every tensor: its lowest and highest value, clipped to the method's threshold on both sides.

    Args:
        observed: from :func:`observe_activations`.
        method: ``minmax`` clips nothing. ``percentile`` does not clip a share of 0.9999 of the values. ``entropy``
            minimizes the Kullback-Leibler divergence that rounding to 128 magnitudes causes: S. Migacz, "8-bit
            Inference with TensorRT", GTC 2017. It assumes smooth distributions; for drawings, whose uniform areas put
            many values into one bin, it clips far too much. No method is always the best.

    Raises:
        UsageError: the method is unknown.
    """
    thresholds = {
        "minmax": lambda one: one.largest,
        "entropy": _least_divergence,
        "percentile": _percentile,
    }
    if method not in thresholds:
        raise UsageError(
            f"unknown calibration method {method!r}{did_you_mean(method, METHODS)}; "
            f"the methods are {', '.join(METHODS)}"
        )
    found = {}
    for name, histogram in observed.tensors.items():
        threshold = thresholds[method](histogram)
        found[name] = TensorRange(max(histogram.low, -threshold), min(histogram.high, threshold))
    return found


def _percentile(histogram: ActivationHistogram) -> float:
    total = np.cumsum(histogram.counts)
    if not total[-1]:
        return histogram.largest
    return min(histogram.largest, float(np.searchsorted(total, PERCENTILE * total[-1]) + 1) * histogram.width)


def _least_divergence(histogram: ActivationHistogram) -> float:
    """Return the threshold whose quantized distribution has the smallest divergence from the original one.

    A candidate is a number of bins, 128 or more. P is the content of these bins, with everything that is clipped in the
    last one; Q is the same content rounded to 128 levels, each spread evenly over those of its bins that are not empty
    in P. All candidates are computed at once: the sums of a level are differences of cumulative sums.
    """
    used = int(np.flatnonzero(histogram.counts).max(initial=-1)) + 1
    if used <= _LEVELS:
        return histogram.largest
    counts = histogram.counts[:used].astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    entropies = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
    candidates = np.arange(_LEVELS, used + 1)
    edges = candidates[:, None] * np.arange(_LEVELS + 1) // _LEVELS
    kept = np.diff(sums[edges], axis=1)
    bins = np.diff(filled[edges], axis=1).astype(np.float64)
    last, clipped = counts[candidates - 1], sums[-1] - sums[candidates]
    bins[:, -1] += (last == 0) & (clipped > 0)  # the clipped values are in the last bin of P
    content = kept.copy()
    content[:, -1] += clipped
    level = np.divide(kept, bins, out=np.ones_like(kept), where=kept > 0)
    # Sum of P log(P / Q), both normalized to a sum of 1.
    of_p = entropies[candidates] - _x_log_x(last) + _x_log_x(last + clipped)
    of_p_and_q = (content * np.log(level)).sum(axis=1)
    divergence = (of_p - of_p_and_q) / sums[-1] - np.log(sums[-1] / np.maximum(sums[candidates], 1.0))
    divergence[(kept[:, -1] == 0) & (content[:, -1] > 0)] = np.inf  # Q is 0 where P is not
    return min(histogram.largest, float(candidates[divergence.argmin()]) * histogram.width)


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = x * np.log(np.where(x > 0, x, 1.0))
    return product


def _stride(values: int, positions: int) -> int:
    """Return the step between the sampled values of an image.

    It is coprime with the size of a feature map, height times width, so that every position is sampled: a step of 7
    would always hit the same column of maps that are 7 wide.
    """
    step = -(-values // _SAMPLED)
    while math.gcd(step, positions) > 1:
        step += 1
    return step


def _open(data: bytes, tensors: Sequence[str], threads: int) -> tuple[Any, str]:
    """Return a session of ONNX Runtime whose outputs are these tensors, and the name of its input."""
    model = onnx.load_from_string(data)
    graph_input = model.graph.input[0].name
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name != graph_input
    )
    installed_onnxruntime()
    return create_session(
        model.SerializeToString(), session_options(threads, exact=False), ["CPUExecutionProvider"]
    ), graph_input
