"""The server beside LitServe, MLServer and KServe: the same network, images, session options and client.

    python benchmarks/serving_peers.py       # 8 minutes on 2 cores; writes results/serving_peers.json
    python benchmarks/serving_page.py        # writes docs/serving-speed.md

Each of the others is installed into an environment of its own and has the fastest handler that could be written for it,
see `serving_peer_*.py`. Every server is tried in several settings and takes part with the best one for each kind of
request and number in flight; then all run in turns, several rounds, those that are not measured stopped. Every answer
is compared with the bare session's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import PIL
from serving_figures import RESULTS, Of, cores_busy, in_turns, ranged
from serving_inputs import NETWORK, SIDE, Given, prepare
from serving_processes import HERE, Request, Running, TooSlow, load, signal_all, started

from regnet_deploy.cpu import available_cores
from regnet_deploy.profiling.machine import describe_machine

RESULT = RESULTS / "serving_peers.json"
PEERS = {"litserve": "0.2.19", "mlserver": "1.7.1", "kserve": "0.21.0"}
CONCURRENCY = (1, 16)
KINDS = ("tensor", "photo")
VARIANTS = {"tensor": "onnx-fp32", "photo": "onnx-fp32-uint8"}


def environment(root: Path, name: str, say: Callable[[str], None]) -> Path:
    """Return the interpreter of a peer's environment, made where it is not there yet."""
    folder = root / f"{name}-{PEERS[name]}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        say(f"installing {name} {PEERS[name]} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        wanted = [
            f"{name}=={PEERS[name]}",
            f"onnxruntime=={onnxruntime.__version__}",
            f"pillow=={PIL.__version__}",
            "numpy",
        ]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True, stdout=sys.stderr)
        done.touch()
    return python


def default_environments() -> Path:
    """Return where peers are installed by default: below the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "regnet-deploy" / "serving-peers"


#: Our server by the runtime that the others use, and by the faster one that it offers for the same file.
BY_OPENVINO = "ours by OpenVINO"
OURS = ("ours", BY_OPENVINO)


@dataclass(frozen=True)
class Way:
    """One way to ask a server.

    Attributes:
        name: in tables: ``ours, HTTP``.
        server: whose process it is.
        requests: kind -> request; kinds that it does not take are not there.
        port: where it has several, what the facts of the process call this one.
    """

    name: str
    server: str
    requests: dict[str, Request]
    port: str = ""

    def url(self, running: Running) -> str:
        """Return where it is asked."""
        return f"grpc://127.0.0.1:{running.facts[self.port]}" if self.port else running.url


def ways(given: Given) -> list[Way]:
    """Return how each server is asked: by the fastest protocol that it offers."""
    tensors, photos, skip = given.tensors["float32"], given.photos, given.heads["float32"]
    logits, seen = given.logits["float32"], given.logits["uint8"]
    raw = {"content-type": "application/octet-stream"}
    infer = {**raw, "inference-header-content-length": str(skip)}
    shape = {"shape": [1, 3, SIDE, SIDE], "input": given.names[0]}

    def tensor(path: str, headers: dict[str, str], skip: int, kind: str = "") -> Request:
        return Request(path, headers, tensors, 4000, skip, logits, grpc={**shape, "kind": kind} if kind else None)

    def photo(path: str, kind: str = "") -> Request:
        grpc = {**shape, "kind": kind} if kind else None
        return Request(path, raw, photos, 100, logits=seen, answers="classes", grpc=grpc)

    http = {"tensor": tensor("/v2/models/regnet/infer", infer, 0), "photo": photo("/classify?k=5")}
    grpc = {"tensor": tensor("", {}, skip, "raw")}
    return [
        Way("ours, HTTP", "ours", http),
        Way("ours, gRPC", "ours", grpc, "grpc_port"),
        Way(f"{BY_OPENVINO}, HTTP", BY_OPENVINO, http),
        Way(f"{BY_OPENVINO}, gRPC", BY_OPENVINO, grpc, "grpc_port"),
        Way("LitServe, HTTP", "litserve", {"tensor": tensor("/predict", raw, skip), "photo": photo("/predict")}),
        Way("MLServer, gRPC", "mlserver", {"tensor": tensor("", {}, skip, "bytes"), "photo": photo("", "bytes")}),
        Way("MLServer, gRPC FP32", "mlserver", {"tensor": tensor("", {}, skip, "raw")}),
        Way("KServe, gRPC", "kserve", {"tensor": tensor("", {}, skip, "raw"), "photo": photo("", "raw-bytes")}),
    ]


def settings_of(server: str, kind: str, cores: int) -> list[dict[str, Any]]:
    """Return the settings in which a server is tried: threads of an inference, inferences at a time, batch."""
    split, whole = {"threads": 1, "callers": cores}, {"threads": cores, "callers": 1}
    one, several = {**split, "batch": 1}, {**whole, "batch": 1}
    if server in OURS and kind == "tensor":
        return [{**whole, "batch": 8}, one, {**split, "batch": 4}]
    if server in OURS:
        several_at_once = ({**whole, "batch": 8}, one, {**split, "batch": 4})
        return [{**setting, "decoders": n} for setting in several_at_once for n in sorted({1, cores})]
    if server == "litserve":
        quick = [one, {**split, "batch": 4}, several, {**whole, "batch": 8}]
        return [{**setting, "fast_queue": True} for setting in quick] + [{**one, "fast_queue": False}]
    return [one, several]


def command_of(server: str, kind: str, setting: dict[str, Any], given: Given, pythons: dict[str, Path]) -> list[str]:
    """Return what starts a server; ours runs one variant, so it is another one for each kind."""
    if server in OURS:
        names = {"threads": "threads", "callers": "executors", "batch": "batch", "decoders": "decoders"}
        numbers = {names[name]: number for name, number in setting.items()}
        options = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
        ports = ["--port", "0", "--grpc-port", "0", "--poll", "0", "--json"]
        options += ["--runtime", "openvino" if server == BY_OPENVINO else "onnxruntime"]
        return [
            *(sys.executable, "-m", "regnet_deploy", "serve", str(given.bundle)),
            *("--variant", VARIANTS[kind], *ports, *options),
        ]
    facts = {
        "float32": str(given.onnx["onnx-fp32"]),
        "uint8": str(given.onnx["onnx-fp32-uint8"]),
        "input": given.names[0],
        "side": SIDE,
        "resize": given.preprocessing.resize,
        **setting,
    }
    return [str(pythons[server]), str(HERE / "serving_peer.py"), server, json.dumps(facts)]


Case = tuple[str, int]  # kind and requests in flight


def search(
    given: Given, pythons: dict[str, Path], every: list[Way], seconds: float, say: Callable[[str], None]
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the best setting for each way, kind and number in flight: the highest rate."""
    tried: dict[tuple[str, str, int], list[tuple[float, dict[str, Any]]]] = {}
    for server in (*OURS, *pythons):
        together = [(kind,) for kind in KINDS] if server in OURS else [KINDS]
        settings = [
            (setting, kinds) for kinds in together for setting in settings_of(server, kinds[0], available_cores())
        ]
        for setting, kinds in settings:
            with started(command_of(server, kinds[0], setting, given, pythons)) as running:
                of_server = [way for way in every if way.server == server]
                for way, kind, n in itertools.product(of_server, kinds, CONCURRENCY):
                    if kind in way.requests and (n > 1 or setting["batch"] == 1 or server in OURS):
                        rate = rate_of(running, way, kind, n, seconds)
                        tried.setdefault((way.name, kind, n), []).append((rate, setting))
                        say(f"  {way.name}, {kind}, {n} in flight, {setting}: {rate:.1f} a second")
    return {case: max(rows, key=lambda row: row[0])[1] for case, rows in tried.items()}


def rate_of(running: Running, way: Way, kind: str, n: int, seconds: float) -> float:
    """Return the rate of a short load; 0 where nothing was answered in it."""
    try:
        rate: float = load(running, way.requests[kind], n, seconds, way.url(running))["rate"]
    except TooSlow:
        return 0.0
    return rate


def compare(
    given: Given,
    pythons: dict[str, Path],
    every: list[Way],
    best: dict[tuple[str, str, int], dict[str, Any]],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run all of them in turns and return a row for each way, kind and number in flight."""
    by_name = {way.name: way for way in every}
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        sides: dict[tuple[str, str, int], Callable[[], dict[str, Any]]] = {}
        for (name, kind, n), setting in best.items():
            command = command_of(by_name[name].server, kind, setting, given, pythons)
            key = json.dumps(command)
            if key not in running:
                running[key] = stack.enter_context(started(command))
                load(running[key], by_name[name].requests[kind], 1, 0.2, by_name[name].url(running[key]))
                signal_all(running[key], signal.SIGSTOP)
            sides[name, kind, n] = partial(awake, running[key], by_name[name], kind, n, seconds)
        measured = in_turns(sides, rounds, say)
    return [
        {"way": name, "kind": kind, "in_flight": n, "setting": best[name, kind, n], **row}
        for (name, kind, n), row in measured.items()
    ]


def awake(running: Running, way: Way, kind: str, n: int, seconds: float) -> dict[str, Any]:
    """Load a server that is stopped before and after."""
    signal_all(running, signal.SIGCONT)
    try:
        return load(running, way.requests[kind], n, seconds, way.url(running))
    finally:
        signal_all(running, signal.SIGSTOP)


def ratios(rows: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Return how many times our rate is that of each other way, and its p99 ours; of our protocols the faster one.

    Once with the runtime that the others use, once with the one that `tune` finds the faster on such a machine.

    Each of both with ``value``, ``low`` and ``high``, see :func:`serving_figures.ranged`.
    """
    found = []
    for row in rows:
        case = (row["kind"], row["in_flight"])
        if not row["way"].startswith("ours"):
            for server in OURS:
                same = [one for one in rows if (one["kind"], one["in_flight"]) == case]
                beside = [one for one in same if one["way"].startswith(f"{server},")]
                if beside:
                    ours = max(beside, key=lambda one: one["rate"])
                    compared = {"way": row["way"], "ours": ours["way"], "kind": case[0], "in_flight": case[1]}
                    found.append({**compared, **ranged(partial(times, ours, row), rounds)})
    return found


def times(ours: dict[str, Any], theirs: dict[str, Any], of: Of) -> dict[str, float]:
    """Return by what factor ours is better."""
    return {"rate": of(ours, "rate") / of(theirs, "rate"), "p99": of(theirs, "p99_ms") / of(ours, "p99_ms")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=default_environments(), metavar="DIR")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="with whom (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each side in each round")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--anyway", action="store_true", help="keep the result though other programs are busy")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    busy = cores_busy(options.json, options.anyway)
    pythons = {name: environment(options.environments, name, say) for name in options.peer or PEERS}
    with tempfile.TemporaryDirectory() as folder:
        given = prepare(Path(folder))
        every = [way for way in ways(given) if way.server in OURS or way.server in pythons]
        best = search(given, pythons, every, min(0.6, options.seconds), say)
        rows = compare(given, pythons, every, best, options.rounds, options.seconds, say)
        mean_bytes = statistics.mean(photo.stat().st_size for photo in given.photos)
    result = {
        "machine": describe_machine().to_json(),
        "busy_cores_before": busy,
        "network": NETWORK,
        "photo_bytes": mean_bytes,
        "peers": {name: PEERS[name] for name in pythons},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "rows": rows,
        "ratios": ratios(rows, options.rounds),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in result["ratios"]:
        against = f"{row['ours']} / {row['way']}, {row['kind']}, {row['in_flight']} in flight"
        print(f"{against:<60} rate {row['rate']['value']:.2f}x, p99 {row['p99']['value']:.2f}x")


if __name__ == "__main__":
    main()
