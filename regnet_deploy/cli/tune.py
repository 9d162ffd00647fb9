"""``regnet-deploy tune``: the settings of the server that bear most load under a limit of latency."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import ensure_writable, open_bundle, update_bundle
from regnet_deploy.cli.options import FiniteFloat, bundle_argument, json_option
from regnet_deploy.cli.output import (
    TerminalProgress,
    bundle_argument_text,
    print_json,
    print_message,
    print_table,
    progress,
)
from regnet_deploy.errors import require

if TYPE_CHECKING:
    from regnet_deploy.load_testing.tuning import TuningRow

#: A trial takes at least as many times the limit of latency.
_LIMITS = 10


@click.command()
@bundle_argument
@click.option(
    "--p99-ms",
    "limit_ms",
    type=FiniteFloat(0.01, 5000),  # each trial takes ten times as long, and a request has failed after 10 s
    default=20.0,
    show_default=True,
    help="Limit of the 99th percentile of latency, ms.",
)
@click.option("--variant", metavar="NAME", help="Exported variant to tune.  [default: all that are proved]")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "openvino"]),
    default="auto",
    show_default=True,
    help="Runtime to tune; auto: all that are installed.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Device to run on; see `serve --device`.",
)
@click.option(
    "--max-executors",
    type=click.IntRange(1),
    help="Largest number of inferences at the same time.  [default: the number of cores]",
)
@click.option(
    "--kind",
    type=click.Choice(["image", "tensor"]),
    help="What the clients send: image files or tensors.  [default: tensor, with --images image]",
)
@click.option("--images", metavar="DIR", help="Send the images of this folder.  [default: the bundle's golden set]")
@click.option(
    "--duration",
    type=FiniteFloat(0.5, 3600),
    default=4.0,
    show_default=True,
    help="Time of each trial, at least ten times the limit, s; low rates take up to three times as long.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the arrival times.")
@click.option("--dry-run", is_flag=True, help="Measure, but write nothing into the bundle.")
@json_option
def command(
    bundle_path: str,
    limit_ms: float,
    variant: str | None,
    runtime: Any,
    device: Any,
    max_executors: int | None,
    kind: Any,
    images: str | None,
    duration: float,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the settings of `serve` with the highest rate at a limit of the 99th percentile of latency.

    The command starts a server for each setting, one after another, and measures it under open-loop load, which takes
    minutes. It writes the best settings into the bundle, and `serve` uses them on this machine. The load generator uses
    some of the cores, as clients on the same machine do.

    \b
    Example:
      regnet-deploy tune --p99-ms 20
      regnet-deploy tune my-bundle --p99-ms 50 --images photos --max-executors 2
    """
    bundle = open_bundle(bundle_path)
    if not dry_run:
        ensure_writable(bundle)
    for module in ("starlette", "uvicorn", "httptools", "safetensors"):
        require(module, "serve")
    from regnet_deploy.cpu import available_cores
    from regnet_deploy.load_testing.load_runs import LoadPlan
    from regnet_deploy.load_testing.open_files_limit import allow_connections
    from regnet_deploy.load_testing.setting_trial import setting_trial
    from regnet_deploy.load_testing.settings import ServerSetting, executor_layouts, runnable_pairs
    from regnet_deploy.load_testing.tuning import TuningOptions, tune
    from regnet_deploy.profiling.machine import environment
    from regnet_deploy.runtimes.machine_summary import machine_summary
    from regnet_deploy.runtimes.tuned_settings import PART

    pairs, refused = runnable_pairs(bundle, variant, runtime, device)
    choices = TuningOptions(pairs, executor_layouts(available_cores(), max_executors))
    kind = kind or ("image" if images else "tensor")
    # In less time than this a queue that grows without end would still keep to the limit.
    seconds = max(duration, _LIMITS * limit_ms / 1000)
    plan = LoadPlan(seconds, warmup=min(1.0, seconds / 4), seed=seed)
    allow_connections(plan.rules.connections)
    late: list[None] = []

    def options(setting: ServerSetting) -> list[str]:
        return [*setting.options(), "--device", device]

    start = setting_trial(bundle, plan, kind=kind, images=images, options=options, late=lambda: late.append(None))
    rows: list[TuningRow] = []
    with _ended_by_signals(), progress() as display:
        reporter = TerminalProgress(display)
        for what, reason in refused.items():
            reporter.say(f"not tried: {what}: {reason}")

        def tell(what: str, row: TuningRow | None) -> None:
            if row is not None:
                rows.append(row)
                reporter.say(f"{row.setting}: {_outcome(row)}")
            # How many there are is known when the last is done: what was better decides what is tried next.
            least = len(pairs) + len(choices.layouts) + 3
            reporter.advance("settings tried", len(rows), max(least, len(rows) + 1), what)

        try:
            best, rows = tune(start, choices, limit_ms, tell)
        except KeyboardInterrupt:
            reporter.say(f"{len(rows)} settings were measured and nothing was written: {bundle_path} is as it was")
            raise click.Abort from None  # click itself puts an empty line before the word
    part = {
        "machine": machine_summary(),
        "p99_ms": limit_ms,
        "rate": best.rate,
        "kind": kind,
        "device": device,
        "settings": best.setting.to_json(),
        "rows": [row.to_json() for row in rows],
    }
    if not dry_run:
        update_bundle(bundle_path, {PART: part, "environment": environment("tune")}, expect=bundle)
    if as_json:
        print_json({"bundle": bundle_path, "written": not dry_run, **part})
    else:
        _print(rows, best, limit_ms)
    print_message(
        f"{best.setting}: {best.rate:.1f} images/s with a p99 of {best.p99_ms:.1f} ms"
        + (
            " (dry run: nothing was written)"
            if dry_run
            else f"; `regnet-deploy serve{bundle_argument_text(bundle_path)}` uses it on this machine"
        )
    )
    if late:
        print_message(
            f"in {len(late)} loads requests left late, which counts as latency: on a quiet machine, or with clients "
            "elsewhere, the server may bear more"
        )


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Take SIGTERM, and SIGHUP of a terminal that is closed, for Ctrl-C, so that servers end with this process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(row: TuningRow) -> str:
    if not row.rate:
        return row.note + (f" (p99 {row.p99_ms:.1f} ms)" if row.p99_ms is not None else "")
    return f"{row.rate:.1f} images/s, p99 {row.p99_ms:.1f} ms"


def _print(rows: list[TuningRow], best: TuningRow, limit_ms: float) -> None:
    columns = ("variant", "runtime", "note", "executors x threads", "batch", "delay ms", "images/s", "p99 ms", "trials")
    listed = sorted(rows, key=lambda row: (row.setting != best.setting, -row.rate))
    print_table(f"Highest rate with p99 <= {limit_ms:g} ms", columns, [_row(row) for row in listed], left=3)


def _row(row: TuningRow) -> tuple[str, ...]:
    setting = row.setting
    return (
        setting.variant,
        setting.runtime,
        row.note,
        f"{setting.executors} x {setting.threads}",
        str(setting.batch),
        f"{setting.max_delay_ms:g}",
        f"{row.rate:.1f}" if row.rate else "",
        f"{row.p99_ms:.2f}" if row.p99_ms is not None else "",
        str(row.trials),
    )
