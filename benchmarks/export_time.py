"""Measures the time to export a network to ONNX, for this package and the two exporters of torch, in turns.

This package is timed from the weights in memory to the file in the bundle (graph, bytes, sha256, sync to disk), torch
from the model in memory to the file on disk, both without imports and proofs. The default exporter of torch needs ``pip
install onnxscript``.

    python benchmarks/export_time.py
    python benchmarks/export_time.py --network RegNetX-4.0GF --repetitions 5 --json export_time.json
"""

import argparse
import importlib.util
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import onnx
import torch

from regnet_deploy.bundle import create_bundle, update_bundle
from regnet_deploy.exporting.onnx_graph import build_onnx
from regnet_deploy.images.preprocessing import default_preprocessing
from regnet_deploy.models.anynet import AnyNet
from regnet_deploy.profiling.machine import describe_machine
from regnet_deploy.space.published import find_published

CLASSES = 1000


def ours(model, network, preprocessing, folder):
    bundle = create_bundle(folder / "bundle", {}, replace=True)
    start = time.perf_counter()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    stored = update_bundle(bundle.path, {}, {"onnx-fp32.onnx": build_onnx(network, weights, preprocessing)})
    return time.perf_counter() - start, stored.stored_path("onnx-fp32.onnx")


def torch_default(model, images, folder):
    target = folder / "default.onnx"
    start = time.perf_counter()
    batch = {0: torch.export.Dim("batch")}
    with redirect_stdout(io.StringIO()):  # it reports its steps
        torch.onnx.export(model, (images,), target, dynamo=True, dynamic_shapes=(batch,), external_data=False)
    return time.perf_counter() - start, target


def torchscript(model, images, folder):
    target = folder / "torchscript.onnx"
    start = time.perf_counter()
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model, (images,), target, dynamo=False, opset_version=18, dynamic_axes=axes, input_names=["images"],
        output_names=["logits"],
    )  # fmt: skip
    return time.perf_counter() - start, target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="RegNetY-4.0GF", help="name of a published network")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    if importlib.util.find_spec("onnxscript") is None:
        parser.error("torch's default exporter is not complete: pip install onnxscript")
    logging.disable(logging.WARNING)  # it misses torchvision, which this network does not use
    published = find_published(options.network)
    preprocessing = default_preprocessing(published.resolution)
    model = AnyNet(published.network, CLASSES, seed=0).eval()
    # Two images: torch.export would take a batch of one for a constant.
    images = torch.randn(2, 3, published.resolution, published.resolution)
    exporters = {
        "regnet-deploy": lambda folder: ours(model, published.network, preprocessing, folder),
        "torch.onnx (dynamo, default)": lambda folder: torch_default(model, images, folder),
        "torch.onnx (TorchScript)": lambda folder: torchscript(model, images, folder),
    }
    seconds, sizes, opsets = ({name: [] for name in exporters} for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own exporters
        for _ in range(options.repetitions):
            for name, export in exporters.items():
                taken, file = export(Path(folder))
                seconds[name].append(taken)
                sizes[name].append(file.stat().st_size)
                opsets[name].append(onnx.load(file).opset_import[0].version)
    rows = [
        {
            "exporter": name,
            "median_s": statistics.median(seconds[name]),
            "all_s": seconds[name],
            "bytes": sizes[name][-1],
            "opset": opsets[name][-1],
        }
        for name in exporters
    ]
    print(f"{published.name}, {published.macs / 1e9:.2f} GMACs, {options.repetitions} repetitions in turns")
    print(f"{'exporter':<30}{'median s':>10}{'MiB':>8}{'opset':>7}")
    for row in rows:
        print(f"{row['exporter']:<30}{row['median_s']:>10.2f}{row['bytes'] / 2**20:>8.1f}{row['opset']:>7}")
    machine = describe_machine()
    print(f"{machine.cpu}, {machine.cores} cores, torch {torch.__version__}, onnx {onnx.__version__}")
    if options.json:
        document = {"network": published.name, "macs": published.macs, "rows": rows, "machine": machine.to_json()}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
