"""Measure an NVIDIA GPU: which precision and which group width it computes fast, by which runtime.

Runs the GPU tests, then networks in every precision at every batch size by whatever is installed: torch eager and
compiled (channels last, max-autotune), ONNX Runtime's CUDA provider, TensorRT or TensorRT-RTX, and timm's model of the
same name. The ways take turns; medians are kept. Every measurement is in the file as soon as it is made, and another
run goes on from there. Downloads nothing. benchmarks/gpu.sh runs it.

    benchmarks/gpu.sh --minutes 25
    python benchmarks/gpu.py --precisions fp16,int8 --ways torch-eager,tensorrt --networks X-1.6GF-g16,RegNetY-4.0GF
    python benchmarks/gpu.py --cpu --output try.json      tries the program out without a GPU
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Subject, grouped_networks, published, tiny_networks
from gpu_results import Results, file_name, open_results, summary
from gpu_ways import PRECISIONS, WAYS, Opened, Setting, Way, forget_compiled, here, set_tf32

from regnet_deploy.cores import available_cores
from regnet_deploy.errors import did_you_mean
from regnet_deploy.profiling.latency import Contender, measure

ROOT = Path(__file__).resolve().parents[1]
#: The exit code that asks benchmarks/gpu.sh for another process.
AGAIN = 75


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, metavar="M", help="begin nothing after that long")
    parser.add_argument("--batches", default=None, metavar="N,N", help="images an inference; default 64,1,8,256")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), metavar="P,P")
    parser.add_argument("--ways", default=",".join(way.name for way in WAYS), metavar="W,W")
    parser.add_argument("--networks", metavar="N,N", help="default: selected by group width, then the published")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="measured for each way and batch, warm-up not counted"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: profiles/gpu_<name>.json")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    parser.add_argument(
        "--tests", default="tests", metavar="PATH", help="where the GPU tests are; none leaves them out"
    )
    parser.add_argument("--cpu", action="store_true", help="tiny networks on the CPU, to try the program out")
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
    """Run the GPU tests in a process of their own and return what came of them."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", where]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "told": told}


def units(options: argparse.Namespace, ways: list[Way]) -> Iterator[tuple[Subject, str, int, list[Way]]]:
    """Yield what is measured in turns: a network, a precision, a batch size and ways.

    What is quick and answers the question about group widths comes first, what compiles for minutes last.
    """
    for slow in (False, True):
        for kind in ("tiny", "groups", "published"):
            subjects = [subject for subject in options.subjects if subject.kind == kind]
            for precision in options.precisions:
                able = [way for way in ways if way.slow == slow and precision in way.precisions]
                for subject in subjects:
                    for batch in options.batches:
                        fit = [way for way in able if way.side == "ours" or subject.timm]
                        if fit:
                            yield subject, precision, batch, fit


def measure_unit(
    setting: Setting, opened: Opened, precision: str, batch: int, ways: list[Way], seconds: float
) -> list[dict[str, Any]]:
    """Return a row for each way, measured or failed."""
    set_tf32(precision == "tf32")
    if any(way.slow for way in ways):
        forget_compiled()
    about = {**opened.subject.to_json(), "precision": precision, "batch": batch}
    rows, contenders = [], []
    for way in ways:
        try:
            timed = way.prepare(setting, opened, precision, batch)
            timed()
        except Exception as error:  # whatever a runtime raises: it is a result, in the file with its reason
            rows.append({**about, "way": way.name, "side": way.side, "at": _now(), "failed": _line(error)})
            continue
        contenders.append((way, _contender(setting, way, precision, timed)))
    try:
        measured = measure([contender for _, contender in contenders], [batch], seconds)
    except Exception as error:  # one of them, once all had room to run: which it was cannot be told
        failed = {"failed": f"while the ways took turns: {_line(error)}"}
        return rows + [{**about, "way": way.name, "side": way.side, "at": _now(), **failed} for way, _ in contenders]
    for (way, _), row in zip(contenders, measured, strict=True):
        figures = {name: round(getattr(row, name), 5) for name in ("p50_ms", "p95_ms", "p99_ms")}
        figures["images_per_second"] = round(batch / row.p50_ms * 1000, 3)
        figures["repetitions"] = row.repetitions
        rows.append({**about, "way": way.name, "side": way.side, "at": _now(), **figures})
    return rows


def _contender(setting: Setting, way: Way, precision: str, timed: Any) -> Contender:
    layout = "channels_last" if way.name.endswith(("eager", "compile")) else "channels_first"
    return Contender(way.name, way.side, setting.device, precision, layout, setting.threads, lambda batch: timed)


def _usable(setting: Setting) -> bool:
    """Tell whether the GPU still answers: after some errors no call of this process succeeds any more."""
    try:
        if setting.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options, start = options_of(arguments), time.monotonic()
    setting = here(options.cpu, available_cores())
    path = options.output or ROOT / "profiles" / file_name(torch.cuda.get_device_name())
    results = open_results(path, setting, options.seconds, retry=options.retry)
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
        status = int(tests["exit_code"] not in (0, 5))  # 5: there are none
    status = _measure_all(options, setting, ways, results, start) or status
    print(summary(results.rows))
    _say(f"wrote {path}")
    return status


def _measure_all(options: argparse.Namespace, setting: Setting, ways: list[Way], results: Results, start: float) -> int:
    """Measure what is not in the file yet; return the exit code."""
    opened: Opened | None = None
    for subject, precision, batch, able in units(options, ways):
        wanted = [way for way in able if not results.has(subject.name, way.name, precision, batch)]
        if not wanted:
            continue
        if options.minutes is not None and time.monotonic() - start > options.minutes * 60:
            _say(f"{options.minutes:g} minutes are over: run it again and it goes on")
            return 0
        _say(f"{subject.name}, {precision}, batch {batch}: {', '.join(way.name for way in wanted)}")
        if opened is None or opened.subject != subject:
            opened = Opened(subject)
        results.add(measure_unit(setting, opened, precision, batch, wanted, options.seconds))
        if not _usable(setting):
            _say("the GPU's context is unusable after that: another process has to go on")
            return AGAIN
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu.py: interrupted; what was measured is in the file, and another run goes on from there")
