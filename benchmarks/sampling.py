"""Measures how many random draws a second become networks with exact complexity: this package against a loop.

    python benchmarks/sampling.py [--json FILE]

The loop is plain Python over the same formulas, draw by draw: random parameters in the paper's ranges of RegNetX, the
quantized line block by block, the check for four stages without a skipped level, widths fitted to groups, and MACs,
parameters and activations in closed form. Invalid draws count on both sides.

Both run on one core (the process is pinned to it if the system supports it), in turns; the results are the medians and
their ratio. Before the measurement, the loop gets the parameters that the package draws, and networks and counts of
both must be equal. The last figure is the time for 500 distinct AnyNetX_A with 360 to 400 MMACs at 224 pixels, s.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np

from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.space.known_spaces import known_spaces
from regnet_deploy.space.sampling import CHUNK, Band, draw_networks, networks_in_band, propose

SPACE = known_spaces()["RegNetX"]
BAND = Band(0, 1e15)  # of all complexities
RESOLUTION, CLASSES, STEM, STAGES = 224, 1000, 32, 4
ROUNDS, CHUNKS, LOOPED = 9, 24, 3000
POPULATION, SEEDS = 500, 5


def log_uniform(rng: random.Random, low: float, high: float, step: float) -> float:
    start = math.log(low - min(step, low / 2))
    drawn = math.exp(start + (1 - rng.random()) * (math.log(high) - start))
    return max(low, math.ceil(drawn / step - 1e-9) * step)


def draw(rng: random.Random) -> tuple[int, int, float, float, int, int]:
    """Return d, w_0, w_a, w_m, b and g."""
    return (
        rng.randint(1, 63),
        int(log_uniform(rng, 8, 248, 8)),
        log_uniform(rng, 8, 255.9, 0.1),
        log_uniform(rng, 1.5, 3, 0.001),
        rng.choice((1, 2, 4)),
        rng.choice((1, 2, 4, 8, 16, 32)),
    )


def looped(d: int, w_0: int, w_a: float, w_m: float, b: int, g: int) -> tuple[object, ...] | None:
    """Return depths, widths, group widths, MACs, parameters and activations, or None for what is no network."""
    widths: list[int] = []
    depths: list[int] = []
    highest = 0
    for j in range(d):
        level = round(math.log((w_0 + w_a * j) / w_0) / math.log(w_m))
        width = round(w_0 * w_m**level / 8) * 8
        highest = max(highest, level)
        if widths and widths[-1] == width:
            depths[-1] += 1
        else:
            widths.append(width)
            depths.append(1)
    if len(widths) != STAGES or len(widths) != highest + 1:
        return None
    fitted, groups = [], []
    for width in widths:
        inner = max(1, int(width / b))
        group = min(g, inner)
        fitted.append(max(group, round(inner / group) * group) * b)
        groups.append(group)
    side = (RESOLUTION - 1) // 2 + 1
    macs, parameters, activations = 27 * STEM * side**2, 27 * STEM + 2 * STEM, STEM * side**2
    before = STEM
    for depth, width, group in zip(depths, fitted, groups, strict=True):
        inner = width // b
        for block in range(depth):
            side_in, side = side, (side - 1) // 2 + 1 if block == 0 else side
            grouped, last = 9 * inner * group, inner * width
            macs += before * inner * side_in**2 + (grouped + last) * side**2
            parameters += before * inner + grouped + last + 4 * inner + 2 * width
            activations += inner * side_in**2 + (inner + width) * side**2
            if block == 0:
                macs += before * width * side**2
                parameters += before * width + 2 * width
                activations += width * side**2
            before = width
    macs += before * CLASSES + CLASSES
    parameters += before * CLASSES + CLASSES
    return tuple(depths), tuple(fitted), tuple(groups), macs, parameters, activations + CLASSES


def check() -> int:
    """Compare both sides on the parameters of one chunk; return how many networks there were."""
    rng = np.random.default_rng((0, 0))
    parts = (SPACE.d, SPACE.w_0, SPACE.w_a, SPACE.w_m, SPACE.bottleneck, SPACE.group_width)
    d, w_0, w_a, w_m, b, g = (part.draw(rng, (CHUNK,)).tolist() for part in parts)
    rows = zip(map(int, d), map(int, w_0), w_a, w_m, map(int, b), map(int, g), strict=True)
    theirs = [made for made in (looped(*row) for row in rows) if made is not None]
    drawn = networks_in_band(SPACE, propose(SPACE, np.random.default_rng((0, 0)), CHUNK), BAND)
    stages = ([tuple(row) for row in table.tolist()] for table in (drawn.depths, drawn.widths, drawn.group_widths))
    counts = (column.tolist() for column in (drawn.macs, drawn.parameters, drawn.activations))
    if list(zip(*stages, *counts, strict=True)) != theirs:
        raise SystemExit("the two sides do not give the same networks and counts")
    return len(theirs)


def time_ours(number: int) -> float:
    """Return draws a second."""
    start = time.perf_counter()
    for i in range(CHUNKS):
        networks_in_band(SPACE, propose(SPACE, np.random.default_rng((number, i)), CHUNK), BAND)
    return CHUNKS * CHUNK / (time.perf_counter() - start)


def time_loop(number: int) -> float:
    """Return draws a second."""
    rng = random.Random(number)
    start = time.perf_counter()
    for _ in range(LOOPED):
        looped(*draw(rng))
    return LOOPED / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    machine = describe_machine()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    same = check()
    print(f"{SPACE.name}: both sides give the same {same:,} networks and counts for the same {CHUNK:,} draws")
    ours, loop = [], []
    for number in range(ROUNDS):
        ours.append(time_ours(number))
        loop.append(time_loop(number))
    median_ours, median_loop = statistics.median(ours), statistics.median(loop)
    ratios = [one / other for one, other in zip(ours, loop, strict=True)]
    print(f"{'':<24}{'draws/s':>12}{'networks/s':>12}")
    for name, rate in (("regnet-deploy", median_ours), ("loop in plain Python", median_loop)):
        print(f"{name:<24}{rate:>12,.0f}{rate * same / CHUNK:>12,.0f}")
    print(f"ratio {median_ours / median_loop:,.0f} ({min(ratios):,.0f} to {max(ratios):,.0f} in {ROUNDS} rounds)")
    seconds = []
    for seed in range(SEEDS):
        start = time.perf_counter()
        draw_networks(known_spaces()["AnyNetX_A"], POPULATION, Band(360e6, 400e6), seed)
        seconds.append(time.perf_counter() - start)
    print(
        f"{POPULATION} distinct AnyNetX_A of 360 to 400 MMACs: {statistics.median(seconds):.3f} s (median of {SEEDS})"
    )
    print(f"{machine.cpu}, one core of {machine.cores}, numpy {np.__version__}")
    if options.json:
        document = {
            "space": SPACE.name,
            "compared": {"draws": CHUNK, "networks": same},
            "rounds": ROUNDS,
            "draws_per_second": {"regnet-deploy": round(median_ours), "loop": round(median_loop)},
            "all_draws_per_second": {"regnet-deploy": [*map(round, ours)], "loop": [*map(round, loop)]},
            "ratio": round(median_ours / median_loop),
            "population": {"space": "AnyNetX_A", "n": POPULATION, "mmacs": [360, 400], "resolution": 224},
            "population_s": round(statistics.median(seconds), 3),
            "machine": machine.to_json(),
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
