"""Every way to run a network on this CPU, in turns, beside PyTorch and OpenVINO's own benchmark_app.

    python benchmarks/cpu_runtimes.py                       # three networks, batch 1 and 8: half an hour on 2 cores
    python benchmarks/cpu_runtimes.py --network RegNetX-200MF --batch 1 --seconds 1 --rounds 3 --json one.json

The networks are seeded and fitted to scikit-learn's digits as in ``benchmarks/precision.py``. The accuracy of each way
is measured at 64 pixels on digits that had no part in the fit or the calibration; the times at 224 pixels. The ways
take turns; each time is the median of a turn, each ratio is one within a round, and both are given as the median over
the rounds with the lowest and highest. benchmark_app runs in a process of its own in its turn, with its defaults for
latency: one image or batch after the other, on all cores, in the type that OpenVINO prefers, BF16 where the CPU has it.
It does not copy images or logits.

A piece that the result file has is not measured again: an accuracy, or the times of a network at a batch size. To a
file of another CPU or other versions nothing is added.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from precision import CALIBRATED, DEPLOYED, SIDE, chosen_networks, digits, fitted, write_folder

from regnet_deploy.bundle import create_bundle, update_bundle
from regnet_deploy.bundle.manifest import Architecture
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.cpu import available_cores, describe_int8_support
from regnet_deploy.cpu_load import OtherLoad
from regnet_deploy.errors import RegnetDeployError, UsageError
from regnet_deploy.exporting.activation_ranges import compute_ranges, observe_activations
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.profiling.latency import Runner, time_repeats, warm_up
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.profiling.runners import session_runner, torch_runner
from regnet_deploy.runtimes.openvino_session import bf16_unsupported_reason, open_by_openvino
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.published import PublishedNetwork

NETWORKS = ("RegNetX-200MF", "RegNetX-400MF", "RegNetX-1.6GF")
RESULT = Path(__file__).parent / "results" / "cpu_runtimes.json"
#: Versions that decide the times.
VERSIONS = ("onnxruntime", "openvino", "torch")
#: Precisions of the files that are written.
FILES = ("fp32", "fp16", "int8-cpu")
#: Runs benchmark_app without the converter, which reports its uses to its vendor.
APP = """
import sys
sys.modules["openvino.tools.ovc"] = sys.modules["openvino_telemetry"] = None
from openvino.tools.benchmark.main import main
main()
"""
#: Turns of a way whose time a call measures: takes seconds, returns the median in ms.
Turn = Callable[[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", help="names of published networks (default: three)")
    parser.add_argument("--batch", type=int, action="append", help="batch sizes (default: 1 and 8)")
    parser.add_argument("--part", choices=["accuracy", "times"], help="what is measured (default: both)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    machine = describe_machine().to_json()
    try:
        chosen, result = chosen_networks(options.network or list(NETWORKS)), kept(options.json, machine)
    except UsageError as error:
        parser.error(str(error))
    result |= {"machine": machine, "cpu_instructions": describe_int8_support()}
    accuracies, times = result.setdefault("accuracy", {}), result.setdefault("times", {})
    for one in chosen:
        if options.part != "times" and one.name not in accuracies:
            print(f"{one.name}: accuracy", flush=True)
            accuracies[one.name] = measure_accuracies(one)
            write(options.json, result)
        for batch in options.batch or (1, 8):
            measured = times.setdefault(one.name, {})
            if options.part != "accuracy" and str(batch) not in measured:
                print(f"{one.name}: batch {batch}", flush=True)
                measured[str(batch)] = measure_times(one, batch, options.seconds, options.rounds)
                write(options.json, result)
    print(f"{options.json}: {len(accuracies)} accuracies, {sum(map(len, times.values()))} tables of times")


def kept(file: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Return what a result file has.

    Raises:
        UsageError: it was measured on another CPU or with other versions, so that its rows are of no other machine.
    """
    if not file.exists():
        return {}
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    then, now = (
        ", ".join([one["cpu"], f"{one['cores']} cores", *(f"{name} {one['versions'].get(name)}" for name in VERSIONS)])
        for one in (result["machine"], machine)
    )
    if then != now:
        raise UsageError(f"{file} was measured with {then}, this is {now}: give another file with --json")
    return result


def write(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure_accuracies(one: PublishedNetwork) -> dict[str, Any]:
    """Return name of a variant -> its accuracy and errors, at 64 pixels, without limits."""
    pixels, labels = digits()
    model = fitted(one.network, pixels, labels, default_preprocessing(SIDE))
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits"
        write_folder(data, pixels, labels)
        architecture = Architecture.of(one.network, name=one.name, classes=10, resolution=SIDE)
        parts = {"architecture": architecture, "preprocessing": default_preprocessing(SIDE).to_json()}
        bundle = create_bundle(Path(temporary) / "bundle", parts).path
        weights = {"weights.safetensors": weights_to_bytes(model.state_dict())}
        update_bundle(bundle, {"labels": [str(digit) for digit in range(10)]}, weights)
        options = ExportOptions(
            precisions=tuple(PRECISIONS[name] for name in FILES),
            openvino=True,
            data=data,
            images=tuple(sorted((data / "val").glob("*/*.png"))[::7]),
            calibration_images=CALIBRATED,
            gates=dict.fromkeys(PRECISIONS, Gate()),
            max_drop=100.0,
            device="cpu",
        )
        variants = export(bundle, options).variants
    return {
        name: {"accuracy": variant.accuracy.to_json(), "relative_error": variant.proof.relative_error}
        for name, variant in variants.items()
    }


def measure_times(one: PublishedNetwork, batch: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return way -> medians of its turns, ms, at 224 pixels, and the cores that other programs took meanwhile."""
    preprocessing, cores = default_preprocessing(DEPLOYED), available_cores()
    model = AnyNet(one.network, 1000, seed=0).eval()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    source = ModelSource(model, one.network, weights, preprocessing, {})
    images = np.random.default_rng(0).integers(0, 256, (8, DEPLOYED, DEPLOYED, 3), dtype=np.uint8)
    names, plain = source.activation_names(), source.onnx(PRECISIONS["fp32"])
    ranges = compute_ranges(observe_activations(plain, names, images, preprocessing), "minmax")
    files = {name: source.onnx(PRECISIONS[name], ranges) for name in FILES}
    runners = [
        session_runner(open_onnx(data, device="cpu"), f"onnx-{name}", name, preprocessing, cores)
        for name, data in files.items()
    ]
    ways = {"openvino-fp32": ("fp32", "fp32"), "openvino-int8-cpu": ("int8-cpu", "fp32")}
    if bf16_unsupported_reason() is None:
        ways["openvino-bf16"] = ("fp32", "bf16")
    for name, (file, compute) in ways.items():
        session = open_by_openvino(files[file], threads=cores, compute=compute)
        runners.append(session_runner(session, name, compute, preprocessing, cores))
    torch.set_num_threads(cores)
    device = torch.device("cpu")
    runners += [torch_runner(model, device, preprocessing, cores, compiled=compiled) for compiled in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        turns: dict[str, Turn] = {}
        for runner in runners:
            name = runner.variant or ("torch compiled" if runner.runtime.endswith("compiled") else "torch eager")
            turns[name] = turn_of(runner, batch)
        for name in ("fp32", "int8-cpu"):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(files[name])
            turns[f"benchmark_app, {name} file"] = app_turn(path, batch)
        load, medians = OtherLoad(), {name: list[float]() for name in turns}
        for number in range(rounds):
            for name, turn in turns.items():
                medians[name].append(round(turn(seconds), 4))
            print(f"  round {number + 1}: " + ", ".join(f"{name} {one[-1]:.2f}" for name, one in medians.items()))
        return {"ms": medians, "seconds": seconds, "contended_cores": load.contended_cores()}


def turn_of(runner: Runner, batch: int) -> Turn:
    """Return the turns of a runner, warmed up."""
    inference = runner.prepare(batch)
    warm_up(inference)

    def turn(seconds: float) -> float:
        inference()  # not measured: caches are cold after the turn of another way
        return 1000 * statistics.median(time_repeats(inference, seconds, 2))

    return turn


def app_turn(file: Path, batch: int) -> Turn:
    """Return the turns of benchmark_app."""
    shape = f"[{batch},3,{DEPLOYED},{DEPLOYED}]"

    def turn(seconds: float) -> float:
        words = ["-m", str(file), "-d", "CPU", "-api", "sync", "-hint", "latency", "-shape", shape]
        command = [sys.executable, "-c", APP, *words, "-t", str(max(1, round(seconds)))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
        if found is None:
            raise RegnetDeployError(f"benchmark_app printed no median: {done.stdout[-300:]}")
        return float(found[1])

    return turn


if __name__ == "__main__":
    main()
