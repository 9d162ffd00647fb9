"""The picture of rates."""

from pathlib import Path
from typing import Any

from regnet_deploy.load_testing.plot import plot_rates
from regnet_deploy.load_testing.report import Latencies, RateReport


def test_rates_are_drawn_though_one_had_no_answer(tmp_path: Path):
    figures = Latencies(10, 1.0, 2.0, 3.0, 4.0, 5.0)
    rest = {"concurrency": None, "measured_s": 1.0, "requests": 10, "ok": 10, "failed": {}, "dropped": 0, "wrong": 0}
    rest |= {"lag_p99_ms": 0.1, "generator_cores": 0.1, "refused": 0}
    reports = [
        RateReport(offered=20.0, achieved=20.0, latency=figures, refusals=None, **rest),
        RateReport(offered=10.0, achieved=10.0, latency=figures, refusals=figures, **rest),
        RateReport(offered=40.0, achieved=0.0, latency=None, refusals=figures, **rest),
    ]
    path = tmp_path / "rates.svg"
    plot_rates(reports, "a title", path)
    assert "<svg" in path.read_text()


def test_percentiles_that_leave_failures_out_are_marked(tmp_path: Path):
    figures = Latencies(8, 1.0, 2.0, 3.0, 4.0, 5.0)
    rest: dict[str, Any] = {"concurrency": None, "measured_s": 1.0, "requests": 10, "dropped": 0, "wrong": 0}
    rest |= {"lag_p99_ms": 0.1, "generator_cores": 0.1, "refused": 0, "latency": figures, "refusals": None}
    for ok, marked in ((8, True), (10, False)):
        path = tmp_path / f"{ok}.svg"
        plot_rates([RateReport(offered=20.0, achieved=ok, ok=ok, failed={"timeout": 10 - ok}, **rest)], "", path)
        assert ("without requests that had no correct answer" in path.read_text()) == marked
