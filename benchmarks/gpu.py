"""Measures on an NVIDIA GPU which precision and which group width is fast in which runtime.

It runs the GPU tests, then networks in every precision and at every batch size in all installed runtimes: torch eager
and compiled (channels last, max-autotune), ONNX Runtime's CUDA provider, TensorRT or TensorRT-RTX, and timm's model of
the same name. The runtimes take turns, and medians are reported. Every measurement is written to the file immediately,
and another run continues from there. Nothing is downloaded. benchmarks/gpu.sh runs this program.

    benchmarks/gpu.sh --minutes 25
    python benchmarks/gpu.py --precisions fp16,int8 --ways torch-eager,tensorrt --networks X-1.6GF-g16,RegNetY-4.0GF
    python benchmarks/gpu.py --cpu --output try.json      tests the program without a GPU
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Subject, grouped_networks, published, tiny_networks
from gpu_results import Results, file_name, open_results, summary
from gpu_ways import PRECISIONS, WAYS, Opened, Prepared, Setting, Way, forget_compiled, here, set_torch

from regnet_deploy.cpu import available_cores
from regnet_deploy.errors import did_you_mean
from regnet_deploy.profiling.latency import Latency, Runner, measure_latency

ROOT = Path(__file__).resolve().parents[1]
#: Exit code that makes benchmarks/gpu.sh start another process.
AGAIN = 75
#: Start of the first process, seconds since 1970; benchmarks/gpu.sh sets it once for all processes.
BEGAN = "REGNET_GPU_BEGAN"
#: Number of networks whose weights and files are cached.
_OPENED = 8


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # benchmarks/gpu.sh knows --retry by its whole name
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="start no measurement after M minutes")
    parser.add_argument("--batches", default=None, metavar="N,N", help="batch sizes; default 64,1,8,256")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="P,P")
    parser.add_argument("--ways", default=",".join(way.name for way in WAYS), metavar="W,W")
    parser.add_argument(
        "--networks", metavar="N,N", help="default: networks selected by group width, then the published ones"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="measured for each way and batch size, without warm-up"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: profiles/gpu_<name>.json")
    parser.add_argument("--retry", action="store_true", help="repeat measurements that failed before")
    parser.add_argument("--tests", default="tests", metavar="PATH", help="folder of the GPU tests; none skips them")
    parser.add_argument("--cpu", action="store_true", help="tiny networks on the CPU, to test the program")
    options = parser.parse_args(arguments)
    if options.cpu and options.output is None:
        parser.error("--cpu is for trying the program out: give --output FILE, so that nothing lands in profiles/")
    try:
        options.batches = [
            int(part) for part in (options.batches or ("2,1" if options.cpu else "64,1,8,256")).split(",")
        ]
    except ValueError:
        parser.error(f"--batches {options.batches}: numbers of images such as 1,64 are wanted")
    if min(options.batches) < 1 or not options.seconds > 0 or (options.minutes is not None and not options.minutes > 0):
        parser.error("batches, seconds and minutes must be positive")
    options.precisions = _named(parser, "precisions", options.precisions, PRECISIONS)
    options.ways = _named(parser, "ways", options.ways, [way.name for way in WAYS])
    subjects = {one.name: one for one in (tiny_networks() if options.cpu else [*grouped_networks(), *published()])}
    names = _named(parser, "networks", options.networks, list(subjects)) if options.networks else list(subjects)
    options.subjects = [subjects[name] for name in names]
    return options


def _named(parser: argparse.ArgumentParser, option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            parser.error(f"--{option}: no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return names


def run_tests(where: str) -> dict[str, Any]:
    """Run the GPU tests in another process and return their results, or the reason why they cannot run.

    The machine need not have all that the project's tests do: tests that cannot be collected do not keep the others
    from running, and neither do a warning of another version or an option of a plug-in that is not there.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"exit_code": None, "summary": "not run: pytest is not installed", "told": []}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    # Without pytest-timeout, its option causes a warning.
    command += ["--continue-on-collection-errors", "-o", "filterwarnings=", "-W", "default", where]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "told": told}


def units(options: argparse.Namespace, ways: list[Way]) -> Iterator[tuple[Subject, str, int, list[Way]]]:
    """Yield units to measure: a network, a precision, a batch size and the ways that take turns.

    What is quick and answers the question about group widths comes first, at the first batch size in every precision;
    what compiles for minutes comes last.
    """
    for slow in (False, True):
        for kind in ("tiny", "groups", "published"):
            subjects = [subject for subject in options.subjects if subject.kind == kind]
            for batch in options.batches:
                for precision in options.precisions:
                    able = [way for way in ways if way.slow == slow and precision in way.precisions]
                    for subject in subjects:
                        fit = [way for way in able if way.side == "ours" or subject.timm]
                        if fit:
                            yield subject, precision, batch, fit


def measure_unit(
    setting: Setting, opened: Opened, precision: str, batch: int, ways: list[Way], seconds: float, results: Results
) -> None:
    """Add a row for each way, measured or failed, but none for ways that another process has to repeat.

    The ways take turns. Where that fails each is measured alone, for which of them it was cannot be told.
    """
    about = {**opened.subject.to_json(), "precision": precision, "batch": batch}
    if len(ways) > 1 and results.is_apart(about):
        for way in ways:
            measure_unit(setting, opened, precision, batch, [way], seconds, results)
            if not _usable(setting):
                return
        return
    set_torch(precision == "tf32")
    if any(way.slow for way in ways):
        forget_compiled()
    ready: list[tuple[Way, Prepared]] = []
    for way in ways:
        row = _row(about, way)
        results.begin([row])
        _give_back(setting)
        try:
            prepared = way.prepare(setting, opened, precision, batch)
            prepared.timed()
        except Exception as error:  # whatever a runtime raises: it is a result, in the file with its reason
            results.add([{**row, "failed": _line(error)}])
            if not _usable(setting):
                return
            continue
        ready.append((way, prepared))
    if not ready:
        return
    results.begin([_row(about, way) for way, _ in ready])
    try:
        measured = measure_latency(
            [_contender(setting, way, precision, one.timed) for way, one in ready], [batch], seconds
        )
        failed = None
    except Exception as error:
        failed = _line(error)
    if failed is None:
        rows = [{**_row(about, way), **one.facts} for way, one in ready]
        results.add({**row, **_figures(latency)} for row, latency in zip(rows, measured, strict=True))
    elif len(ready) == 1:
        results.add([{**_row(about, ready[0][0]), "failed": f"while it was measured: {failed}"}])
    else:
        again = [way for way, _ in ready]
        ready.clear()  # with the memory that they have
        results.set_apart(about)
        if _usable(setting):
            measure_unit(setting, opened, precision, batch, again, seconds, results)


def _row(about: dict[str, Any], way: Way) -> dict[str, Any]:
    return {**about, "way": way.name, "side": way.side, "at": _now()}


def _figures(latency: Latency) -> dict[str, Any]:
    figures: dict[str, Any] = {name: round(getattr(latency, name), 5) for name in ("p50_ms", "p95_ms", "p99_ms")}
    figures["images_per_second"] = round(latency.batch / latency.p50_ms * 1000, 3)
    figures["repetitions"] = latency.repetitions
    return figures


def _give_back(setting: Setting) -> None:
    """Free the memory that PyTorch caches, so that the next way can use it."""
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()


def _contender(setting: Setting, way: Way, precision: str, timed: Any) -> Runner:
    return Runner(way.name, way.side, setting.device, precision, "channels_first", setting.threads, lambda batch: timed)


def _usable(setting: Setting) -> bool:
    """Return whether CUDA calls still succeed: after some errors none does in this process."""
    try:
        if setting.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options, began = options_of(arguments), float(os.environ.get(BEGAN) or time.time())
    setting = here(options.cpu, available_cores())
    path = options.output or ROOT / "profiles" / file_name(torch.cuda.get_device_name())
    results = open_results(path, setting, options.seconds, retry=options.retry)
    ended = results.bury()
    if ended:
        _say(f"{ended}: it is left out, or measured alone")
    ways = []
    for way in (way for way in WAYS if way.name in options.ways):
        reason = way.why_not(setting)
        _say(f"{way.name}: {reason or 'will be measured'}")
        if reason is None:
            ways.append(way)
    results.note("left_out", {way.name: way.why_not(setting) or "not asked for" for way in WAYS if way not in ways})
    status = 0
    if options.tests != "none":
        tests = run_tests(options.tests)
        _say(f"GPU tests: {tests['summary']}")
        results.note("tests", tests)
        status = int(tests["exit_code"] not in (None, 0, 5))  # 5: there are none
    status = _measure_all(options, setting, ways, results, began) or status
    print(summary(results.rows))
    _say(f"wrote {path}")
    return status


def _measure_all(options: argparse.Namespace, setting: Setting, ways: list[Way], results: Results, began: float) -> int:
    """Measure everything that is not in the file yet, and return the exit code."""
    opened = functools.lru_cache(maxsize=_OPENED)(Opened)
    for subject, precision, batch, able in units(options, ways):
        wanted = [way for way in able if not results.has(subject.name, way.name, precision, batch)]
        if not wanted:
            continue
        if options.minutes is not None and time.time() - began > options.minutes * 60:
            _say(f"{options.minutes:g} minutes are over: run it again and it goes on")
            return 0
        _say(f"{subject.name}, {precision}, batch {batch}: {', '.join(way.name for way in wanted)}")
        measure_unit(setting, opened(subject), precision, batch, wanted, options.seconds, results)
        if not _usable(setting):
            _say("the GPU's context is unusable after that: another process has to go on")
            return AGAIN
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu.py: interrupted; what was measured is in the file, and another run goes on from there")
