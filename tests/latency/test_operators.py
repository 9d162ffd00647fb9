"""The work of a network, by which its time is predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet_deploy.errors import UsageError
from regnet_deploy.latency.operators import COLUMNS, network_work, operator_work
from regnet_deploy.space.complexity import NetworkConfig, network_complexity
from regnet_deploy.space.network import Network

_MACS = ("stem_macs", "pointwise_macs", "grouped_macs", "gate_macs")


def column(work: np.ndarray, name: str) -> np.ndarray:
    return work[:, list(COLUMNS).index(name)]


@st.composite
def networks(draw: st.DrawFn) -> Network:
    stages = draw(st.integers(1, 4))
    groups = [draw(st.sampled_from([1, 2, 8, 16, 24])) for _ in range(stages)]
    widths = [group * draw(st.integers(1, 6)) for group in groups]
    depths = [draw(st.integers(1, 4)) for _ in range(stages)]
    return Network(tuple(depths), tuple(widths), tuple(groups), (1.0,) * stages, draw(st.sampled_from([0.0, 0.25])), 2)


@given(networks(), st.sampled_from([32, 75, 224]), st.integers(1, 9))
def test_macs_of_all_operators_are_those_of_the_closed_form(network: Network, resolution: int, batch: int) -> None:
    work = network_work([network], resolution, 10, batch)
    squeezed = 0  # biases, which the closed form counts and the work does not
    width_in = network.stem_width
    for depth, width in zip(network.depths, network.widths, strict=True):
        for _ in range(depth):
            squeezed += (round(network.se_ratio * width_in) + width) if network.se_ratio else 0
            width_in = width
    exact = int(network_complexity(network, resolution, 10).total.macs) - squeezed - 10
    assert sum(float(column(work, name)[0]) for name in _MACS) == batch * exact


@given(networks())
def test_batch_multiplies_macs_and_elements_but_not_operators_and_weights(network: Network) -> None:
    one, many = (network_work([network], 64, 10, batch) for batch in (1, 7))
    for name in COLUMNS:
        factor = 1 if name in ("operators", "weights", "gates") else 7
        assert column(many, name) == pytest.approx(factor * column(one, name)), name


def test_weights_are_the_parameters_without_biases_and_batch_norms() -> None:
    network = Network((1, 2), (16, 32), (8, 8), (1.0, 1.0))
    stem = 9 * 3 * 32
    first = 32 * 16 + 9 * 16 * 8 + 16 * 16 + 32 * 16
    second = 16 * 32 + 9 * 32 * 8 + 32 * 32 + 16 * 32
    third = 32 * 32 + 9 * 32 * 8 + 32 * 32
    assert column(network_work([network], 64, 10, 1), "weights") == stem + first + second + third + 32 * 10


def test_group_widths_that_are_powers_of_two_cost_nothing_in_the_columns_of_the_others() -> None:
    networks = [Network((2,), (width,), (group,), (1.0,)) for width, group in ((48, 16), (48, 24), (32, 8))]
    work = network_work(networks, 64, 10, 1)
    assert list(column(work, "grouped_odd_macs") > 0) == [False, True, False]
    assert list(column(work, "grouped_not_of_16_macs") > 0) == [False, True, True]
    filled, plain = column(work, "grouped_blocked_16_macs"), column(work, "grouped_macs")
    assert list(filled / plain) == pytest.approx([1, (32 / 24) ** 2, 4])


def test_population_has_the_rows_of_its_networks() -> None:
    networks = [
        Network((1, 2), (16, 32), (8, 16), (1.0, 1.0), 0.25),
        Network((2, 3), (24, 48), (8, 16), (1.0, 1.0), 0.25),
    ]
    config = NetworkConfig(96, 7, 2, 32, 0.25)
    together = operator_work(
        [each.depths for each in networks],
        [each.widths for each in networks],
        [each.group_widths for each in networks],
        1.0,
        config,
        3,
    )
    assert np.array_equal(together, network_work(networks, 96, 7, 3))


def test_other_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="only that of bottlenecks"):
        network_work([Network((1,), (16,), (16,), (1.0,), block="v")], 64, 10, 1)
