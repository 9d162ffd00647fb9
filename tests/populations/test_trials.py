"""What the stages of networks say as columns."""

from __future__ import annotations

import numpy as np

from regnet_deploy.populations.trials import Trials, stage_columns
from regnet_deploy.space.network import Network

TWO = Network((1, 2), (8, 16), (4, 8), (1.0, 2.0))
THREE = Network((3, 4, 5), (8, 24, 32), (8, 8, 16), (1.0, 1.0, 0.5))


def test_each_stage_is_a_column_of_the_papers_symbol() -> None:
    columns = {name: values.tolist() for name, values in stage_columns([TWO]).items()}
    assert columns == {
        "d": [3],
        "d_1": [1],
        "d_2": [2],
        "w_1": [8],
        "w_2": [16],
        "b_1": [1],
        "b_2": [2],
        "g_1": [4],
        "g_2": [8],
    }
    assert all(values.dtype == np.float64 for values in stage_columns([TWO]).values())


def test_stages_that_some_do_not_have_are_left_out() -> None:
    columns = stage_columns([TWO, THREE])
    assert columns["d"].tolist() == [3, 12]
    assert columns["w_2"].tolist() == [16, 24]
    assert "w_3" not in columns


def test_of_no_networks_there_are_no_columns() -> None:
    assert stage_columns([]) == {}


def test_a_population_is_as_long_as_its_errors() -> None:
    assert len(Trials("a", np.array([1.0, 2.0]), {})) == 2
    assert len(Trials("a", np.zeros(0), {}, unsuccessful=3)) == 0
