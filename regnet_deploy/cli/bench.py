"""``regnet-deploy bench``: measures a running server under load."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    Whole,
    arrival_seed_option,
    bundle_argument,
    default_option,
    images_option,
    json_option,
)
from regnet_deploy.cli.output import print_json, print_message, print_table, terminal_progress
from regnet_deploy.errors import ProofError, ServerError, UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.load_testing.load_runs import LoadPlan
    from regnet_deploy.load_testing.report import RateReport
    from regnet_deploy.load_testing.served_model import ServedModel

_AUTO = "auto"
#: Share of a core above which the load generator, which has one thread, is itself a bottleneck.
_BUSY = 0.8


class Rates(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.5 on
    """``auto``, or positive rates separated by commas."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse ``20,50,100``."""
        if value == _AUTO or isinstance(value, tuple):
            return value
        try:
            rates = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a list of rates such as 20,50,100", param, ctx)
        if not all(math.isfinite(rate) and 0 < rate <= 1e6 for rate in rates):
            self.fail(f"{value!r} has a rate that is not above 0 and at most 1000000", param, ctx)
        return rates


@click.command()
@bundle_argument
@default_option("--url", default="http://127.0.0.1:8000", help="Address of the server.")
@default_option(
    "--rate",
    "--rates",
    "rates",
    type=Rates(),
    default=_AUTO,
    help="Rates in images/s, measured one after another; auto: 10 to 150 % of the capacity, which it finds.",
)
@click.option(
    "--closed",
    type=Whole(1, 4096),
    metavar="N",
    help="Closed loop instead: keep N requests in flight. It gives the capacity, but hides pauses of the server.",
)
@default_option("--duration", type=FiniteFloat(0.1, 86400), default=10.0, help="Time measured at each rate, s.")
@default_option("--warmup", type=FiniteFloat(0, 3600), default=1.0, help="Time before that, not measured, s.")
@default_option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    help="poisson: independent clients. constant: one request every 1 / rate seconds.",
)
@arrival_seed_option
@click.option(
    "--kind",
    type=click.Choice(["image", "tensor"]),
    help="image: files that the server decodes. tensor: binary tensors.  [default: tensor, with --images image]",
)
@images_option
@default_option("--name", "model", default="regnet", help="Name of the model on the server; see `serve --name`.")
@default_option("--connections", type=Whole(1, 65536), default=256, help="Largest number of requests in flight.")
@default_option(
    "--timeout",
    "timeout_s",
    type=FiniteFloat(0.01, 3600),
    default=10.0,
    help="Time from the scheduled time of a request to its answer, at most, s.",
)
@click.option("--token-file", metavar="FILE", help="File with the bearer token of the server.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Plot latency by rate: .png, .svg or .pdf.")
@json_option
def command(
    bundle_path: str,
    url: str,
    rates: Any,
    closed: int | None,
    duration: float,
    warmup: float,
    arrivals: Any,
    seed: int,
    kind: Any,
    images: str | None,
    model: str,
    connections: int,
    timeout_s: float,
    token_file: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Measure the latency of a running server at several rates; BUNDLE is what it serves.

    The load is an open loop: requests are sent at scheduled times, whether or not earlier ones are answered. Latency is
    measured from the scheduled time. So a pause of the server counts for every request that it delays. Answers are
    compared with the golden set; the exit code is 3 if one is wrong, and 2 if a request failed: by a connection, a
    timeout, or a status other than 503. Every request has one image.

    \b
    Example:
      regnet-deploy bench --url http://127.0.0.1:8000
      regnet-deploy bench --rate 20,50,100 --duration 30 --plot rates.svg
      regnet-deploy bench --closed 16
    """
    bundle = open_bundle(bundle_path)
    require("httptools", "serve")
    from regnet_deploy.load_testing.generator import LoadLimits
    from regnet_deploy.load_testing.http_client import raise_open_files_limit
    from regnet_deploy.load_testing.load_runs import LoadPlan
    from regnet_deploy.load_testing.plot import plot_rates
    from regnet_deploy.load_testing.served_model import open_served_model
    from regnet_deploy.load_testing.target import client_token, parse_target
    from regnet_deploy.plotting import check_plot_path
    from regnet_deploy.profiling.machine import describe_machine

    if closed is not None:
        _check_closed_options(rates, plot)
    if plot:
        check_plot_path(plot)
    raise_open_files_limit(closed or connections, "--closed" if closed else "--connections")
    target = parse_target(url, client_token(token_file) if token_file else None)
    kind = kind or ("image" if images else "tensor")
    plan = LoadPlan(duration, warmup, arrivals, seed, LoadLimits(connections, timeout_s))
    for rate in () if rates == _AUTO else rates:
        plan.check_rate(rate)
    served = open_served_model(target, bundle, kind=kind, images=images, model=model)
    capacity, reports = _run(served, plan, closed, None if rates == _AUTO else rates)
    if as_json:
        facts: dict[str, Any] = {"url": target.url, "model": model, "served": served.properties, "kind": kind}
        facts |= {"images": served.source, "duration_s": duration, "warmup_s": warmup, "timeout_s": timeout_s}
        if closed is None:
            facts |= {"arrivals": arrivals, "seed": seed, "connections": connections}
            facts["capacity"] = capacity.to_json() if capacity else None
        facts["machine"] = describe_machine().to_json()  # of the load generator, with its versions
        print_json({"bundle": bundle_path, **facts, "rates": [report.to_json() for report in reports]})
    else:
        _print(served, reports)
    _print_remarks(reports)
    if plot and len(reports) < 2:
        print_message(f"{plot} was not written: a figure of latency by rate needs two rates or more")
    elif plot and any(report.latency for report in reports):
        plot_rates(reports, f"{model} at {target.url}, {kind}s, {arrivals} arrivals", plot)
        print_message(f"wrote {plot}")
    elif plot:
        print_message(f"{plot} was not written: there was no correct answer")
    if reports[-1].interrupted:
        raise click.Abort
    checked = [*reports, *([capacity] if capacity else [])]
    if wrong := sum(report.wrong for report in checked):
        answers = wrong + sum(report.ok for report in checked)
        raise ProofError(
            f"{wrong} of {answers} answers of {target.url} were wrong: those of another image or of another network"
        )
    if reports[-1].is_server_gone:
        raise ServerError(f"the server at {target.url} no longer answers: the load ended early")
    failure = _failure(checked)
    if failure:
        raise ServerError(f"{failure}, at {target.url}")


def _failure(reports: Sequence[RateReport]) -> str | None:
    """Return in words which requests failed, or that none had a correct answer; None where all is well.

    Refusals with status 503, and requests that the load generator did not send, are how a server above its capacity is
    measured.
    """
    kinds = Counter[str]()
    for report in reports:
        kinds.update(report.failed)
    requests = sum(report.requests for report in reports)
    if kinds:
        words = ", ".join(f"{count:,} {name}" for name, count in sorted(kinds.items()))
        problem = next((f"; the last connection: {report.problem}" for report in reports if report.problem), "")
        return f"{sum(kinds.values()):,} of {requests:,} requests failed ({words}{problem})"
    if requests and not any(report.ok for report in reports):
        return f"none of {requests:,} requests had a correct answer"
    return None


def _run(
    served: ServedModel, plan: LoadPlan, closed: int | None, rates: Sequence[float] | None
) -> tuple[RateReport | None, list[RateReport]]:
    """Return the capacity, where it was measured, and the reports of the loads."""
    from regnet_deploy.load_testing.load_runs import choose_rates, measure_capacity, run_closed_loop, run_rates

    capacity: RateReport | None = None
    with terminal_progress() as progress:
        if closed is not None:
            progress.step(f"{closed} in flight", plan.warmup + plan.duration)
            return None, [run_closed_loop(served, closed, plan, progress)]
        if rates is None:
            progress.step("capacity")
            capacity = measure_capacity(served, plan, progress)
            progress.message(
                f"capacity: {capacity.achieved:.1f} images/s, {capacity.concurrency} in flight in a closed loop"
            )
            rates = choose_rates(capacity.achieved)
            for rate in rates:
                plan.check_rate(rate)
        return capacity, run_rates(served, rates, plan, progress)


def _check_closed_options(rates: Any, plot: str | None) -> None:
    """Reject options that a closed loop does not use."""
    if rates != _AUTO:
        raise UsageError("--closed sends a request after an answer, --rate at scheduled times: give one of them")
    if plot:
        raise UsageError("--plot shows latency by rate, and --closed has no rate: leave one out")
    context = click.get_current_context()
    for name in ("arrivals", "seed", "connections"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"--{name} has no effect with --closed, which sends a request when another one is answered: "
                "leave one of them out"
            )


def _print(served: ServedModel, reports: list[RateReport]) -> None:
    counts = ("offered", "achieved", "ok", "refused", "failed", "dropped", "wrong")
    columns = (*counts, "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "refusal p99", "lag p99")
    title = f"{served.model} at {served.target.url}: {served.source} as {served.kind}s, images/s and ms"
    print_table(title, columns, [_row(report) for report in reports], left=0)


def _row(report: RateReport) -> tuple[str, ...]:
    offered = f"{report.offered:g}" if report.offered is not None else f"{report.concurrency} in flight"
    failed = ", ".join(f"{count} {name}" for name, count in report.failed.items()) or "0"
    refusals = f"{report.refusals.p99_ms:.2f}" if report.refusals else ""
    return (
        offered,
        f"{report.achieved:.1f}",
        str(report.ok),
        str(report.refused),
        failed,
        str(report.dropped),
        str(report.wrong),
        *_figures(report),
        refusals,
        f"{report.lag_p99_ms:.2f}",
    )


def _figures(report: RateReport) -> list[str]:
    latency, names = report.latency, ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
    mark = "*" if report.bad else ""
    return [f"{getattr(latency, name):.2f}{mark}" if latency else "" for name in names]


def _print_remarks(reports: list[RateReport]) -> None:
    """Print what the figures alone do not show."""
    for report in reports:
        where = f"at {report.offered:g} images/s" if report.offered is not None else f"{report.concurrency} in flight"
        if report.interrupted:
            print_message(f"{where}: interrupted after {report.measured_s:.1f} measured seconds")
        if report.wrong:
            print_message(f"{where}: {report.wrong} answers were wrong: those of another image or of another network")
        if report.problem:
            print_message(
                f"{where}: {report.failed['connection']} connections failed, the last one with: {report.problem}"
            )
        if report.bad and report.latency:
            print_message(
                f"{where}: percentiles (*) are of the {report.ok} requests with a correct answer; the other "
                f"{report.bad} of {report.requests} are left out"
            )
        if report.lag_shows:
            print_message(f"{where}: {_lag(report)}")


def _lag(report: RateReport) -> str:
    """Return why requests were sent late, as far as the load generator can tell."""
    cores = f"the load generator used {report.generator_cores:.2f} cores"
    reason = f"{cores}: it was itself the bottleneck, generate the load on several machines"
    if report.generator_cores < _BUSY:
        reason = f"{cores}: other work kept it from running, give it an idle core"
    return f"requests were sent up to {report.lag_p99_ms:.2f} ms late (p99), which counts as latency; {reason}"
