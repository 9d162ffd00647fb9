"""CSV says what the store says; CSV from elsewhere is read by its names, or refused in one line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from regnet_deploy.errors import DataError
from regnet_deploy.populations.csv_rows import ALIASES
from regnet_deploy.populations.csv_table import STAGES, read_csv, write_csv
from regnet_deploy.populations.reader import trials_of
from regnet_deploy.populations.store import DIVERGED, DONE, FAILED, Trial, TrialOutcome, open_store
from regnet_deploy.populations.trials import Trials

Make = Callable[..., Trial]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str) -> Path:
        (tmp_path / "from-elsewhere.csv").write_text(text, encoding="utf-8")
        return tmp_path / "from-elsewhere.csv"

    return put


def refused(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_csv(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def read_or_one_line(path: Path) -> Trials | None:
    said = ""
    try:
        return read_csv(path)
    except DataError as error:
        said = str(error)
    assert "\n" not in said
    return None


def assert_same(one: Trials, other: Trials) -> None:
    assert (one.space, one.networks, one.drawn, one.unsuccessful) == (
        other.space,
        other.networks,
        other.drawn,
        other.unsuccessful,
    )
    assert one.error.tolist() == other.error.tolist()
    assert set(one.columns) <= set(other.columns)
    for name, values in one.columns.items():
        assert values.tolist() == other.columns[name].tolist(), name


def test_what_is_written_reads_back_as_the_same_population(
    tmp_path: Path, write: Write, make_trial: Make, outcomes: dict[str, TrialOutcome], identity: dict[str, object]
) -> None:
    trials = [make_trial(0), make_trial(1), make_trial(2, ratio=2.0), make_trial(3), make_trial(4), make_trial(5)]
    trials[4] = replace(trials[4], network=replace(trials[4].network, bottlenecks=(40 / 39, 1.0), group_widths=(3, 8)))
    found = {
        0: outcomes[DONE],
        1: outcomes[DIVERGED],
        2: replace(outcomes[DONE], error=0.001667),
        3: outcomes[FAILED],
        4: replace(outcomes[DONE], error=100.0),
    }
    with open_store(tmp_path / "a.sweep", identity) as store:
        store.add(trials)
        for number, outcome in found.items():
            store.record(number, outcome)
        wanted = trials_of(store)
        text = write_csv(store)
    got = read_csv(write(text))
    assert_same(wanted, got)
    assert got.conditions == wanted.conditions
    assert got.conditions["flip"] == "False"
    assert not {"seed", "training_seed", "resolution", "threads"} & set(got.columns)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {(row["seed"], row["training_seed"], row["resolution"], row["lr"]) for row in rows} == {
        ("0", "7", "16", "0.05")
    }
    assert [(row["number"], row["state"], row["error"]) for row in rows] == [
        ("0", "done", "66.666667"),
        ("1", "diverged", ""),
        ("2", "done", "0.001667"),
        ("3", "failed", ""),
        ("4", "done", "100"),
    ]


def test_of_nothing_a_line_of_names_is_written(tmp_path: Path, write: Write, identity: dict[str, object]) -> None:
    with open_store(tmp_path / "a.sweep", identity) as store:
        assert write_csv(store) == "space\n"
    assert "has no rows" in refused(write("space\n"))


def test_of_rounds_the_one_of_most_epochs_counts(write: Write) -> None:
    rows = "90,1,done,0\n80,1,done,0\n20,9,done,0\n,9,diverged,0\n21,9,done,0\n"
    trials = read_csv(write(f"error,epochs,state,training_seed\n{rows}"))
    assert trials.error.tolist() == [20, 21]
    assert trials.unsuccessful == 1
    (remark,) = trials.remarks
    assert "2 networks with fewer than 9 epochs are left out" in remark
    assert "epochs" in trials.conditions
    assert read_csv(write("error,epochs\n90,\n80,\n")).error.tolist() == [90, 80]


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_what_others_call_a_column_is_known(write: Write, name: str) -> None:
    ours = ALIASES[name]
    if ours in STAGES:
        text = "error,g,depths,widths\n1,8,1 2,8 16\n".replace(ours, name)
        assert read_csv(write(text)).networks[0].depths == (1, 2)
    elif ours in ("error", "top1_acc"):
        value = 12.5 if ours == "error" else 87.5
        for written in (name, name.upper(), f" {name} "):
            assert read_csv(write(f"{written}\n{value}\n")).error.tolist() == [12.5]
    else:
        assert read_csv(write(f"error,{name}\n1,12.5\n")).columns[ours].tolist() == [12.5]


def test_accuracy_is_100_less_the_error(write: Write) -> None:
    assert read_csv(write("top1_acc,macs\n75.5,1\n0,2\n100,3\n")).error.tolist() == [24.5, 100, 0]
    assert read_csv(write("top1_acc,error\n75.5,1\n")).error.tolist() == [1]
    assert "line 3: the accuracy must be 0 to 100 percent" in refused(write("top1_acc\n75\n-5\n"))


def test_spaces_name_a_population_where_they_are_one(write: Write) -> None:
    assert read_csv(write("space,error\nA,1\nA,2\n")).space == "A"
    assert read_csv(write("space,error\nA,1\nB,2\n")).space == "from-elsewhere"
    assert read_csv(write("space,error\n,1\n,2\n")).space == "from-elsewhere"
    assert read_csv(write("error\n1\n")).space == "from-elsewhere"


def test_a_byte_order_mark_and_other_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbferror,macs\r\n 10 ,1\r\n20, 2\r\n")
    trials = read_csv(path)
    assert trials.error.tolist() == [10, 20]
    assert trials.columns["macs"].tolist() == [1, 2]


def test_numbers_that_some_lack_are_nan_and_words_are_no_column(write: Write) -> None:
    trials = read_csv(write("error,macs,cpu,half,none\n1,5,fast,2,\n2,,slow,x,\n3,7\n"))
    np.testing.assert_array_equal(trials.columns["macs"], [5, np.nan, 7])
    np.testing.assert_array_equal(trials.columns["half"], [2, np.nan, np.nan])
    assert set(trials.columns) == {"macs", "half"}


def test_columns_of_the_run_are_not_of_the_network(write: Write) -> None:
    assert set(read_csv(write("id,number,epochs,lr,seed,seconds,w_m,error\n1,2,3,4,5,6,7,8\n")).columns) == {"w_m"}


def test_parameters_by_the_papers_symbols_count_as_drawn(write: Write) -> None:
    assert read_csv(write("error,g,w_m,macs,d\n1,2,3,4,5\n")).drawn == ("d", "w_m", "g")
    assert read_csv(write("error,drawn:b,d,drawn:q\n1,2,3,4\n")).drawn == ("b", "q")


def test_those_that_diverged_or_failed_are_counted_and_left_out(write: Write) -> None:
    trials = read_csv(write("state,error,macs\ndone,10,1\ndiverged,,2\nfailed,,3\ndone,30,4\n"))
    assert trials.unsuccessful == 2
    assert trials.columns["macs"].tolist() == [1, 4]


@pytest.mark.parametrize("value", ["nan", "-0.01", "100.01", "inf", "many", "0x10", "1e999"])
def test_an_error_that_is_none_is_refused_with_its_line(write: Write, value: str) -> None:
    said = refused(write(f"error,macs\n10,1\n{value},2\n"))
    assert f"line 3: the error must be 0 to 100 percent, got {value!r}: correct it" in said


def test_errors_at_both_ends_are_read(write: Write) -> None:
    assert read_csv(write("error\n0\n100\n1e1\n")).error.tolist() == [0, 100, 10]


def test_a_table_without_errors_says_what_it_has(write: Write) -> None:
    said = refused(write("eror,macs\n1,2\n"))
    assert "has no column error" in said
    assert "(did you mean eror?)" in said or "eror, macs" in said


@pytest.mark.parametrize("text", ["", "\n\n", "error,macs\n", "error"])
def test_a_table_without_rows_is_refused(write: Write, text: str) -> None:
    assert "has no rows" in refused(write(text))


def test_a_group_width_for_all_stages_is_fitted_into_each(write: Write) -> None:
    trials = read_csv(write("error,depths,widths,g,bottlenecks\n1,1 2,8 64,16,1 2\n"))
    assert trials.networks[0].group_widths == (8, 16)
    assert trials.networks[0].bottlenecks == (1.0, 2.0)


def test_stages_without_groups_make_columns_of_nothing(write: Write) -> None:
    trials = read_csv(write("error,depths,widths\n1,1 2,8 64\n"))
    assert trials.networks == ()
    assert trials.columns == {}


@pytest.mark.parametrize(
    "row",
    [
        "1 2,8 16,3 3,1 1",
        "1,8 16,8 8,1 1",
        "0 1,8 16,8 8,1 1",
        "one,8,8,1",
        "1,8,8,0",
        "1,8,8,nan",
        "1,8,8,inf",
        "1,8,8,1e-320",
        "1,8,8,-1",
        "1,-8,8,1",
        ",,8,1",
        "1.5,8,8,1",
        "1,1" + "0" * 400 + ",8,1",
        "1" + "0" * 400 + ",8,8,1",
    ],
)
def test_networks_that_cannot_be_built_are_one_line(write: Write, row: str) -> None:
    said = refused(write(f"error,depths,widths,group_widths,bottlenecks\n1,{row}\n"))
    assert "a network cannot be built" in said


@pytest.mark.parametrize("g", ["inf", "nan", "0", "-8", "x", "1e400"])
def test_a_group_width_that_is_none_is_one_line(write: Write, g: str) -> None:
    assert "a network cannot be built" in refused(write(f"error,depths,widths,g\n1,1,8,{g}\n"))


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"error\n\xff\xfe\n")
    refused(path)
    path.write_text("error\n" + "x" * 200_000)
    refused(path)
    refused(tmp_path)
    refused(tmp_path / "none.csv")


CELL = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "1", "8 16", "1 1", "nan", "inf", "-1", "1e308", "0", "done", "failed", '"', "1_0", "٣"]),
    st.floats().map(str),
    st.integers().map(str),
)
NAME = st.sampled_from(
    [
        *STAGES,
        *ALIASES,
        "error",
        "top1_acc",
        "g",
        "d",
        "drawn:w_m",
        "state",
        "space",
        "se_ratio",
        "stem_stride",
        "block",
    ]
)
TABLE = st.lists(st.one_of(NAME, st.text(max_size=4)), max_size=8).flatmap(
    lambda names: st.lists(st.lists(CELL, max_size=len(names) + 1), max_size=4).map(lambda rows: [names, *rows])
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=TABLE, plain=st.booleans())
@example(table=[["error", "depths", "widths", "g"], ["1", "1", "8", "inf"]], plain=True)
def test_any_table_is_a_population_or_one_line(tmp_path: Path, table: list[list[str]], plain: bool) -> None:
    text = io.StringIO()
    if plain:
        text.write("\n".join(",".join(row) for row in table))
    else:
        csv.writer(text).writerows(table)
    path = tmp_path / "a.csv"
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    trials = read_or_one_line(path)
    if trials is None:
        return
    assert ((trials.error >= 0) & (trials.error <= 100)).all()
    assert all(len(values) == len(trials) for values in trials.columns.values())
    assert len(trials.networks) in (0, len(trials))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_a_population_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    read_or_one_line(path)


def test_accuracies_that_are_fractions_are_read_as_such_and_said(write: Write) -> None:
    trials = read_csv(write("top1_acc\n0.755\n1\n0.2\n"))
    assert trials.error.tolist() == [24.5, 0, 80]
    assert "read as fractions" in " ".join(trials.remarks)
    assert read_csv(write("top1_acc\n75.5\n10\n")).remarks == ()
    assert read_csv(write("top1_acc\n75.5 %\n1%\n")).error.tolist() == [24.5, 99]


def test_epochs_of_other_programs_are_no_rounds(write: Write) -> None:
    trials = read_csv(write("error,epochs\n20,60\n30,100\n40,80\n"))
    assert trials.error.tolist() == [20, 30, 40]
    assert "trained for 60 to 100 epochs" in " ".join(trials.remarks)
    assert "epochs" not in trials.conditions


@pytest.mark.parametrize(
    ("text", "error", "unsuccessful", "remark"),
    [
        ("COMPLETE,10\nTrialState.COMPLETE,11\nTERMINATED,12\nfinished,13\n", [10, 11, 12, 13], 0, ""),
        ("done,10\nFAIL,\nERROR,\ncrashed,\n", [10], 3, ""),
        ("done,10\nRUNNING,\nWAITING,20\n", [10], 0, "2 of 3 networks have no result"),
        ("done,10\nPRUNED,60\n", [10], 0, "1 of 2 networks were stopped before the end"),
    ],
)
def test_states_of_other_programs_are_known(
    write: Write, text: str, error: list[float], unsuccessful: int, remark: str
) -> None:
    trials = read_csv(write(f"state,error\n{text}"))
    assert trials.error.tolist() == error
    assert trials.unsuccessful == unsuccessful
    assert remark in " ".join(trials.remarks)
    assert bool(remark) == bool(trials.remarks)


def test_a_state_that_nobody_knows_is_refused(write: Write) -> None:
    assert "line 3: the state 'dome' is not known (did you mean done?)" in refused(write("state,error\n,1\ndome,2\n"))


def test_semicolons_tabs_and_decimal_commas_are_read(write: Write) -> None:
    trials = read_csv(write("error;macs;depths;widths;g\n12,5;100;1 2;8 16;8\n20;200;1 2;8 16;8\n"))
    assert trials.error.tolist() == [12.5, 20]
    assert trials.columns["macs"].tolist() == [100, 200]
    assert len(trials.networks) == 2
    assert read_csv(write("error\tmacs\n12.5\t100\n")).columns["macs"].tolist() == [100]


def test_rows_that_are_longer_than_the_names_are_refused(write: Write) -> None:
    said = refused(write("error,macs\n12,5,100\n"))
    assert "line 2 has 3 values, but the file has 2 columns, separated by commas" in said
    assert read_csv(write("error,macs\n12,5,\n")).error.tolist() == [12]


def test_columns_of_one_name_are_refused_unless_one_is_an_alias(write: Write) -> None:
    assert "two columns 'error'" in refused(write("error,error\n1,2\n"))
    assert read_csv(write("top1_err,error\n1,2\n")).error.tolist() == [2]
    assert read_csv(write("top1,top1_err\n99,1\n")).error.tolist() == [1]
    assert "two columns 'macs'" in refused(write("error,macs, macs\n1,2,3\n"))


def test_other_encodings_are_one_line_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("error,macs\n1,2\n".encode("utf-16"))
    assert "save it as CSV UTF-8" in refused(path)


def test_a_first_row_without_epochs_is_read(write: Write) -> None:
    assert "epochs" not in read_csv(write("error,epochs\n40,\n41,10\n")).conditions


def test_accuracies_with_a_percent_sign_are_percent(write: Write) -> None:
    trials = read_csv(write("acc1\n0.5 %\n1 %\n"))
    assert (trials.error.tolist(), trials.remarks) == ([99.5, 99.0], ())


def test_values_that_no_statistic_can_take_are_unknown_and_said(write: Write) -> None:
    trials = read_csv(write("error,d,loss\n40,10,inf\n41,1e308,inf\n42,12,inf\n"))
    np.testing.assert_array_equal(trials.columns["d"], [10, np.nan, 12])
    assert list(trials.columns) == ["d"]
    assert trials.remarks == (
        "from-elsewhere.csv: 1 values of d are beyond 10^30 and are left out",
        "from-elsewhere.csv: 3 values of loss are beyond 10^30 and are left out",
    )


def test_whole_numbers_as_pandas_writes_them_describe_a_network(write: Write) -> None:
    (network,) = read_csv(write("error,depths,widths,group_widths,stem_stride\n40,1 1,8 16,8 8,1.0\n")).networks
    assert network.stem_stride == 1


def test_a_row_without_a_result_is_left_out_and_said(write: Write) -> None:
    trials = read_csv(write("error,state,macs\n10,COMPLETE,1\n,COMPLETE,2\n"))
    assert trials.error.tolist() == [10]
    assert "1 of 2 networks have no result and are left out" in " ".join(trials.remarks)


def test_fractions_among_percents_are_doubted(write: Write) -> None:
    trials = read_csv(write("top1_acc\n0.73\n73.1\n"))
    assert trials.error.tolist() == pytest.approx([99.27, 26.9])
    assert "1 accuracies are at most 1 and 1 are not" in " ".join(trials.remarks)
