"""Work of the operators of a network, in the quantities that decide how long they take.

A network is one row, and each column is the sum of one quantity over all operators of one kind for a batch. The time of
a network is modeled as a sum of these columns, each times its own cost on a device (``model.py``): multiply-adds and
moved elements of a kind of operator cost what its kernel needs, an operator costs its dispatch, and a weight is read
once for a batch. What the kernel is depends on the group width, so the 3x3 convolutions are split by it: into those
whose group width is a power of two and the others, and with group widths filled up to blocks of 8 and 16 channels, as
vectors of a CPU and tiles of a GPU hold them.

All functions take and return arrays with one row for each network, so that a population is predicted at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import NetworkConfig, stage_resolutions
from regnet_deploy.space.network import Network

Int = NDArray[np.int64]
Float = NDArray[np.float64]

#: The columns: name -> meaning, for one batch. Elements are those that an operator reads and writes.
COLUMNS = {
    "operators": "number of operators",
    "weights": "weights that are read",
    "stem_macs": "MACs of the stem",
    "stem_elements": "elements of the stem",
    "pointwise_macs": "MACs of the 1x1 convolutions",
    "pointwise_elements": "elements of the 1x1 convolutions",
    "pointwise_blocked_macs": "MACs of the 1x1 convolutions with channels filled up to multiples of 16",
    "grouped_macs": "MACs of the grouped 3x3 convolutions",
    "grouped_elements": "elements of the grouped 3x3 convolutions",
    "grouped_blocked_8_macs": "MACs of the 3x3 convolutions with group widths filled up to multiples of 8",
    "grouped_blocked_16_macs": "MACs of the 3x3 convolutions with group widths filled up to multiples of 16",
    "grouped_not_of_16_macs": "MACs of the 3x3 convolutions whose group width is no multiple of 16",
    "grouped_not_of_16_elements": "elements of the 3x3 convolutions whose group width is no multiple of 16",
    "grouped_odd_macs": "MACs of the 3x3 convolutions whose group width is no power of two",
    "grouped_odd_elements": "elements of the 3x3 convolutions whose group width is no power of two",
    "grouped_elements_by_width": "elements of the 3x3 convolutions divided by their group width",
    "addition_elements": "elements of the additions of the shortcuts",
    "gate_elements": "elements that squeeze-and-excitation averages and scales",
    "gate_macs": "MACs of squeeze-and-excitation",
    "gates": "number of squeeze-and-excitation modules",
}


@dataclass(frozen=True)
class _Layer:
    """One kind of operator of one stage; every field is ``(n,)`` or a number, and ``count`` says how many there are."""

    kind: str
    count: ArrayLike
    channels_in: ArrayLike
    channels_out: ArrayLike
    area_in: int
    area_out: int
    group_width: ArrayLike = 0


def operator_work(
    depths: ArrayLike,
    widths: ArrayLike,
    group_widths: ArrayLike,
    bottlenecks: ArrayLike,
    config: NetworkConfig,
    batch: int,
) -> Float:
    """Return the work of a population, ``(n, len(COLUMNS))``, in the order of :data:`COLUMNS`.

    Args:
        depths: number of blocks, ``(n, stages)``.
        widths: output channels, ``(n, stages)``.
        group_widths: channels per group, ``(n, stages)``.
        bottlenecks: width divided by bottleneck width; broadcasts to the others.
        config: what the networks have in common.
        batch: images in an inference.

    Raises:
        UsageError: the blocks are not bottlenecks.
    """
    if config.block != "bottleneck":
        raise UsageError(f"the time of networks of {config.block} blocks cannot be predicted: only that of bottlenecks")
    d, w, g = (np.atleast_2d(np.asarray(value, dtype=np.int64)) for value in (depths, widths, group_widths))
    inner = np.round(w / np.asarray(bottlenecks, dtype=np.float64)).astype(np.int64)
    columns = {name: np.zeros(len(w)) for name in COLUMNS}
    for layer in _layers(d, w, g, inner, config):
        _add(columns, layer, batch)
    return np.stack(list(columns.values()), axis=1)


def network_work(networks: Sequence[Network], resolution: int, classes: int, batch: int) -> Float:
    """Return the work of networks, ``(n, len(COLUMNS))``, for images of a resolution.

    Raises:
        UsageError: the blocks of one are not bottlenecks.
    """
    rows = [
        operator_work(
            network.depths,
            network.widths,
            network.group_widths,
            network.bottlenecks,
            NetworkConfig.of(network, resolution, classes),
            batch,
        )
        for network in networks
    ]
    return np.concatenate(rows) if rows else np.zeros((0, len(COLUMNS)))


def _layers(depths: Int, widths: Int, group_widths: Int, inner: Int, config: NetworkConfig) -> Iterator[_Layer]:
    sides = stage_resolutions(config.resolution, config.stem_stride, widths.shape[1])
    areas = [side**2 for side in sides]
    yield _Layer("stem", 1, config.input_channels, config.stem_width, config.resolution**2, areas[0])
    before: ArrayLike = config.stem_width
    for i in range(widths.shape[1]):
        width, middle, group = widths[:, i], inner[:, i], group_widths[:, i]
        first, others = (areas[i], areas[i + 1]), (areas[i + 1], areas[i + 1])
        for (area_in, area), count, entering in ((first, 1, before), (others, depths[:, i] - 1, width)):
            yield _Layer("pointwise", count, entering, middle, area_in, area_in)
            yield _Layer("grouped", count, middle, middle, area_in, area, group)
            if config.se_ratio:
                squeezed = np.round(config.se_ratio * np.asarray(entering)).astype(np.int64)
                yield _Layer("gate", count, middle, squeezed, area, area)
            yield _Layer("pointwise", count, middle, width, area, area)
            yield _Layer("addition", count, width, width, area, area)
        yield _Layer("pointwise", 1, before, width, areas[i + 1], areas[i + 1])  # the projection reads every 2nd pixel
        before = width
    yield _Layer("pointwise", 1, before, config.classes, 1, 1)


def _add(columns: dict[str, Float], layer: _Layer, batch: int) -> None:
    count, c_in, c_out = (
        np.asarray(value, dtype=np.float64) for value in (layer.count, layer.channels_in, layer.channels_out)
    )
    elements = batch * count * (c_in * layer.area_in + c_out * layer.area_out)

    def add(name: str, value: Float) -> None:
        columns[name] += value

    add("operators", count)
    if layer.kind == "stem":
        add("stem_macs", batch * 9 * c_in * c_out * layer.area_out)
        add("stem_elements", elements)
        add("weights", 9 * c_in * c_out)
    elif layer.kind == "pointwise":
        add("pointwise_macs", batch * count * c_in * c_out * layer.area_out)
        add("pointwise_blocked_macs", batch * count * _filled(c_in, 16) * _filled(c_out, 16) * layer.area_out)
        add("pointwise_elements", elements)
        add("weights", count * c_in * c_out)
    elif layer.kind == "grouped":
        _add_grouped(columns, layer, batch, elements)
    elif layer.kind == "gate":
        add("gate_elements", batch * count * 2 * c_in * layer.area_out)
        add("gate_macs", batch * count * 2 * c_in * c_out)
        add("gates", count)
        add("weights", count * 2 * c_in * c_out)
    else:
        add("addition_elements", batch * count * 3 * c_out * layer.area_out)


def _add_grouped(columns: dict[str, Float], layer: _Layer, batch: int, elements: Float) -> None:
    count, width, group = (
        np.asarray(value, dtype=np.int64) for value in (layer.count, layer.channels_in, layer.group_width)
    )
    macs = batch * count * 9.0 * width * group * layer.area_out
    odd, not_of_16 = (group & (group - 1)) > 0, group % 16 > 0
    columns["weights"] += count * 9.0 * width * group
    columns["grouped_macs"] += macs
    columns["grouped_elements"] += elements
    columns["grouped_elements_by_width"] += elements / group
    for block in (8, 16):
        columns[f"grouped_blocked_{block}_macs"] += macs * (_filled(group, block) / group) ** 2
    for name, where in (("not_of_16", not_of_16), ("odd", odd)):
        columns[f"grouped_{name}_macs"] += macs * where
        columns[f"grouped_{name}_elements"] += elements * where


def _filled(channels: ArrayLike, block: int) -> Float:
    """Return channels filled up to a multiple of a block."""
    return np.ceil(np.asarray(channels, dtype=np.float64) / block) * block
