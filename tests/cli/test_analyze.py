"""`regnet-deploy analyze` as it is typed: tables, JSON, files, and a space for the next sweep."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regnet_deploy.populations.store import DIVERGED, TrialOutcome, read_store
from regnet_deploy.space.space_file import find_space

#: Of the bootstrap, so that it takes no time; and of the population, which has few networks.
FEW = ["--repeats", "50", "--min-networks", "2"]


@pytest.fixture(autouse=True)
def _needs() -> None:
    pytest.importorskip("scipy")


def numbers(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def remarks_aside(done: Any) -> list[str]:
    """What is on stderr but for the remark that these few epochs taught little."""
    return [line for line in done.stderr.splitlines() if "no better than chance" not in line]


def test_tables_are_on_stdout(cli: Any, store: Path) -> None:
    done = cli("analyze", store, *FEW)
    assert done.returncode == 0
    assert remarks_aside(done) == []
    for word in ("Top-1 errors", "Random search", "rank correlation", "MACs (M)", "d_1 (blocks)"):
        assert word in done.stdout
    assert re.search(r"tiny +8 ", done.stdout)


def test_json_is_on_stdout_and_nothing_else(cli: Any, store: Path) -> None:
    done = cli("analyze", store, *FEW, "--json")
    said = numbers(done)
    assert remarks_aside(done) == []
    with read_store(store) as opened:
        errors = sorted(outcome.error for outcome in opened.outcomes().values() if outcome.error is not None)
    (population,) = said["populations"]
    assert (population["name"], sorted(population["errors_percent"])) == ("tiny", errors)
    assert population["lost"] == 0
    assert done.stderr.splitlines() == said["remarks"]


def test_csv_read_back_gives_the_same_numbers(cli: Any, store: Path, tmp_path: Path) -> None:
    wanted = numbers(cli("analyze", store, *FEW, "--json", "--csv", tmp_path / "tiny.csv"))
    got = numbers(cli("analyze", tmp_path / "tiny.csv", *FEW, "--json"))
    columns = {each["column"] for each in wanted["populations"][0]["best_ranges"]}
    for each in (wanted, got):
        for part in ("best_ranges", "rank_correlations"):
            for population in each["populations"]:
                population[part] = [made for made in population[part] if made["column"] in columns]
    assert got == wanted


def test_two_populations_are_compared(cli: Any, store: Path, tmp_path: Path) -> None:
    shutil.copy(store, tmp_path / "other.sweep")
    said = numbers(cli("analyze", store, tmp_path / "other.sweep", *FEW, "--json"))
    names = [each["name"] for each in said["populations"]]
    assert len(set(names)) == 2
    done = cli("analyze", store, tmp_path / "other.sweep", *FEW)
    assert "Distance of the populations" in done.stdout
    assert "tiny / tiny (2)" in done.stdout


def test_a_store_is_analysed_while_it_is_written(cli: Any, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from regnet_deploy.populations.store import open_store

    with read_store(store) as opened:
        identity = opened.identity
    with open_store(store, identity) as writing:
        writing.record(7, TrialOutcome(DIVERGED, message="the loss is not finite"))
        writing.record(6, TrialOutcome("planned"))  # has no error and is not done
        done = cli("analyze", store, *FEW, "--json", "--figures", tmp_path / "figures", "--html", tmp_path / "a.html")
        writing.record(5, TrialOutcome(DIVERGED))
    said = numbers(done)
    assert said["populations"][0]["n"] == 6
    assert "2 of 8 networks diverged or failed; no statistic includes them" in done.stderr
    assert "2 of 8 networks diverged or failed" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (tmp_path / "a.html").stat().st_size > 10_000
    assert list((tmp_path / "figures").glob("*.svg"))


def test_the_page_is_complete_in_itself_and_opens_in_a_browser(cli: Any, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "a.html"
    done = cli("analyze", store, *FEW, "--html", page)
    assert remarks_aside(done) == [f"{page}: the analysis as one page"]
    text = page.read_text(encoding="utf-8")
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://www.w3.org/1999/xhtml"}
    loaded = re.findall(r"(?:src|href|xlink:href)\s*=\s*[\"']([^\"'#][^\"']*)", text) + re.findall(
        r"url\(([^#)]+)\)", text
    )
    assert [each for each in loaded if not each.startswith("data:") and each not in names] == []
    assert "<script" not in text
    assert "@import" not in text
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    shown = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.stdout.count("<svg") == text.count("<svg") > 0, shown.stderr[-2000:]
    assert "Top-1 errors" in shown.stdout


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_figures_are_files_of_the_format(cli: Any, store: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    done = cli("analyze", store, *FEW, "--figures", tmp_path / "new" / "figures", "--format", suffix)
    assert done.returncode == 0, done.stderr
    made = sorted(each.name for each in (tmp_path / "new" / "figures").iterdir())
    assert f"edf.{suffix}" in made
    assert all(name.endswith(f".{suffix}") for name in made)
    (said,) = remarks_aside(done)
    assert said.startswith(f"{tmp_path / 'new' / 'figures'}: {len(made)} figures, edf")
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / "new" / "figures" / f"edf.{suffix}").read_bytes().startswith(start)


def test_from_a_to_b_and_on(cli: Any, store: Path, sweep_images: Path, sweep_small: list[str], tmp_path: Path) -> None:
    narrow = tmp_path / "b.yaml"
    done = cli("analyze", store, *FEW, "--refine", narrow, "--across", "bottleneck=same", "--across", "width=rising")
    assert done.returncode == 0, done.stderr
    (said,) = remarks_aside(done)
    assert re.match(
        rf"{narrow}: tiny narrowed from 10\^[\d.]+ to 10\^[\d.]+ networks \(8 to \d degrees of freedom\)"
        rf" - next: regnet-deploy sweep --space {narrow} --data DIR ",
        said,
    )
    for option in ("--mmacs 0.1:3", "--resolution 16", "--epochs 1", "--batch-size 8"):
        assert f" {option}" in said  # as the population before it was trained
    space = find_space(str(narrow))
    assert space.name == "b"
    assert (space.bottleneck.across, space.width.across) == ("same", "rising")  # type: ignore[union-attr]
    swept = cli(
        *("sweep", "--space", narrow, "--data", sweep_images, "--store", tmp_path / "b.sweep", *sweep_small, "--n", 3),
        "--json",
    )
    assert numbers(swept)["space"] == "b"
    with read_store(tmp_path / "b.sweep") as opened:
        for trial in opened.trials():
            assert len(set(trial.network.bottlenecks)) == 1
            assert list(trial.network.widths) == sorted(trial.network.widths)
    again = cli("analyze", tmp_path / "b.sweep", *FEW, "--refine", tmp_path / "c.yaml", "--json")
    assert numbers(again)["populations"][0]["name"] == "b"
    assert find_space(str(tmp_path / "c.yaml")).degrees_of_freedom <= space.degrees_of_freedom


def test_a_table_is_refined_with_the_space_that_is_named(
    cli: Any, cli_error: Callable[..., str], store: Path, sweep_space: Path, tmp_path: Path
) -> None:
    table, narrow = tmp_path / "tiny.csv", tmp_path / "b.yaml"
    assert cli("analyze", store, *FEW, "--csv", table, "--refine", tmp_path / "a.yaml").returncode == 0
    said = cli_error("analyze", table, *FEW, "--refine", narrow)
    assert said.endswith(f"{table} does not record its space: name it with --space")
    assert "was not drawn from RegNetX" in cli_error("analyze", table, *FEW, "--refine", narrow, "--space", "RegNetX")
    assert not narrow.exists()
    assert cli("analyze", table, *FEW, "--refine", narrow, "--space", sweep_space).returncode == 0
    assert narrow.read_text().splitlines()[1:] == (tmp_path / "a.yaml").read_text().splitlines()[1:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "w_1,deepth"], "no population has a column 'deepth'"),
        (["--share", "0"], "0.0 is not in the range 0<x<=1"),
        (["--share", "nan"], "'--share': 'nan' is not a finite number"),
        (["--repeats", "0"], "--repeats"),
        (["--html", "none/a.html"], "there is no folder none for a.html: create it first"),
        (["--html", "."], "is a folder"),
        (["--html", "./x/../tiny.sweep"], "there is no folder"),
        (["--html", "a.htm", "--csv", "a.txt"], "a table is written as .csv, got a.txt"),
        (
            ["--html", "tiny.sweep"],
            "tiny.sweep is a population, which is never overwritten: give another file",
        ),
        (["--figures", "tiny.sweep"], "--figures takes a folder, but tiny.sweep is a file"),
        (["--figures", "n" * 300], "File name too long"),
        (["--format", "gif"], "gif"),
        (["--across", "bottleneck=same"], "--across and --space require --refine FILE"),
        (["--space", "RegNetX"], "--across and --space require --refine FILE"),
        (["--refine", "b.json"], "a space is written as .yaml or .yml, got b.json"),
        (["--refine", "b.yaml", "--across", "bottleneck"], "--across takes PART=RELATION"),
        (["--refine", "b.yaml", "--across", "bottelneck=same", "--csv", "a.csv"], "(did you mean bottleneck?)"),
        (["--refine", "b.yaml", "--across", "width=risng", "--html", "a.html"], "(did you mean rising?)"),
        (["--refine", "b.yaml", "--space", "RegNetX"], "tiny was not drawn from RegNetX"),
        (["tiny.sweep", "--csv", "a.csv"], "--csv and --refine take one population, got 2 files"),
        (["none.sweep"], "no population at none.sweep"),
    ],
)
def test_bad_values_are_one_line_and_nothing_is_written(
    cli_error: Callable[..., str], store: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    before = store.read_bytes()
    assert said in cli_error("analyze", "tiny.sweep", *options, "--min-networks", "2", cwd=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.sweep"]
    assert store.read_bytes() == before


def test_two_outputs_that_are_one_file_are_refused(cli_error: Callable[..., str], store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("a.html")
    assert "two outputs have the same file name" in cli_error(
        "analyze", store, "--html", tmp_path / "a.html", "--csv", tmp_path / "a.csv"
    )


def test_too_few_networks_refine_no_space_and_are_remarked(
    cli: Any, cli_error: Callable[..., str], store: Path, tmp_path: Path
) -> None:
    said = cli_error("analyze", store, "--refine", tmp_path / "b.yaml")
    assert re.search(r"tiny has too few networks, \d+ of 20 that are needed to narrow a space", said)
    assert not (tmp_path / "b.yaml").exists()
    done = cli("analyze", store, "--repeats", "50", "--json")
    assert numbers(done)["populations"][0]["best_ranges"] == []
    assert "too few networks" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"macs\n1\n", "has no column error"),
        (b"error\n101\n", "line 2: the error must be 0 to 100 percent, got '101'"),
        (b"SQLite format 3\0", "a.csv"),
    ],
)
def test_files_that_are_no_population_are_one_line(
    cli_error: Callable[..., str], tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert said in cli_error("analyze", tmp_path / "a.csv")


def test_csv_of_csv_is_refused(cli_error: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("error\n1\n")
    assert "--csv writes the content of a store" in cli_error(
        "analyze", tmp_path / "a.csv", "--csv", tmp_path / "b.csv"
    )
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(("module", "options"), [("scipy", []), ("matplotlib", ["--html", "a.html"])])
def test_a_missing_library_names_the_pip_command(
    cli_error: Callable[..., str], store: Path, tmp_path: Path, module: str, options: list[str]
) -> None:
    said = cli_error("analyze", store, *options, prelude=f"import sys; sys.modules[{module!r}] = None", cwd=tmp_path)
    assert said.endswith(f"this needs {module}, which is not installed: pip install 'regnet-deploy[analysis]'")


def test_it_needs_no_torch(cli_process: Any, store: Path) -> None:
    prelude = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    done = cli_process("analyze", store, *FEW, prelude=prelude)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")


def test_help_shows_an_example_and_loads_nothing_heavy(cli_process: Any) -> None:
    heavy = "{'torch', 'numpy', 'rich', 'scipy', 'matplotlib', 'yaml'}"
    prelude = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules)))"
    done = cli_process("analyze", "--help", prelude=prelude)
    assert done.returncode == 0
    assert "regnet-deploy analyze AnyNetX_A.sweep RegNetX.sweep --html spaces.html" in done.stdout
    assert done.stdout.endswith("set()\n")
