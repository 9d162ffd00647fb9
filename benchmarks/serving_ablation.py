"""What each part of the connection layer brings: the server beside the same server without that part.

    python benchmarks/serving_ablation.py --rounds 12                    # the real network; 5 minutes on 2 cores
    python benchmarks/serving_ablation.py --rounds 12 --noop             # a network that answers at once
    python benchmarks/serving_ablation.py --rounds 12 --append           # more rounds of the same

The complete server and the server without one part are measured in turns, for a second or less each, the order
reversed in every other round. A complete server in the place of a part ("nothing") shows what chance does. A figure is
the ratio "without the part" / "complete" of such a pair: the mean of the middle 60 % of the rounds, with a 95 %
interval (bootstrap over rounds). The real network is RegNetX-200MF at 224 pixels in FP32 with default settings; it
gets tensors of FP32 and JPEG files. Client and server share the cores. Writes results/serving_ablation.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from serving import SIDE, SMALL_SIDE, photo_request, tensor_request
from serving_figures import RESULTS, cores_busy
from serving_inputs import NETWORK, infer_body, prepare
from serving_load import loaded
from serving_processes import HERE, Request, Running, started
from serving_without import PARTS

from regnet_deploy.profiling.machine import describe_machine

RESULT = RESULTS / "serving_ablation.json"
COMPLETE, CONTROL = "complete", "nothing"
#: Parts measured on the real network: those that exist for speed; the others are limits.
NETWORK_PARTS = ("nothing", "body_receiver", "scheduling")
#: Figure -> whether more of it is better.
FIGURES = {"rate": True, "p50_ms": False, "p99_ms": False, "server_cpu_ms": False}
WARMUP_S = 0.1
Pair = list[dict[str, float]]  # figures of the complete server and of the one without a part
Measured = dict[str, dict[str, Pair]]  # case -> part -> pair


def measure(running: Running, request: Request, concurrency: int, seconds: float) -> dict[str, float]:
    """Load a server from this process."""
    wish = {**request.wish(running.url), "logits": (), "warmup": WARMUP_S}
    for _ in range(3):
        before = running.cpu_s()
        answer = loaded({**wish, "concurrency": concurrency, "seconds": seconds})
        if not answer["bad"] and answer["rate"]:
            break
        print(f"{running.process.args[2]}: {answer['bad']} bad, {answer['rate']} a second", file=sys.stderr)
    else:
        raise RuntimeError(f"{running.url}{request.path}: {answer['bad']} requests failed")
    answer["server_cpu_ms"] = 1000 * (running.cpu_s() - before) / (answer["rate"] * (seconds + WARMUP_S))
    return {name: round(answer[name], 5) for name in FIGURES}


def one_round(
    servers: dict[str, Running], requests: dict[str, Request], seconds: float, number: int, in_flight: tuple[int, ...]
) -> Measured:
    """Measure every server without a part beside the complete one."""
    found: Measured = {}
    for name, request in requests.items():
        for concurrency in in_flight:
            case = found[f"{name}, {concurrency} in flight"] = {}
            # Batches of 8 arrive together: a short time has a coarse rate.
            long = seconds if concurrency == 1 else 2 * seconds
            for part in random.sample(list(servers), len(servers)):
                if part != COMPLETE:
                    pair = [servers[COMPLETE], servers[part]][:: 1 if number % 2 else -1]
                    case[part] = [measure(one, request, concurrency, long) for one in pair][:: 1 if number % 2 else -1]
    return found


def start(stack: contextlib.ExitStack, parts: list[str], *arguments: str) -> dict[str, Running]:
    """Start the complete server twice and one without each of the parts."""
    program = [sys.executable, str(HERE / "serving_without.py")]
    sides = {COMPLETE: CONTROL, CONTROL: CONTROL, **{part: part for part in parts}}
    return {name: stack.enter_context(started([*program, part, *arguments])) for name, part in sides.items()}


def network_rounds(folder: Path, parts: list[str], rounds: int, seconds: float) -> list[Measured]:
    given = prepare(folder)
    arguments = ("serve", str(given.bundle), "--port", "0", "--json", "--poll", "0", "--variant", "onnx-fp32")
    requests = {"tensor": tensor_request(given, "float32"), "JPEG": photo_request(given)}
    with contextlib.ExitStack() as stack:
        servers = start(stack, parts, *arguments)
        one_round(servers, requests, 0.6, 0, (1, 16))
        return [say(number, one_round(servers, requests, seconds, number, (1, 16))) for number in range(rounds)]


def noop_rounds(folder: Path, parts: list[str], rounds: int, seconds: float) -> list[Measured]:
    with contextlib.ExitStack() as stack:
        sizes = {}
        for side in (SMALL_SIDE, SIDE):
            head, raw = infer_body(("images", "logits"), np.zeros((1, 3, side, side), np.float32))
            body = folder / f"{side}.body"
            body.write_bytes(head + raw)
            request = Request("/v2/models/regnet/infer", {"inference-header-content-length": str(len(head))}, [body])
            sizes[f"{len(head) + len(raw):,} bytes"] = (
                request,
                start(stack, parts, "noop", "ours", "--side", str(side)),
            )

        def every(seconds: float, number: int) -> Measured:
            found: Measured = {}
            for name, (request, servers) in sizes.items():
                found |= one_round(servers, {name: request}, seconds, number, (16,))
            return found

        every(0.1, 0)
        return [say(number, every(seconds, number)) for number in range(rounds)]


def say(number: int, measured: Measured) -> Measured:
    print(f"round {number + 1}", file=sys.stderr, flush=True)
    return measured


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle 60 % of each row."""
    cut = round(0.2 * values.shape[1])
    return np.sort(values, axis=1)[:, cut : values.shape[1] - cut].mean(axis=1)


def summarize(rounds: list[Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return case -> part -> figure -> mean of the ratios to the complete server and its 95 % interval."""
    generator = np.random.default_rng(0)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for case, parts in rounds[0].items():
        found[case] = {part: {} for part in sorted(parts, key=list(PARTS).index)}
        for part, figures in found[case].items():
            for figure in FIGURES:
                complete, without = np.array([[row[figure] for row in one[case][part]] for one in rounds]).T
                ratios = without / complete
                low, high = np.percentile(trimmed_mean(generator.choice(ratios, (2000, len(ratios)))), [2.5, 97.5])
                figures[figure] = {
                    "ratio": round(float(trimmed_mean(ratios[None])[0]), 4),
                    "low": round(float(low), 4),
                    "high": round(float(high), 4),
                    "complete": round(float(np.median(complete)), 4),
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="of each server with 1 request in flight; twice that with 16"
    )
    parser.add_argument("--noop", action="store_true", help="a network that answers at once, and all parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="to switch off  [default: all that matter there]")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--append", action="store_true", help="keep the rounds that FILE has, and add to them")
    parser.add_argument("--anyway", action="store_true", help="keep the result though other programs are busy")
    options = parser.parse_args()
    busy = cores_busy(options.json, options.anyway)
    kind = "noop" if options.noop else "network"
    default = [part for part in PARTS if part != CONTROL] if options.noop else list(NETWORK_PARTS)
    measure_rounds = noop_rounds if options.noop else network_rounds
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure_rounds(Path(folder), options.parts or default, options.rounds, options.seconds)
    result = json.loads(options.json.read_text()) if options.json.exists() else {}
    result |= {"machine": describe_machine().to_json(), "name": NETWORK, "seconds": options.seconds}
    before = result.get(kind, {}).get("rounds", []) if options.append else []
    result[kind] = {"busy_cores_before": busy, "rounds": [*before, *rounds]}
    result[kind]["summary"] = summarize(result[kind]["rounds"])
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for case, parts in result[kind]["summary"].items():
        print(
            f"{case}: complete {parts[CONTROL]['rate']['complete']:.1f}/s, p99 {parts[CONTROL]['p99_ms']['complete']}"
        )
        for part, figures in parts.items():
            texts = [f"{name} {one['ratio']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for name, one in figures.items()]
            print(f"  without {part:<22}{'  '.join(texts)}")


if __name__ == "__main__":
    main()
