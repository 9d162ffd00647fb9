"""The server beside its bare parts, on this machine: what answering over HTTP costs.

    python benchmarks/serving.py            # 6 minutes on 2 cores; writes results/serving.json
    python benchmarks/serving_page.py       # writes docs/serving-speed.md

RegNetX-200MF at 224 pixels in FP32. Client and server share the cores, and what the client takes is measured as well.
Settings of both sides are tried first; then the server's best and the best three of the bare session, one of which may
have been lucky, run in turns, several rounds. What is compared are medians of the rounds, with the bare session's best.
Every answer is compared with the bare session's. Where OpenVINO is installed the server is measured with it as well,
for that is what `regnet-deploy tune` may choose: beside the same bare session, and beside a bare one of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from serving_figures import RESULTS, Of, Row, cores_busy, in_turns, ranged
from serving_inputs import HEIGHT, NETWORK, QUALITY, SIDE, WIDTH, Given, infer_body, prepare
from serving_overload import in_overload
from serving_processes import HERE, Request, Running, ask, ask_all, load, started

from regnet_deploy.cpu import available_cores
from regnet_deploy.profiling.machine import describe_machine

RESULT = RESULTS / "serving.json"

#: Requests in flight at saturation, tried in turn; and of the comparison of servers that compute nothing.
CONCURRENCY, NOTHING_CONCURRENCY = (8, 16), 16
#: Side of the images of the small requests: about 1.6 KB with their JSON.
SMALL_SIDE = 11
VARIANTS = {"float32": "onnx-fp32", "uint8": "onnx-fp32-uint8"}
#: The variant that photographs run on, which spares the server their normalization.
PHOTO_DTYPE = "uint8"
#: The bare session's settings that take part in the rounds.
BARE = 3

#: Of rows by OpenVINO.
OPENVINO = "openvino: "

Setting = dict[str, Any]


def bare(parts: Running, given: Given, dtype: str, setting: Setting, seconds: float) -> Row:
    """Measure the bare session with so many threads, callers and images in a batch."""
    file = str(given.onnx[VARIANTS[dtype]])
    return ask(parts, {"do": "infer", "file": file, "dtype": dtype, "side": SIDE, "seconds": seconds, **setting})


def decoded(several: list[Running], given: Given, seconds: float) -> Row:
    """Measure decoding and preprocessing alone, in as many processes as are given: the server decodes in such."""
    photos = [str(photo) for photo in given.photos]
    wish = {"do": "decode", "photos": photos, "dtype": PHOTO_DTYPE, "seconds": seconds}
    rows = ask_all(several, {**wish, "preprocessing": given.preprocessing.to_json()})
    middle = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    return {**middle, "rate": sum(row["rate"] for row in rows)}


def in_turn(parts: Running, given: Given, setting: Setting, seconds: float) -> Row:
    """Measure decoding and the bare session, one after the other for each photograph."""
    wish = {"do": "both", "photos": [str(photo) for photo in given.photos], "dtype": PHOTO_DTYPE, "seconds": seconds}
    file = str(given.onnx[VARIANTS[PHOTO_DTYPE]])
    return ask(parts, {**wish, "file": file, "preprocessing": given.preprocessing.to_json(), "spinning": 0, **setting})


@contextlib.contextmanager
def served(given: Given, dtype: str, setting: Setting):
    """Serve a variant with so many threads, executors and images in a batch, and decoders where that says how many."""
    command = [sys.executable, "-m", "regnet_deploy", "serve", str(given.bundle), "--port", "0", "--json"]
    numbers = [text for name, number in setting.items() for text in (f"--{name}", str(number))]
    with started([*command, "--poll", "0", "--variant", VARIANTS[dtype], *numbers]) as running:
        yield running


def tensor_request(given: Given, dtype: str) -> Request:
    headers = {"inference-header-content-length": str(given.heads[dtype])}
    return Request("/v2/models/regnet/infer", headers, given.tensors[dtype], 4000, logits=given.logits[dtype])


def photo_request(given: Given) -> Request:
    headers, logits = {"content-type": "image/jpeg"}, given.logits[PHOTO_DTYPE]
    return Request("/classify?k=5", headers, given.photos, 100, logits=logits, answers="classes")


def bare_settings(cores: int) -> list[Setting]:
    """Return threads, callers and batches that use all cores, with our way of waiting and ONNX Runtime's own.

    A session of one thread has no others that would wait.
    """
    return [
        {"threads": threads, "callers": callers, "batch": batch, "spinning": spinning}
        for threads, callers in dict.fromkeys([(1, cores), (cores, 1)])
        for batch in (1, 2, 4, 8)
        for spinning in ((0, 1) if threads > 1 else (0,))
    ]


def served_settings(cores: int) -> list[Setting]:
    """Return what the server is tried with for tensors and pixels."""
    whole, split = {"executors": 1, "threads": cores}, {"executors": cores, "threads": 1}
    return [{**whole, "batch": 8}, {**split, "batch": 1}, {**split, "batch": 4}]


def photo_settings(cores: int) -> list[Setting]:
    """Return what it is tried with for photographs: who decodes takes cores from who infers."""
    return [{**one, "decoders": n} for one in served_settings(cores) for n in sorted({1, cores})]


def best_bare(
    parts: Running, given: Given, dtype: str, cores: int, seconds: float, say: Callable[[str], None]
) -> list[Setting]:
    """Return the fastest settings of the bare session."""
    settings = bare_settings(cores)
    rates = [0.0] * len(settings)
    for _ in range(2):  # the better of two: what else runs here only takes
        for i, setting in enumerate(settings):
            rates[i] = max(rates[i], bare(parts, given, dtype, setting, seconds)["rate"])
    order = sorted(range(len(settings)), key=lambda i: -rates[i])
    for i in order:
        say(f"  bare {dtype} {settings[i]}: {rates[i]:.1f}")
    return [settings[i] for i in order[:BARE]]


def best_served(
    given: Given, dtype: str, request: Request, settings: list[Setting], seconds: float, say: Callable[[str], None]
) -> tuple[Setting, int]:
    """Return the setting of the server and the requests in flight that give the highest rate."""
    tried = []
    for setting in settings:
        with served(given, dtype, setting) as running:
            for concurrency in CONCURRENCY:
                rate = load(running, request, concurrency, seconds)["rate"]
                tried.append((rate, setting, concurrency))
                say(f"  {request.path} {dtype} {setting} {concurrency}: {rate:.1f}")
    _, setting, concurrency = max(tried, key=lambda one: one[0])
    return setting, concurrency


def by_openvino(
    given: Given, photos: Request, seconds: float, say: Callable[[str], None]
) -> dict[str, tuple[str, Setting, Request, int]]:
    """Return name, input, setting and requests in flight of what is measured of the server by OpenVINO."""
    cores, runtime = available_cores(), {"runtime": "openvino"}
    settings = [setting | runtime for setting in served_settings(cores)]
    with_decoders = [setting | runtime for setting in photo_settings(cores)]
    alone = {"executors": 1, "threads": cores, "batch": 1, **runtime}
    found = {}
    for dtype in VARIANTS:
        request = tensor_request(given, dtype)
        setting, concurrency = best_served(given, dtype, request, settings, seconds, say)
        found[f"http {dtype}"] = (dtype, setting, request, concurrency)
    found["http float32 alone"] = ("float32", alone, tensor_request(given, "float32"), 1)
    setting, concurrency = best_served(given, PHOTO_DTYPE, photos, with_decoders, seconds, say)
    found["photos"] = (PHOTO_DTYPE, setting, photos, concurrency)
    found["photos alone"] = (PHOTO_DTYPE, alone, photos, 1)
    return found


def models(given: Given, several: list[Running], rounds: int, seconds: float, say: Callable[[str], None]) -> Row:
    """Compare the served network with its parts: tensors, pixels and JPEG files, at saturation and alone."""
    cores, parts, short = available_cores(), several[0], min(seconds, 0.8)
    say("settings")
    fastest = {dtype: best_bare(parts, given, dtype, cores, short / 2, say) for dtype in VARIANTS}
    settings, photos = served_settings(cores), photo_request(given)
    best = {dtype: best_served(given, dtype, tensor_request(given, dtype), settings, short, say) for dtype in VARIANTS}
    photo_best = best_served(given, PHOTO_DTYPE, photos, photo_settings(cores), short, say)
    one = {"executors": 1, "threads": cores, "batch": 1}
    other = by_openvino(given, photos, short, say) if importlib.util.find_spec("openvino") else {}
    with contextlib.ExitStack() as stack:
        many = {dtype: stack.enter_context(served(given, dtype, best[dtype][0])) for dtype in VARIANTS}
        alone = {dtype: stack.enter_context(served(given, dtype, one)) for dtype in VARIANTS}
        decoding = stack.enter_context(served(given, PHOTO_DTYPE, photo_best[0]))
        sides: dict[str, Callable[[], Row]] = {}
        for dtype in VARIANTS:
            request = tensor_request(given, dtype)
            for number, setting in enumerate(fastest[dtype], 1):
                sides[f"bare {dtype} {number}"] = partial(bare, parts, given, dtype, setting, seconds)
            sides[f"http {dtype}"] = partial(load, many[dtype], request, best[dtype][1], seconds)
            for spinning, name in enumerate(("alone", "alone, spinning")):
                setting = {"threads": cores, "callers": 1, "batch": 1, "spinning": spinning}
                sides[f"bare {dtype} {name}"] = partial(bare, parts, given, dtype, setting, seconds / 2)
            sides[f"http {dtype} alone"] = partial(load, alone[dtype], request, 1, seconds / 2)
        sides["decode"] = partial(decoded, several, given, seconds / 2)
        sides["decode alone"] = partial(decoded, several[:1], given, seconds / 2)
        split, whole = {"threads": 1, "callers": cores}, {"threads": cores, "callers": 1}
        sides["decode and infer"] = partial(in_turn, parts, given, split, seconds)
        sides["decode and infer alone"] = partial(in_turn, parts, given, whole, seconds / 2)
        sides["photos"] = partial(load, decoding, photos, photo_best[1], seconds)
        sides["photos alone"] = partial(load, alone[PHOTO_DTYPE], photos, 1, seconds / 2)
        for name, (dtype, setting, request, concurrency) in other.items():
            running = stack.enter_context(served(given, dtype, setting))
            long = seconds if concurrency > 1 else seconds / 2
            sides[OPENVINO + name] = partial(load, running, request, concurrency, long)
            if name.startswith("http") and concurrency > 1:
                apart = {"threads": setting["threads"], "callers": setting["executors"], "batch": setting["batch"]}
                apart |= {"spinning": 0, "runtime": "openvino"}
                sides[f"{OPENVINO}bare {dtype}"] = partial(bare, parts, given, dtype, apart, seconds)
        rows = in_turns(sides, rounds, say)
        capacity = rows[f"http {PHOTO_DTYPE}"]["rate"]
        overloaded = in_overload(many[PHOTO_DTYPE], tensor_request(given, PHOTO_DTYPE), capacity, rounds, seconds)
    return {
        "settings": {
            "bare": fastest,
            "http": {dtype: {**setting, "in_flight": n} for dtype, (setting, n) in best.items()},
            "photos": {**photo_best[0], "in_flight": photo_best[1], "dtype": PHOTO_DTYPE},
            "alone": one,
            "openvino": {name: {**setting, "in_flight": n} for name, (_, setting, _, n) in other.items()},
        },
        "rows": rows,
        "overload": overloaded,
    }


def answered_bytes(running: Running, request: Request) -> int:
    """Return how many bytes an answer has."""
    host, port = running.url.rpartition("//")[2].rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", request.path, request.bodies[0].read_bytes(), request.headers)
    content = connection.getresponse().read()
    connection.close()
    return len(content)


def nothing(folder: Path, rounds: int, seconds: float, say: Callable[[str], None]) -> Row:
    """Compare the server without a network with Starlette alone."""
    results = {}
    for side in (SMALL_SIDE, SIDE):
        head, raw = infer_body(("images", "logits"), np.zeros((1, 3, side, side), np.float32))
        body = folder / f"{side}.body"
        body.write_bytes(head + raw)
        request = Request("/v2/models/regnet/infer", {"inference-header-content-length": str(len(head))}, [body])
        program = [sys.executable, str(HERE / "serving_noop.py")]
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(started([*program, "ours", "--side", str(side)]))
            answer = str(answered_bytes(ours, request))
            echo = stack.enter_context(started([*program, "echo"]))
            sink = stack.enter_context(started([*program, "sink", "--answer", answer]))
            sides = {
                name: partial(load, running, request, NOTHING_CONCURRENCY, seconds)
                for name, running in (("ours", ours), ("echo", echo), ("sink", sink))
            }
            say(f"no network, {len(head) + len(raw):,} bytes, {answer} in an answer")
            results[str(len(head) + len(raw))] = in_turns(sides, rounds, say)
    return results


def best_row(rows: dict[str, Row], dtype: str) -> Row:
    """Return the bare session's row with the highest median rate, whatever its setting."""
    return max((row for name, row in rows.items() if name.startswith(f"bare {dtype}")), key=lambda row: row["rate"])


def lone_row(rows: dict[str, Row], dtype: str) -> Row:
    """Return its row with the lowest median latency of one image after the other."""
    prefix = f"bare {dtype} alone"
    return min((row for name, row in rows.items() if name.startswith(prefix)), key=lambda row: row["p50_ms"])


def figures(result: Row, of: Of) -> dict[str, float]:
    """Return what the targets are about, of the medians or of one round."""
    rows = result["models"]["rows"]
    fast, lone = best_row(rows, PHOTO_DTYPE), lone_row(rows, PHOTO_DTYPE)
    together = 1 / (1 / of(rows["decode"], "rate") + 1 / of(fast, "rate"))
    one_by_one = of(rows["decode alone"], "p50_ms") + of(lone, "p50_ms")
    found = {"photo_parts_rate": together, "photo_parts_p50_ms": one_by_one}
    for prefix, end in (("", ""), (OPENVINO, "_openvino")):
        if f"{prefix}photos" not in rows:
            continue
        photos, photos_alone = rows[f"{prefix}photos"], rows[f"{prefix}photos alone"]
        found[f"photo_time_ratio{end}"] = together / of(photos, "rate")
        found[f"photo_alone_ratio{end}"] = of(photos_alone, "p50_ms") / one_by_one
        both, both_alone = rows["decode and infer"], rows["decode and infer alone"]
        found[f"photo_time_in_turn{end}"] = of(both, "rate") / of(photos, "rate")
        found[f"photo_alone_in_turn{end}"] = of(photos_alone, "p50_ms") / of(both_alone, "p50_ms")
        alone = rows[f"{prefix}http float32 alone"]
        found[f"alone_over_ms{end}"] = of(alone, "p50_ms") - of(lone_row(rows, "float32"), "p50_ms")
        for name, dtype in (("tensor", "float32"), ("pixel", "uint8")):
            found[f"{name}_share{end}"] = of(rows[f"{prefix}http {dtype}"], "rate") / of(best_row(rows, dtype), "rate")
    for name, dtype in (("tensor", "float32"), ("pixel", "uint8")):
        ours = rows[f"http {dtype}"]
        apart = of(best_row(rows, dtype), "cpu_ms"), of(ours, "server_cpu_ms")
        found[f"{name}_cpu_share"] = apart[0] / (apart[1] + of(ours, "client_cpu_ms"))
        found[f"{name}_cpu_share_without_client"] = apart[0] / apart[1]
    for size, sides in result["nothing"].items():
        for other in ("echo", "sink"):
            found[f"nothing_{size}_{other}"] = of(sides["ours"], "rate") / of(sides[other], "rate")
    return found


def summary(result: Row) -> dict[str, dict[str, float]]:
    """Return the figures that targets are about, each with its range over the rounds."""
    found = ranged(partial(figures, result), result["rounds"])
    overloaded = result["models"]["overload"]
    each = overloaded["rounds"]["refused_p99_ms"]
    found["refused_p99_ms"] = {"value": overloaded["refused_p99_ms"], "low": min(each), "high": max(each)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each side in each round")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--anyway", action="store_true", help="keep the result though other programs are busy")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result: Row = {
        "busy_cores_before": cores_busy(options.json, options.anyway),
        "machine": describe_machine().to_json(),
        "network": NETWORK,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        result["nothing"] = nothing(Path(folder), options.rounds, options.seconds, say)
        given = prepare(Path(folder))
        sizes = [photo.stat().st_size for photo in given.photos]
        result["photos"] = {"width": WIDTH, "height": HEIGHT, "quality": QUALITY, "bytes": sizes}
        program = [sys.executable, str(HERE / "serving_bare.py")]
        parts = [stack.enter_context(started(program)) for _ in range(available_cores())]
        result["models"] = models(given, parts, options.rounds, options.seconds, say)
    result["summary"] = summary(result)
    for name, one in result["summary"].items():
        print(f"{name:<32}{one['value']:>9.3f}   {one['low']:.3f} to {one['high']:.3f}")
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
