"""``regnet-deploy export-weights``: writes the weights of a bundle for another library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import print_json, print_message
from regnet_deploy.errors import require
from regnet_deploy.importing.layouts import TARGETS

if TYPE_CHECKING:
    from regnet_deploy.bundle import Bundle


@click.command()
@bundle_argument
@click.option("--to", "target", required=True, type=click.Choice(TARGETS), help="Library that will load the weights.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(),
    help="File to write: .safetensors, or .pth for a file of torch.save.",
)
@json_option
def command(bundle_path: str, target: str, output: str, as_json: bool) -> None:
    """Write the weights of a BUNDLE with the names of another library, which loads them with strict=True.

    The weights of pycls take the channels of an image as blue, green, red, as its loader gives them. The input is
    normalized as `regnet-deploy show` says.

    \b
    Example:
      regnet-deploy export-weights my-bundle --to timm -o my-net.safetensors
      regnet-deploy export-weights --to torchvision -o my-net.pth
    """
    require("torch", "train")
    from regnet_deploy.bundle import open_bundle
    from regnet_deploy.importing.export_weights import export_weights

    bundle = open_bundle(bundle_path)
    file = export_weights(bundle, target, output)
    architecture = bundle.architecture
    if as_json:
        print_json(
            {
                "file": str(file),
                "library": target,
                "architecture": architecture.to_json(),
                "preprocessing": bundle.preprocessing.to_json(),
                "labels": list(bundle.labels),
            }
        )
    print_message(f"wrote {file}: {architecture.name} with {architecture.classes:,} classes for {target}")
    read = " (`import` reads it in the file)" if file.suffix == ".safetensors" else ""
    print_message(f"who loads it with {target} has to know{read}: {_unsaid(bundle, target)}")


def _unsaid(bundle: Bundle, target: str) -> str:
    """Return what a program that loads the weights must know besides them."""
    pixels = bundle.preprocessing
    colors = "gray" if pixels.channels == 1 else "RGB"
    mean, deviation = (" ".join(f"{number:g}" for number in numbers) for numbers in (pixels.mean, pixels.std))
    said = (
        f"images are resized to a short side of {pixels.resize} pixels ({pixels.interpolation}), and their center of "
        f"{pixels.crop} x {pixels.crop} is normalized with mean {mean} and deviation {deviation} of {colors} in 0..1"
    )
    if pixels.channels == 1:
        said += f"; the stem takes one channel, where {target} builds networks of RGB"
        said += " without in_chans=1" * (target == "timm")
    elif target == "pycls":
        said += "; the channels come as blue, green, red"
    if bundle.architecture.network.stem_stride != 2:
        said += (
            f"; the stem has stride {bundle.architecture.network.stem_stride}, where {target} builds networks with 2: "
            "set that of its first convolution"
        )
    return said
