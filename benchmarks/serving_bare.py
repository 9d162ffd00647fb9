"""The parts of serving without a server, in one process, for `serving.py`: reads wishes and answers them, as JSON.

Each wish is a line: ``{"do": "infer" | "decode" | "both", "file": ..., "dtype": ..., "threads": ..., "callers": ...,
"batch": ..., "spinning": ..., "seconds": ...}``, with ``"runtime"`` where that is not ONNX Runtime. The answer has
images a second, the median ms of a call and the ms of CPU for each image. Decoding is one thread's: for more, more of
these processes are asked at once, as servers do it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.images.preprocessing import load_pixels, normalize
from regnet_deploy.runtimes.runtime import Runtime, Session, open_onnx


class Spinning:
    """A session as ONNX Runtime opens it by default: its threads spin while they wait."""

    def __init__(self, file: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the logits."""
        logits: np.ndarray = self._session.run(None, {self._input: images})[0]
        return logits


@cache
def session_of(
    file: str, threads: int, number: int, spinning: bool, runtime: Runtime, callers: int
) -> Session | Spinning:
    """Return a session, opened once for each number."""
    if spinning:
        return Spinning(file, threads)
    return open_onnx(Path(file).read_bytes(), threads=threads, device="cpu", runtime=runtime, callers=callers)


def session_for(wish: dict[str, Any], number: int) -> Session | Spinning:
    """Return the session of a caller: with several threads each, sessions that are shared get in each other's way."""
    own = wish["threads"] > 1
    callers, runtime = 1 if own else wish["callers"], wish.get("runtime", "auto")
    return session_of(wish["file"], wish["threads"], number if own else 0, wish["spinning"], runtime, callers)


def repeated(calls: list[Callable[[int], int]], seconds: float) -> dict[str, float]:
    """Call each function again and again in a thread of its own; they return how many images they did."""
    done: list[list[tuple[float, int]]] = [[] for _ in calls]
    start = threading.Barrier(len(calls) + 1)

    def work(number: int, call: Callable[[int], int]) -> None:
        call(0)
        start.wait()
        end, turn = time.perf_counter() + seconds, 0
        while (began := time.perf_counter()) < end:
            images = call(turn)
            done[number].append((time.perf_counter() - began, images))
            turn += 1

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    start.wait()
    began, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    took, used = time.perf_counter() - began, time.process_time() - used
    images = sum(n for one in done for _, n in one)
    calls_ms = np.sort([1000 * seconds for one in done for seconds, _ in one])
    return {"rate": images / took, "p50_ms": float(calls_ms[len(calls_ms) // 2]), "cpu_ms": 1000 * used / images}


def infer(wish: dict[str, Any]) -> dict[str, float]:
    """Run the network on noise."""
    random = np.random.default_rng(0)
    batch = wish["batch"]
    pixels = random.integers(0, 256, (batch, wish["side"], wish["side"], 3), dtype=np.uint8)
    images = pixels if wish["dtype"] == "uint8" else random.standard_normal((batch, 3, *pixels.shape[1:3]), np.float32)

    def caller(number: int) -> Callable[[int], int]:
        session = session_for(wish, number)
        return lambda turn: len(session.run(images))

    return repeated([caller(number) for number in range(wish["callers"])], wish["seconds"])


def decode(wish: dict[str, Any]) -> dict[str, float]:
    """Decode, resize and crop photographs, and normalize them where the network does not."""
    preprocessing = Preprocessing.from_json(wish["preprocessing"])
    photos = [Path(photo).read_bytes() for photo in wish["photos"]]

    def call(turn: int) -> int:
        pixels = load_pixels(photos[turn % len(photos)], preprocessing)
        if wish["dtype"] == "float32":
            normalize(pixels[None], preprocessing)
        return 1

    return repeated([call], wish["seconds"])


def both(wish: dict[str, Any]) -> dict[str, float]:
    """Decode a photograph and run the network on it, one after the other: what lies in caches is neither's alone."""
    preprocessing = Preprocessing.from_json(wish["preprocessing"])
    photos = [Path(photo).read_bytes() for photo in wish["photos"]]

    def caller(number: int) -> Callable[[int], int]:
        session = session_for(wish, number)

        def call(turn: int) -> int:
            pixels = load_pixels(photos[(turn + number) % len(photos)], preprocessing)[None]
            return len(session.run(pixels if wish["dtype"] == "uint8" else normalize(pixels, preprocessing)))

        return call

    return repeated([caller(number) for number in range(wish["callers"])], wish["seconds"])


def main() -> None:
    print(json.dumps({"url": ""}), flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        print(json.dumps({"infer": infer, "decode": decode, "both": both}[wish["do"]](wish)), flush=True)


if __name__ == "__main__":
    main()
