"""The server beside its bare parts, on this machine: what answering over HTTP costs.

    python benchmarks/serving.py            # 8 minutes on 2 cores; writes results/serving.json
    python benchmarks/serving_page.py       # writes docs/serving-speed.md

RegNetX-200MF at 224 pixels in FP32. Client and server share the cores, and what the client takes is measured as well.
Settings of both sides are tried first and the best taken; then all sides run in turns, several rounds, and the medians
of the rounds are compared. Before anything is measured the server's logits are compared with the bare session's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from serving_inputs import HEIGHT, NETWORK, QUALITY, SIDE, WIDTH, Given, infer_body, prepare
from serving_processes import HERE, Request, Running, ask, load, started

from regnet_deploy.cores import available_cores
from regnet_deploy.profiling.machine import busy_cores, describe_machine

RESULT = HERE / "results" / "serving.json"

#: Requests in flight at saturation, tried in turn; and of the comparison of servers that compute nothing.
CONCURRENCY, NOTHING_CONCURRENCY = (4, 8, 16), 16
#: Side of the images of the small requests: about 1.6 KB with their JSON.
SMALL_SIDE = 11
VARIANTS = {"float32": "onnx-fp32", "uint8": "onnx-fp32-uint8"}


def bare(parts: Running, given: Given, dtype: str, setting: tuple[int, int, int], seconds: float) -> dict[str, Any]:
    """Measure the bare session with so many threads, callers and images in a batch."""
    threads, callers, batch = setting
    file = str(given.onnx[VARIANTS[dtype]])
    wish = {"do": "infer", "file": file, "dtype": dtype, "side": SIDE, "seconds": seconds}
    return ask(parts, {**wish, "threads": threads, "callers": callers, "batch": batch})


def decoded(parts: Running, given: Given, dtype: str, callers: int, seconds: float) -> dict[str, Any]:
    """Measure decoding and preprocessing alone."""
    photos = [str(photo) for photo in given.photos]
    wish = {"do": "decode", "photos": photos, "dtype": dtype, "seconds": seconds, "callers": callers}
    return ask(parts, {**wish, "preprocessing": given.preprocessing.to_json()})


@contextlib.contextmanager
def served(given: Given, dtype: str, setting: tuple[int, int, int]):
    """Serve a variant with so many threads, executors and images in a batch."""
    threads, executors, batch = setting
    command = [
        sys.executable,
        "-m",
        "regnet_deploy",
        "serve",
        str(given.bundle),
        "--port",
        "0",
        "--json",
        "--poll",
        "0",
    ]
    numbers = ["--threads", str(threads), "--executors", str(executors), "--batch", str(batch)]
    with started([*command, "--variant", VARIANTS[dtype], *numbers]) as running:
        yield running


def tensor_request(given: Given, dtype: str) -> Request:
    headers = {"inference-header-content-length": str(given.heads[dtype])}
    return Request("/v2/models/regnet/infer", headers, given.tensors[dtype], 4000)


def photo_request(given: Given) -> Request:
    return Request("/classify?k=5", {"content-type": "image/jpeg"}, given.photos, 100)


def check(running: Running, given: Given, dtype: str) -> None:
    """Compare the server's logits with those of the bare session.

    Raises:
        RuntimeError: they are others.
    """
    host, port = running.url.rpartition("//")[2].rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    body = given.tensors[dtype][0].read_bytes()
    connection.request("POST", "/v2/models/regnet/infer", body, tensor_request(given, dtype).headers)
    answer = connection.getresponse()
    content = answer.read()[int(answer.headers["inference-header-content-length"]) :]
    connection.close()
    raw = body[given.heads[dtype] :]
    shape = (1, 3, SIDE, SIDE) if dtype == "float32" else (1, SIDE, SIDE, 3)
    session = onnxruntime.InferenceSession(given.onnx[VARIANTS[dtype]].read_bytes(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {given.names[0]: np.frombuffer(raw, dtype).reshape(shape)})[0]
    if not np.allclose(np.frombuffer(content, np.float32), wanted[0], atol=1e-4, rtol=1e-3):
        raise RuntimeError(f"{running.url} does not answer as the network does")


def settings_to_try(cores: int, batches: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return threads, callers and batches that use all cores."""
    pairs = {(1, cores), (cores, 1), (max(1, cores // 2), 2 if cores > 1 else 1)}
    return [(threads, callers, batch) for threads, callers in sorted(pairs) for batch in batches]


def best_served(
    given: Given, dtype: str, request: Request, cores: int, batches: tuple[int, ...], seconds: float, say: Callable
) -> tuple[tuple[int, int, int], int]:
    """Return the setting of the server and the requests in flight that give the highest rate."""
    rates = {}
    for setting in settings_to_try(cores, batches):
        with served(given, dtype, setting) as running:
            for concurrency in CONCURRENCY[1:]:
                rates[setting, concurrency] = load(running, request, concurrency, seconds)["rate"]
                say(f"  {request.path} {dtype} {setting} {concurrency}: {rates[setting, concurrency]:.1f}")
    return max(rates, key=rates.__getitem__)


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure, and the rates and p50s of all rounds."""
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**figures, "rates": [row["rate"] for row in rows], "p50s_ms": [row["p50_ms"] for row in rows]}


def in_turns(sides: dict[str, Callable[[], dict[str, Any]]], rounds: int, say: Callable) -> dict[str, dict[str, Any]]:
    """Measure every side once a round, every other round in the opposite order."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            row = sides[name]()
            rows[name].append(row)
            say(f"  round {number + 1}, {name}: {row['rate']:.1f} a second, p50 {row['p50_ms']:.2f} ms")
    return {name: median(measured) for name, measured in rows.items()}


def models(given: Given, parts: Running, rounds: int, seconds: float, say: Callable) -> dict[str, Any]:
    """Compare the served network with its parts: tensors, pixels and JPEG files, at saturation and alone."""
    cores, short = available_cores(), min(seconds, 1.0)
    say("settings of the bare session")
    best_bare, best = {}, {}
    for dtype in VARIANTS:
        tried: dict[tuple[int, int, int], float] = {}
        for setting in 2 * settings_to_try(cores, (1, 2, 4, 8)):  # the better of two: what else runs here only takes
            rate = bare(parts, given, dtype, setting, short / 2)["rate"]
            tried[setting] = max(rate, tried.get(setting, 0.0))
        best_bare[dtype] = max(tried, key=tried.__getitem__)
        say(f"  {dtype}: {tried}")
    say("settings of the server")
    for dtype in VARIANTS:
        best[dtype] = best_served(given, dtype, tensor_request(given, dtype), cores, (1, 4), short, say)
    with contextlib.ExitStack() as stack:
        many = {dtype: stack.enter_context(served(given, dtype, best[dtype][0])) for dtype in VARIANTS}
        alone = {dtype: stack.enter_context(served(given, dtype, (cores, 1, 1))) for dtype in VARIANTS}
        for dtype in VARIANTS:
            check(many[dtype], given, dtype)
            check(alone[dtype], given, dtype)
        photo_rates = {
            (dtype, n): load(many[dtype], photo_request(given), n, short)["rate"]
            for dtype in VARIANTS
            for n in CONCURRENCY
        }
        photo_dtype, photo_n = max(photo_rates, key=photo_rates.__getitem__)
        say(f"  photographs: {photo_rates}")
        sides: dict[str, Callable[[], dict[str, Any]]] = {}
        for dtype in VARIANTS:
            request, in_flight = tensor_request(given, dtype), best[dtype][1]
            sides[f"bare {dtype}"] = partial(bare, parts, given, dtype, best_bare[dtype], seconds)
            sides[f"http {dtype}"] = partial(load, many[dtype], request, in_flight, seconds)
            sides[f"bare {dtype} alone"] = partial(bare, parts, given, dtype, (cores, 1, 1), seconds / 2)
            sides[f"http {dtype} alone"] = partial(load, alone[dtype], request, 1, seconds / 2)
        sides["decode"] = partial(decoded, parts, given, photo_dtype, cores, seconds / 2)
        sides["decode alone"] = partial(decoded, parts, given, photo_dtype, 1, seconds / 2)
        sides["photos"] = partial(load, many[photo_dtype], photo_request(given), photo_n, seconds)
        sides["photos alone"] = partial(load, alone[photo_dtype], photo_request(given), 1, seconds / 2)
        rows = in_turns(sides, rounds, say)
    named = ("threads", "executors", "batch")
    return {
        "settings": {
            "bare": {
                dtype: dict(zip(("threads", "callers", "batch"), best_bare[dtype], strict=True)) for dtype in VARIANTS
            },
            "http": {
                dtype: {**dict(zip(named, best[dtype][0], strict=True)), "in_flight": best[dtype][1]}
                for dtype in VARIANTS
            },
            "photos": {"dtype": photo_dtype, "in_flight": photo_n},
        },
        "rows": rows,
    }


def nothing(folder: Path, rounds: int, seconds: float, say: Callable) -> dict[str, Any]:
    """Compare the server without a network with Starlette alone."""
    results = {}
    for side in (SMALL_SIDE, SIDE):
        head, raw = infer_body(("images", "logits"), np.zeros((1, 3, side, side), np.float32))
        body = folder / f"{side}.body"
        body.write_bytes(head + raw)
        request = Request("/v2/models/regnet/infer", {"inference-header-content-length": str(len(head))}, [body])
        ways = {"ours": ["ours", "--side", str(side)], "echo": ["echo"], "sink": ["sink"]}
        with contextlib.ExitStack() as stack:
            sides = {}
            for name, arguments in ways.items():
                command = [sys.executable, str(HERE / "serving_noop.py"), *arguments]
                running = stack.enter_context(started(command))
                sides[name] = partial(load, running, request, NOTHING_CONCURRENCY, seconds)
            say(f"no network, {len(head) + len(raw):,} bytes")
            results[str(len(head) + len(raw))] = in_turns(sides, rounds, say)
    return results


def summary(result: dict[str, Any]) -> dict[str, float]:
    """Return what the targets are about."""
    rows = result["models"]["rows"]
    dtype = result["models"]["settings"]["photos"]["dtype"]
    together = 1 / (1 / rows["decode"]["rate"] + 1 / rows[f"bare {dtype}"]["rate"])
    in_turn = rows["decode alone"]["p50_ms"] + rows[f"bare {dtype} alone"]["p50_ms"]
    figures = {
        "tensor_share": rows["http float32"]["rate"] / rows["bare float32"]["rate"],
        "pixel_share": rows["http uint8"]["rate"] / rows["bare uint8"]["rate"],
        "photo_parts_rate": together,
        "photo_time_ratio": together / rows["photos"]["rate"],
        "photo_parts_p50_ms": in_turn,
        "photo_alone_ratio": rows["photos alone"]["p50_ms"] / in_turn,
        "alone_over_ms": rows["http float32 alone"]["p50_ms"] - rows["bare float32 alone"]["p50_ms"],
    }
    for name, dtype in (("tensor", "float32"), ("pixel", "uint8")):
        alone, served_ms = rows[f"bare {dtype}"]["cpu_ms"], rows[f"http {dtype}"]["server_cpu_ms"]
        figures[f"{name}_cpu_share"] = alone / (served_ms + rows[f"http {dtype}"]["client_cpu_ms"])
        figures[f"{name}_cpu_share_without_client"] = alone / served_ms
    for size, sides in result["nothing"].items():
        for other in ("echo", "sink"):
            figures[f"nothing_{size}_{other}"] = sides["ours"]["rate"] / sides[other]["rate"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in each round")
    parser.add_argument("--part", choices=["models", "nothing"], help="what is measured (default: both)")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = json.loads(options.json.read_text(encoding="utf-8")) if options.part and options.json.exists() else {}
    result |= {
        "machine": describe_machine().to_json(),
        "busy_cores_before": busy_cores(1.0),
        "network": NETWORK,
        "photos": {"width": WIDTH, "height": HEIGHT, "quality": QUALITY},
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "models":
            result["nothing"] = nothing(Path(folder), options.rounds, options.seconds, say)
        if options.part != "nothing":
            given = prepare(Path(folder))
            result["photos"]["bytes"] = [photo.stat().st_size for photo in given.photos]
            with started([sys.executable, str(HERE / "serving_bare.py")]) as parts:
                result["models"] = models(given, parts, options.rounds, options.seconds, say)
    if {"models", "nothing"} <= set(result):
        result["summary"] = summary(result)
        for name, figure in result["summary"].items():
            print(f"{name:<24}{figure:>9.3f}")
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
