"""``regnet-deploy bench``: measures a running server under load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from regnet_deploy.bundle import open_bundle
from regnet_deploy.cli.options import FiniteFloat, bundle_argument, json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, progress
from regnet_deploy.errors import ProofError, ServerError, UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.load_testing.report import RateReport
    from regnet_deploy.load_testing.served_model import ServedModel

_AUTO = "auto"
#: Share of a core from which on the load generator, which has one thread, is short of time itself.
_BUSY = 0.8


class Rates(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.5 on
    """``auto``, or rates above 0 separated by commas."""

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
            self.fail(f"{value!r} holds a rate that is not above 0 and at most 1000000", param, ctx)
        return rates


@click.command()
@bundle_argument
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the server.")
@click.option(
    "--rate",
    "--rates",
    "rates",
    type=Rates(),
    default=_AUTO,
    show_default=True,
    help="Rates in images/s, measured one after another; auto: 10 to 150 % of the capacity, which it finds.",
)
@click.option(
    "--closed",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Closed loop instead: keep N requests in flight. It gives the capacity, but hides pauses of the server.",
)
@click.option(
    "--duration",
    type=FiniteFloat(0.1, 86400),
    default=10.0,
    show_default=True,
    help="Time measured at each rate, s.",
)
@click.option(
    "--warmup", type=FiniteFloat(0, 3600), default=1.0, show_default=True, help="Time before that, not measured, s."
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="poisson: independent clients. constant: one request every 1 / rate seconds.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the arrival times.")
@click.option(
    "--kind",
    type=click.Choice(["image", "tensor"]),
    help="image: files that the server decodes. tensor: binary tensors.  [default: tensor, with --images image]",
)
@click.option("--images", metavar="DIR", help="Send the images of this folder.  [default: the bundle's golden set]")
@click.option(
    "--name", "model", default="regnet", show_default=True, help="Name of the model on the server; see `serve --name`."
)
@click.option(
    "--connections",
    type=click.IntRange(1, 65536),
    default=256,
    show_default=True,
    help="Largest number of requests in flight.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=FiniteFloat(0.01, 3600),
    default=10.0,
    show_default=True,
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
    compared with the golden set; the exit code is 3 if one is wrong. Every request has one image.

    \b
    Example:
      regnet-deploy bench --url http://127.0.0.1:8000
      regnet-deploy bench --rate 20,50,100 --duration 30 --kind image --plot rates.svg
      regnet-deploy bench --closed 16
    """
    bundle = open_bundle(bundle_path)
    require("httptools", "serve")
    from regnet_deploy.load_testing.generator import LoadRules
    from regnet_deploy.load_testing.load_runs import (
        LoadPlan,
        check_size,
        choose_rates,
        measure_capacity,
        run_closed_loop,
        run_open_loop,
    )
    from regnet_deploy.load_testing.open_files_limit import allow_connections
    from regnet_deploy.load_testing.plot import plot_rates
    from regnet_deploy.load_testing.served_model import open_served_model
    from regnet_deploy.load_testing.target import client_token, parse_target
    from regnet_deploy.plotting import check_plot_path
    from regnet_deploy.profiling.machine import describe_machine

    if closed is not None and rates != _AUTO:
        raise UsageError("--closed sends when an answer comes, --rate when a request is due: give one of them")
    if closed is not None and plot:
        raise UsageError("--plot draws latency by rate, of which --closed has none: leave one out")
    if closed is not None:
        _refuse_beside_closed()
    if plot:
        check_plot_path(plot)
    allow_connections(closed or connections, "--closed" if closed else "--connections")
    target = parse_target(url, client_token(token_file) if token_file else None)
    kind = kind or ("image" if images else "tensor")
    plan = LoadPlan(duration, warmup, arrivals, seed, LoadRules(connections, timeout_s))
    for rate in () if rates == _AUTO else rates:
        check_size(rate, plan)
    site = open_served_model(target, bundle, kind=kind, images=images, model=model)
    reports: list[RateReport] = []
    capacity: RateReport | None = None
    with progress() as display:
        task = display.add_task("bench", total=None, note="capacity")

        def tick(seconds: float) -> None:
            done = len(reports) + min(1.0, seconds / (warmup + duration))
            display.update(task, completed=round(done, 2) if display.tasks[0].total else 0)

        if closed is not None:
            display.update(task, total=1, note=f"{closed} in flight")
            reports.append(run_closed_loop(site, closed, plan, tick))
        else:
            if rates == _AUTO:
                capacity = measure_capacity(site, plan)
                print_message(
                    f"capacity: {capacity.achieved:.1f} images/s, {capacity.concurrency} in flight in a closed loop"
                )
                rates = choose_rates(capacity.achieved)
                for rate in rates:
                    check_size(rate, plan)
            for rate in rates:
                display.update(task, total=len(rates), note=f"{rate:g} images/s")
                reports.append(run_open_loop(site, rate, plan, tick))
                if reports[-1].interrupted or _is_gone(reports[-1]):
                    break
    if as_json:
        facts: dict[str, Any] = {"url": target.url, "model": model, "served": site.served, "kind": kind}
        facts |= {"images": site.source, "duration_s": duration, "warmup_s": warmup, "timeout_s": timeout_s}
        if closed is None:
            facts |= {"arrivals": arrivals, "seed": seed, "connections": connections}
            facts["capacity"] = capacity.to_json() if capacity else None
        facts["machine"] = describe_machine().to_json()  # of the load generator; has the versions
        print_json({"bundle": bundle_path, **facts, "rates": [report.to_json() for report in reports]})
    else:
        _print(site, reports)
    _speak(reports)
    if plot and any(report.latency for report in reports):
        plot_rates(reports, f"{model} at {target.url}, {site.kind}s, {arrivals} arrivals", plot)
        print_message(f"wrote {plot}")
    elif plot:
        print_message(f"{plot} was not drawn: no request was answered rightly")
    if reports[-1].interrupted:
        raise click.Abort  # click itself puts an empty line before the word
    judged = [*reports, *([capacity] if capacity else [])]
    if wrong := sum(report.wrong for report in judged):
        answers = wrong + sum(report.ok for report in judged)
        raise ProofError(
            f"{wrong} of {answers} answers of {target.url} were wrong: those of another image or of another network"
        )
    if _is_gone(reports[-1]):
        raise ServerError(f"the server at {target.url} no longer answers: the load ended here")


def _refuse_beside_closed() -> None:
    """Refuse options that have no effect on a closed loop."""
    context = click.get_current_context()
    for name in ("arrivals", "seed", "connections"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"--{name} has no effect with --closed, which sends a request when another one is answered: "
                "leave one of them out"
            )


def _is_gone(report: RateReport) -> bool:
    """Tell whether no request found a server."""
    return report.requests > 0 and report.failed.get("connection") == report.requests


def _print(site: ServedModel, reports: list[RateReport]) -> None:
    counts = ("offered", "achieved", "ok", "refused", "failed", "dropped", "wrong")
    columns = (*counts, "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "refusal p99", "lag p99")
    title = f"{site.model} at {site.target.url}: {site.source} as {site.kind}s, images/s and ms"
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


def _speak(reports: list[RateReport]) -> None:
    """Say what the figures alone do not."""
    for report in reports:
        where = f"at {report.offered:g} images/s" if report.offered is not None else f"{report.concurrency} in flight"
        if report.interrupted:
            print_message(f"{where}: interrupted after {report.measured_s:.1f} s that count")
        if report.wrong:
            print_message(f"{where}: {report.wrong} answers were wrong: those of another image or of another network")
        if report.problem:
            print_message(
                f"{where}: {report.failed['connection']} connections failed, the last one with: {report.problem}"
            )
        if report.bad and report.latency:
            print_message(
                f"{where}: percentiles (*) are of the {report.ok} requests that were answered rightly; the other "
                f"{report.bad} of {report.requests} are left out"
            )
        if report.lag_shows:
            print_message(f"{where}: {_lag(report)}")


def _lag(report: RateReport) -> str:
    """Say what is known of why requests left late: the generator cannot see who else has the cores."""
    cores = f"the load generator had {report.generator_cores:.2f} cores' time"
    reason = f"{cores}: it was itself the bottleneck, put load from several machines"
    if report.generator_cores < _BUSY:
        reason = f"{cores}, so other work kept it from a core: give it one that nothing else keeps busy"
    return f"requests left up to {report.lag_p99_ms:.2f} ms late (p99), which counts as latency; {reason}"
