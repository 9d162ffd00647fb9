"""How often the gate of INT8 refuses a good file, and how often it misses a broken one, by the number of classes.

    python benchmarks/golden_gate.py                        # about 5 minutes on 2 cores
    python benchmarks/precision_page.py                     # writes the table into docs/precision.md

The networks are small, seeded and not trained: their batch norms have the statistics of scikit-learn's digits, and
their residual branches count for a tenth. Their linear layer is trained by cross-entropy on labels that a drawn layer
gives, with the distribution of the network's real features. So the logits of an image sum to 0, as after training, and
some images lie near the border between two classes. The files are those that `export` writes. Good files have the best
of the calibrated ranges; broken ones are the same with one fault, which is drawn:

- zero point: one activation is dequantized with a zero point that is 4 to 64 steps away;
- channel: a half to a 32nd of the output channels of one convolution have weights of 0;
- scale: the range of one activation is 2 to 16 times too narrow, so that large values saturate.

A fault is harmful where it changes the first class of at least 10 % more of all test images than the good file does.
Golden sets of 16 are drawn from the test images; the figures are shares of pairs of a file and a golden set.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from precision import BRANCH, digits
from torch import nn

from regnet_deploy.bundle.variants import Gate
from regnet_deploy.exporting.activation_ranges import METHODS, compute_ranges, observe_activations
from regnet_deploy.exporting.emulation import emulate
from regnet_deploy.exporting.model_source import ModelSource
from regnet_deploy.exporting.precision import PRECISIONS, Precision
from regnet_deploy.exporting.quantization import TensorRange
from regnet_deploy.images.preprocessing import default_preprocessing, normalize
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.runtimes.gates import GATES
from regnet_deploy.runtimes.golden_set import compare
from regnet_deploy.runtimes.runtime import open_onnx
from regnet_deploy.space.network import Network

SIDE = 32
FITTED, CALIBRATED, TESTED = 600, 300, 400
#: Of the training of the linear layer: steps, samples of each, learning rate.
STEPS, SAMPLES, RATE = 200, 1000, 0.02
CLASSES = (2, 4, 10, 100, 1000)
KINDS = ("zero point", "channel", "scale")
#: Faults of each kind in each file; golden sets of each file, and their size; share of changed first classes that
#: harms.
FAULTS, SETS, GOLDEN, HARM = 5, 200, 16, 0.10
NETWORKS = {
    "X": Network((1, 2, 2), (16, 32, 64), (8, 8, 16), (1.0,) * 3, stem_stride=2, stem_width=16),
    "Y": Network((1, 2, 2), (16, 32, 64), (8, 8, 16), (1.0,) * 3, se_ratio=0.25, stem_stride=2, stem_width=16),
}
PRECISION_NAMES = ("int8-cpu", "int8")
#: The gate of earlier versions, with the cosine of the worst image. Its mean stands apart: a gate without one counts
#: every changed first class of which the logits differed by more than a hundredth of the spread, as they did.
EARLIER, EARLIER_MEAN = Gate(cosine=0.95, top1=0.9), 0.15
RESULT = Path(__file__).parent / "results" / "golden_gate.json"


@dataclass(frozen=True, eq=False)
class File:
    """Logits ``(n, classes)`` of one file on the test images and their reference, and its fault; "" in a good one."""

    precision: str
    fault: str
    logits: np.ndarray
    reference: np.ndarray

    @property
    def changed(self) -> float:
        """Share of test images whose first class changes."""
        return float((self.logits.argmax(axis=1) != self.reference.argmax(axis=1)).mean())


def network_and_features(network: Network, seed: int, images: torch.Tensor) -> tuple[AnyNet, np.ndarray]:
    """Return a seeded network whose batch norms know the images, and their features ``(n, width)``."""
    model = AnyNet(network, 2, seed=seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            if name.endswith("c_bn"):
                nn.init.constant_(module.weight, BRANCH)
    found: list[torch.Tensor] = []
    with torch.no_grad():
        model.train()
        model(images)
        model.eval()
        hook = model.head.avg_pool.register_forward_hook(lambda module, given, out: found.append(out.flatten(1)))
        model(images)
        hook.remove()
    return model, found[0].double().numpy()


def with_head(model: AnyNet, features: np.ndarray, classes: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the weights with a linear layer that is trained by cross-entropy on labels that a drawn layer gives.

    It is trained on samples from the normal distribution of the features, so that each of 1,000 classes has some.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0).mean()
    values, vectors = np.linalg.eigh(np.cov(features.T) / deviation**2)
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    drawn = random.normal(size=(classes, len(mean)))
    weight = torch.zeros(drawn.shape, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=RATE)
    for _ in range(STEPS):
        samples = random.normal(size=(SAMPLES, len(mean))) @ factor
        labels = torch.from_numpy((samples @ drawn.T).argmax(axis=1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(torch.from_numpy(samples.astype(np.float32)) @ weight.T, labels).backward()
        optimizer.step()
    found = weight.detach().double().numpy() / deviation
    found -= found.mean(axis=0)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return {
        **weights,
        "head.fc.weight": found.astype(np.float32),
        "head.fc.bias": (-found @ mean).astype(np.float32),
    }


def moved_zero_point(data: bytes, random: np.random.Generator) -> bytes:
    """Return the file where one activation is dequantized with another zero point than it was quantized with."""
    model = onnx.load_from_string(data)
    constants = {one.name: one for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in constants]
    node = nodes[random.integers(len(nodes))]
    value = numpy_helper.to_array(constants[node.input[2]])
    limits = np.iinfo(value.dtype)
    steps = int(2 ** random.integers(2, 7)) * (1 if int(value) < (limits.max + limits.min) / 2 else -1)
    node.input[2] += ".moved"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(int(value) + steps, value.dtype), node.input[2]))
    return model.SerializeToString()


def dropped_channels(data: bytes, random: np.random.Generator) -> bytes:
    """Return the file with weights of 0 in some output channels of one convolution."""
    model = onnx.load_from_string(data)
    kernels = [one for one in model.graph.initializer if one.name.endswith(".weight") and len(one.dims) == 4]
    one = kernels[random.integers(len(kernels))]
    value = numpy_helper.to_array(one).copy()
    count = max(1, len(value) // int(2 ** random.integers(1, 6)))
    value[random.choice(len(value), count, replace=False)] = 0
    one.CopyFrom(numpy_helper.from_array(value, one.name))
    return model.SerializeToString()


def narrow_ranges(ranges: dict[str, TensorRange], random: np.random.Generator) -> dict[str, TensorRange]:
    """Return the ranges with one of them too narrow."""
    name = sorted(ranges)[random.integers(len(ranges))]
    factor = 2.0 ** random.integers(1, 5)
    return {**ranges, name: TensorRange(ranges[name].low / factor, ranges[name].high / factor)}


def run(data: bytes, precision: Precision, images: np.ndarray) -> np.ndarray:
    """Return the logits of a file, computed as it is proved."""
    exact = precision.tensorrt_only
    session = open_onnx(emulate(data, precision) if exact else data, device="cpu", exact=exact)
    return np.concatenate([session.run(images[i : i + 50]) for i in range(0, len(images), 50)])


def files_of(network: Network, seed: int, classes: int, pixels: np.ndarray) -> list[File]:
    """Return the good and the broken files of a network with a drawn head."""
    preprocessing = default_preprocessing(SIDE)
    random = np.random.default_rng((seed, classes))
    model, features = network_and_features(network, seed, torch.from_numpy(normalize(pixels[:FITTED], preprocessing)))
    weights = with_head(model, features, classes, random)
    source = ModelSource(model, network, weights, preprocessing, {})
    calibration, tested = pixels[FITTED : FITTED + CALIBRATED], pixels[FITTED + CALIBRATED :][:TESTED]
    fp32 = source.onnx(PRECISIONS["fp32"])
    observed = observe_activations(fp32, source.activation_names(), calibration, preprocessing)
    images = normalize(tested, preprocessing)
    reference = run(fp32, PRECISIONS["fp32"], images)
    files = []
    for name in PRECISION_NAMES:
        precision = PRECISIONS[name]
        made = {method: compute_ranges(observed, method) for method in METHODS}
        errors = {
            method: np.abs(run(source.onnx(precision, found), precision, images) - reference).mean()
            for method, found in made.items()
        }
        ranges = made[min(errors, key=lambda method: errors[method])]  # as the export chooses
        good = source.onnx(precision, ranges)
        broken = [(kind, fault) for kind in KINDS for fault in range(FAULTS)]
        for kind, _ in [("", 0), *broken]:
            data = good
            if kind == "zero point":
                data = moved_zero_point(good, random)
            elif kind == "channel":
                data = dropped_channels(good, random)
            elif kind == "scale":
                data = source.onnx(precision, narrow_ranges(ranges, random))
            files.append(File(name, kind, run(data, precision, images), reference))
    return files


def refused_shares(file: File, random: np.random.Generator) -> tuple[float, float]:
    """Return the shares of drawn golden sets on which the earlier gate and the present one refuse a file."""
    earlier, present = 0, 0
    for _ in range(SETS):
        rows = random.choice(len(file.logits), GOLDEN, replace=False)
        reference, logits = file.reference[rows], file.logits[rows]
        before = compare(reference, logits, EARLIER)
        earlier += not before.passed or before.relative_error > EARLIER_MEAN
        present += not compare(reference, logits, GATES[file.precision]).passed
    return earlier / SETS, present / SETS


def measure(classes: int, pixels: np.ndarray, seeds: int) -> dict[str, Any]:
    """Return the row of a number of classes."""
    good, harmful, faults = [], [], 0
    errors, changed = [], []
    random = np.random.default_rng(classes)
    for network in NETWORKS.values():
        for seed in range(seeds):
            files = files_of(network, seed, classes, pixels)
            for precision in PRECISION_NAMES:
                whole, *broken = [file for file in files if file.precision == precision]
                figures = compare(whole.reference, whole.logits, Gate())
                errors.append(figures.relative_error)
                changed.append(whole.changed)
                good.append(refused_shares(whole, random))
                faults += len(broken)
                harmful += [refused_shares(one, random) for one in broken if one.changed >= whole.changed + HARM]
    row = {"files": len(good), "mean_error": [min(errors), max(errors)], "changed": [min(changed), max(changed)]}
    row |= {"faults": faults, "harmful": len(harmful)}
    for number, gate in enumerate(("earlier", "present")):
        row[gate] = {
            "refused_good": float(np.mean([shares[number] for shares in good])),
            "missed_harmful": float(np.mean([1 - shares[number] for shares in harmful])),
        }
    return row


def main() -> None:
    """Measure every number of classes, print the rows and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, action="append", help="only this number (may be repeated)")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each kind")
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    pixels = digits()[0][:, ::2, ::2]
    rows = {}
    for classes in options.classes or CLASSES:
        rows[str(classes)] = row = measure(classes, pixels, options.seeds)
        print(classes, json.dumps(row), flush=True)
    machine = describe_machine().to_json()
    result = {"golden": GOLDEN, "harm": HARM, "sets": SETS, "machine": machine, "classes": rows}
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
