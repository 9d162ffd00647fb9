"""Every precision of the published RegNets: size, build time, error, accuracy lost, latency on this CPU, RTX engines.

    python benchmarks/precision.py                          # 0.2 to 8 GMACs, X and Y: an hour on 2 cores
    python benchmarks/precision.py --network RegNetX-200MF --json one.json

The networks are not trained: their weights are seeded, their batch norms have seen the images, their residual branches
count for a tenth of what they would (with the full share a rounding error grows from block to block, which it does not
in trained networks), and their linear layer is fitted to scikit-learn's handwritten digits by ridge regression. That is
enough for answers that depend on every layer, and so for an accuracy that can be lost.
Errors are measured at 64 pixels; build times, sizes, engines and latencies at 224. A network that the result file has
is not measured again, and to a file of another CPU or another ONNX Runtime nothing is added.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from regnet_deploy.bundle import create_bundle, update_bundle
from regnet_deploy.bundle.engine_options import EngineOptions, rtx_capabilities
from regnet_deploy.bundle.manifest import Architecture, Preprocessing
from regnet_deploy.bundle.variants import Gate
from regnet_deploy.cpu import describe_int8_support
from regnet_deploy.engines.engine_builder import build_plan
from regnet_deploy.engines.inspection import check_types
from regnet_deploy.engines.library import find_library
from regnet_deploy.errors import MissingExtra, ProofError, RegnetDeployError, UsageError, did_you_mean
from regnet_deploy.exporting.activation_ranges import compute_ranges, observe_activations
from regnet_deploy.exporting.export import export
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.options import ExportOptions
from regnet_deploy.exporting.precision import PRECISIONS
from regnet_deploy.exporting.variant_choice import measure_candidates
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.models.weights import weights_to_bytes
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.progress import NoProgress, Progress
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network
from regnet_deploy.space.published import PublishedNetwork, published_networks

SIDE, DEPLOYED = 64, 224
FITTED, CALIBRATED, VALIDATED = 600, 400, 400
BRANCH, RIDGE, SCALE = 0.1, 1.0, 10.0
BATCHES = (1, 8)
RESULT = Path(__file__).parent / "results" / "precision.json"


@dataclass
class PrintedProgress(NoProgress):
    """Prints steps and messages with the seconds since ``start``."""

    start: float

    def step(self, description: str, total: float | None = None) -> None:
        """Print a step."""
        self.message(description)

    def message(self, line: str) -> None:
        """Print a line."""
        print(f"  {time.perf_counter() - self.start:6.1f} s  {line}", flush=True)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels ``(n, 64, 64, 3)`` and labels of scikit-learn's digits, in a seeded order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    small = (data.images / 16 * 255).astype(np.uint8)[order]
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large)[..., None].repeat(3, axis=3), data.target[order]


def fitted(network: Network, pixels: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing) -> nn.Module:
    """Return a seeded network whose batch norms and linear layer know the images."""
    model = AnyNet(network, 10, seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            if name.endswith("c_bn"):
                nn.init.constant_(module.weight, BRANCH)
    images = torch.from_numpy(normalize(pixels[:FITTED], preprocessing))
    with torch.no_grad():
        model.train()
        for part in images[:256].split(64):
            model(part)
        model.eval()
        found: list[torch.Tensor] = []
        hook = model.head.avg_pool.register_forward_hook(lambda module, given, out: found.append(out.flatten(1)))
        for part in images.split(100):
            model(part)
        hook.remove()
    features = torch.cat(found).double().numpy()
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    normal, wanted = (features - mean) / deviation, np.eye(10)[labels[:FITTED]] - 0.1
    gram = normal.T @ normal + RIDGE * len(normal) * np.eye(normal.shape[1])
    weight = SCALE * np.linalg.solve(gram, normal.T @ wanted) / deviation[:, None]
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.from_numpy(weight.T))
        model.head.fc.bias.copy_(torch.from_numpy(-mean @ weight))
    return model


def write_folder(root: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write calibration images as ``train`` and others as ``val``."""
    parts = {"train": (FITTED, CALIBRATED), "val": (FITTED + CALIBRATED, VALIDATED)}
    for subset, (start, count) in parts.items():
        for number in range(start, start + count):
            folder = root / subset / str(labels[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(folder / f"{number}.png")


def error_rows(network: Network, model: nn.Module, data: Path, folder: Path, progress: Progress) -> dict[str, dict]:
    """Return error figures and accuracy of every precision at 64 pixels."""
    architecture = Architecture.of(network, name="benchmark", classes=10, resolution=SIDE)
    parts = {"architecture": architecture, "preprocessing": default_preprocessing(SIDE).to_json()}
    bundle = create_bundle(folder / "bundle", parts).path
    update_bundle(
        bundle,
        {"labels": [str(digit) for digit in range(10)]},
        {"weights.safetensors": weights_to_bytes(model.state_dict())},
    )
    options = ExportOptions(
        precisions=tuple(PRECISIONS.values()),
        data=data,
        images=tuple(sorted((data / "val").glob("*/*.png"))[::7]),
        calibration_images=CALIBRATED,
        gates=dict.fromkeys(PRECISIONS, Gate()),
        max_drop=100.0,
    )
    result = export(bundle, options, progress)
    rows = {}
    for variant in result.variants.values():
        proof = variant["proof"]
        figures = ("max_abs_error", "mean_abs_error", "relative_error", "cosine", "top1_agreement")
        rows[variant["precision"]] = {
            **{name: proof[name] for name in figures},
            "accuracy": variant["accuracy"],
            "method": (variant.get("calibration") or {}).get("method"),
        }
    return rows


def deployed_rows(source: ModelSource, seconds: float, progress: Progress) -> dict[str, dict]:
    """Return build time, size, RTX engine and latency of every precision at 224 pixels."""
    images = np.random.default_rng(0).integers(0, 256, (8, DEPLOYED, DEPLOYED, 3), dtype=np.uint8)
    plain = source.onnx(PRECISIONS["fp32"])
    ranges = compute_ranges(
        observe_activations(plain, source.activation_names(), images, source.preprocessing), "minmax"
    )
    rows, sessions = {}, {}
    for precision in PRECISIONS.values():
        start = time.perf_counter()
        data = source.onnx(precision, ranges)
        rows[precision.name] = {"build_s": time.perf_counter() - start, "bytes": len(data), "latency": []}
        if precision.tensorrt_supported:
            progress.step(f"TensorRT-RTX: {precision.name}")
            rows[precision.name]["rtx"] = rtx_engine(source, precision, data)
        if not precision.tensorrt_only:
            entry = {"precision": precision.name}
            sessions[precision.name] = (open_onnx(data, device="cpu"), entry)
    progress.step("latency")
    for one in measure_candidates(sessions, BATCHES, seconds, default_preprocessing(DEPLOYED), progress):
        rows[one.name]["latency"] = [row.to_json() for row in one.latency]
    return rows


def rtx_engine(source: ModelSource, precision, data: bytes) -> dict:
    """Build an engine and say what it took and in which types it computes."""
    try:
        library = find_library(None, "tensorrt-rtx")
    except MissingExtra as error:
        return {"result": str(error)}
    options = EngineOptions(compute_capabilities=rtx_capabilities(precision.name))
    start = time.perf_counter()
    try:
        built = build_plan(library, None, data, DEPLOYED, options)
    except RegnetDeployError as error:
        return {"result": str(error)}
    made = {"library": str(library), "build_s": time.perf_counter() - start, "bytes": len(built.plan)}
    if built.layers is None:
        return {**made, "result": "built"}
    try:
        check_types(source.convolution_types(precision), built.layers)
    except ProofError as error:
        return {**made, "result": f"built; {error}"}
    return {**made, "result": "built as asked"}


def chosen_networks(names: list[str] | None) -> list[PublishedNetwork]:
    """Return the networks of the paper of these names, by default those of 0.2 to 8 GMACs.

    Raises:
        UsageError: there is none of a name.
    """
    known = {one.name: one for one in published_networks() if one.source.startswith("paper")}
    for name in names or ():
        if name not in known:
            raise UsageError(f"--network: no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return [one for name, one in known.items() if (name in names if names else one.macs <= 8.5e9)]


def kept(file: Path, machine: dict) -> dict:
    """Return what a result file has.

    Raises:
        UsageError: it was measured on another CPU or by another ONNX Runtime, so that its rows are of no other machine.
    """
    if not file.exists():
        return {}
    result = json.loads(file.read_text(encoding="utf-8"))
    for what in (lambda one: one["cpu"], lambda one: f"onnxruntime {one['versions'].get('onnxruntime')}"):
        then, now = what(result["machine"]), what(machine)
        if then != now:
            raise UsageError(f"{file} was measured with {then}, this is {now}: give another file with --json")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", help="names of published networks (default: 0.2 to 8 GMACs)")
    parser.add_argument("--part", choices=["errors", "deployed"], help="what is measured (default: both)")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured for each precision and batch size")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    machine = describe_machine().to_json()
    try:
        chosen, result = chosen_networks(options.network), kept(options.json, machine)
    except UsageError as error:
        parser.error(str(error))
    result |= {
        "machine": machine,
        "cpu_instructions": describe_int8_support(),
        "images": {"fitted": FITTED, "calibrated": CALIBRATED, "validated": VALIDATED},
        "branch": BRANCH,
    }
    parts = (options.part,) if options.part else ("errors", "deployed")
    pixels, labels = digits()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits"
        write_folder(data, pixels, labels)
        for part in parts:
            measured = result.setdefault(part, {})
            for one in chosen:
                if one.name in measured:
                    continue
                print(f"{one.name}: {part}", flush=True)
                progress = PrintedProgress(time.perf_counter())
                model = fitted(one.network, pixels, labels, default_preprocessing(SIDE))
                if part == "errors":
                    with tempfile.TemporaryDirectory() as folder:
                        measured[one.name] = error_rows(one.network, model, data, Path(folder), progress)
                else:
                    weights = {name: value.numpy() for name, value in model.state_dict().items()}
                    source = ModelSource(model, one.network, weights, default_preprocessing(DEPLOYED), {})
                    measured[one.name] = deployed_rows(source, options.seconds, progress)
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{options.json}: {', '.join(f'{part} of {len(result[part])} networks' for part in parts)}")


if __name__ == "__main__":
    main()
