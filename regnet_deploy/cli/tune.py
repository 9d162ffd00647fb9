"""``regnet-deploy tune``: the settings of the server with the highest rate under a limit of latency."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import Manifest, bundle_as_argument, ensure_writable, open_bundle, update_bundle
from regnet_deploy.cli.options import (
    FiniteFloat,
    Whole,
    arrival_seed_option,
    bundle_argument,
    default_option,
    device_option,
    images_option,
    json_option,
    runtime_option,
)
from regnet_deploy.cli.output import (
    print_json,
    print_message,
    print_table,
    terminal_progress,
)
from regnet_deploy.errors import UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.bundle.measurements import TuningRow
    from regnet_deploy.load_testing.bundle_tuning import TuningResult


@click.command()
@bundle_argument
@default_option(
    "--p99-ms",
    "limit_ms",
    type=FiniteFloat(0.01, 5000),
    default=20.0,
    help="Limit of the 99th percentile of latency, ms.",
)
@click.option("--variant", metavar="NAME", help="Exported variant to tune.  [default: all that are proved]")
@runtime_option("Runtime to tune; auto: all that are installed.")
@device_option("Device to run on; see `serve --device`.")
@click.option(
    "--max-executors",
    type=Whole(1, 256),
    help="Largest number of inferences at the same time.  [default: the number of cores]",
)
@click.option(
    "--kind",
    type=click.Choice(["image", "tensor"]),
    help="What the clients send: image files or tensors.  [default: tensor, with --images image]",
)
@images_option
@default_option(
    "--duration",
    type=FiniteFloat(0.5, 3600),
    default=4.0,
    help="Time of each trial, at least ten times the limit, s; low rates take up to three times as long.",
)
@arrival_seed_option
@click.option(
    "--accept-doubtful",
    is_flag=True,
    help="Write the result also where other programs on the machine may have decided it.",
)
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
    accept_doubtful: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find the settings of `serve` with the highest rate at a limit of the 99th percentile of latency.

    The command starts a server for each setting, one after another, and measures it under open-loop load, which takes
    minutes. It writes the best settings into the bundle, and `serve` uses them on this machine. The load generator uses
    some of the cores, as clients on the same machine do. A result that other programs may have decided - a setting had
    a clearly higher rate before, or the machine was busy and two variants have near rates - is shown and not written.

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
    from regnet_deploy.load_testing import bundle_tuning
    from regnet_deploy.profiling.machine import environment

    options = bundle_tuning.TuningOptions(
        limit_ms=limit_ms,
        variant=variant,
        runtime=runtime,
        device=device,
        max_executors=max_executors,
        kind=kind,
        images=images,
        duration=duration,
        seed=seed,
    )
    with _ended_by_signals(), terminal_progress() as progress:
        try:
            result = bundle_tuning.tune_bundle(bundle, options, progress)
        except KeyboardInterrupt:
            progress.message(f"nothing was written: {bundle_path} is as it was")
            raise click.Abort from None
    best, serving = result.best, result.serving
    written = not dry_run and (accept_doubtful or not result.doubts)
    if written:
        update_bundle(bundle_path, Manifest(serving=serving, environment=environment("tune")), expect=bundle)
    if as_json:
        print_json({"bundle": bundle_path, "written": written, "doubts": list(result.doubts), **serving.to_json()})
    else:
        _print(result)
    used = f"; `regnet-deploy serve{bundle_as_argument(bundle_path)}` uses these settings on this machine"
    end = used if written else " (dry run: nothing was written)" if dry_run else " (nothing was written)"
    print_message(f"{best.setting}: {best.rate:.1f} images/s with a p99 of {best.p99_ms:.1f} ms{end}")
    if result.late_loads:
        print_message(
            f"in {result.late_loads} loads the load generator sent requests late, which counts as latency: on an idle "
            "machine, or with clients on another one, the server may sustain a higher rate"
        )

    if result.doubts and not accept_doubtful and not dry_run:
        raise UsageError(
            f"the result is doubtful and was not written: {'; '.join(result.doubts)}: run this again when the machine "
            "is idle, with a longer --duration, or give --accept-doubtful"
        )


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Handle SIGTERM, and SIGHUP of a closed terminal, as Ctrl-C, so that the servers end with this process."""

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


def _print(result: TuningResult) -> None:
    columns = ("variant", "runtime", "note", "executors x threads", "batch", "delay ms", "images/s", "p99 ms", "trials")
    listed = sorted(result.rows, key=lambda row: (row.setting != result.best.setting, -row.rate))
    title = f"Highest rate with p99 <= {result.options.limit_ms:g} ms"
    print_table(title, columns, [_row(row) for row in listed], left=3)


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
