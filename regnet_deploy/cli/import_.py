"""``regnet-deploy import``: makes a bundle of weights that another library trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import DEFAULT_PATH, ensure_creatable
from regnet_deploy.cli.options import Whole, json_option
from regnet_deploy.cli.output import print_json, print_message, print_text, terminal_progress
from regnet_deploy.errors import UsageError, require
from regnet_deploy.importing.layouts import SOURCES
from regnet_deploy.space.network import INPUT_CHANNELS

if TYPE_CHECKING:
    from regnet_deploy.bundle import Bundle


class Channels(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.5 on
    """One number for each of red, green and blue, or one for gray."""

    name = "r,g,b"

    def __init__(self, smallest: float = 0.0) -> None:
        """Take numbers from ``smallest`` to 1."""
        self.smallest = smallest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse ``0.485,0.456,0.406``, or ``0.449``."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in INPUT_CHANNELS:
            self.fail(
                f"{value!r} is not three numbers for red, green and blue such as 0.485,0.456,0.406, or one for gray",
                param,
                ctx,
            )
        if not all(self.smallest <= number <= 1 for number in numbers):  # nan is in no range
            self.fail(
                f"{value!r} holds a number that is not in the range {self.smallest:g}<=x<=1 (of pixels in 0..1)",
                param,
                ctx,
            )
        return numbers


@click.command()
@click.argument("named", metavar="[FILE]", default="")
@click.option(
    "--from",
    "source",
    type=click.Choice(SOURCES),
    metavar="LIBRARY",
    help=f"Library that wrote the file: {', '.join(SOURCES)}.  [default: recognized by the names of the tensors]",
)
@click.option(
    "--weights",
    "published",
    metavar="NAME",
    help="Which public weights FILE holds, as `regnet-deploy weights` lists them, or none.  [default: recognized by "
    "digest, place or name] Without FILE, they are downloaded.",
)
@click.option(
    "--channels",
    type=click.Choice(["rgb", "bgr"]),
    help="Order of the colors that the network takes.  [default: that of the library; pycls and mmpretrain: bgr]",
)
@click.option(
    "--stem-stride",
    type=Whole(1, 2),
    help="Stride of the first convolution, which the weights do not tell.  [default: 2]",
)
@click.option("--resolution", type=Whole(16, 2048), help="Width and height of the network's input, pixels.")
@click.option("--resize", type=Whole(16, 4096), help="Short side of the image before the central crop, pixels.")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="How images are resized.")
@click.option(
    "--antialias/--no-antialias",
    default=None,
    help="Whether images are resized with antialiasing, as Pillow does and OpenCV does not.  [default: as the library]",
)
@click.option("--mean", type=Channels(), help="Mean of the pixels in 0..1.  [default: that of ImageNet]")
@click.option(
    "--std", type=Channels(smallest=0.001), help="Deviation of the pixels in 0..1.  [default: that of ImageNet]"
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Class names, one a line or a JSON list.  [default: those of ImageNet for as many classes]",
)
@click.option("-o", "--output", type=click.Path(), default=DEFAULT_PATH, show_default=True, help="Bundle to write.")
@click.option("--force", is_flag=True, help="Replace the bundle even if it holds weights.")
@json_option
def command(named: str, output: str, force: bool, as_json: bool, **options: Any) -> None:
    """Make a bundle of a weight FILE of another library.

    Libraries are pycls, timm, torchvision, Classy Vision, SWAG, VISSL, transformers, mmpretrain, PaddleClas and
    pytorchcv. They are recognized by the names of the tensors, and the network is recovered from their shapes. FILE is
    safetensors, a file of torch.save or .pdparams of Paddle; nothing in it is executed. Public weights are recognized
    by their digest, place or name, and bring their preprocessing, license and published accuracy. What the file does
    not say is assumed, and printed.

    FILE can also be the name of public weights, hf:OWNER/NAME of the Hugging Face hub, or an http or https address: it
    is downloaded then, and an interrupted download continues. Caches of huggingface_hub and torch.hub are used.

    \b
    Example:
      regnet-deploy import regnet_y_400mf-e6988f5f.pth -o my-bundle
      regnet-deploy import hf:timm/regnety_016.tv2_in1k
      regnet-deploy import regnet_y_400mf.IMAGENET1K_V2
      regnet-deploy import model.safetensors --weights regnety_016.tv2_in1k
      regnet-deploy import checkpoint.pth --labels classes.txt --resolution 160
    """
    require("torch", "train")
    from regnet_deploy.importing.public_weights import find_weights

    if not named:
        if not options["published"]:
            raise UsageError(
                "give a file, hf:OWNER/NAME, an http or https address, or the name of public weights "
                "(`regnet-deploy weights`)"
            )
        named = find_weights(options["published"]).name
    import_named(named, output, force, as_json, options)


def import_named(named: str, output: str, force: bool, as_json: bool, options: dict[str, Any]) -> None:
    """Make a bundle of what a user names, and print it; ``options`` are those of ``ImportOptions``."""
    from regnet_deploy.importing.import_weights import ImportOptions, import_weights
    from regnet_deploy.importing.locate import locate_weights

    ensure_creatable(output, replace=force)
    with terminal_progress() as progress:
        located = locate_weights(named, progress)
    given = ImportOptions(**options)
    if given.published is None:
        given = replace(given, published=located.published)
    bundle = import_weights(located.file, output, given, location=located.location, replace_existing=force)
    origin = bundle.manifest.imported
    assert origin is not None  # it was just written
    if as_json:
        print_json(
            {
                "bundle": str(bundle.path),
                "architecture": bundle.architecture.to_json(),
                "preprocessing": bundle.preprocessing.to_json(),
                "imported": origin.to_json(),
            }
        )
    else:
        _print_bundle(bundle)
    for line in (*origin.remarks, *origin.assumptions, *filter(None, [origin.restriction])):
        print_message(line)
    if not bundle.manifest.labels:
        print_message(
            f"the {bundle.architecture.classes:,} classes have no names, by which folders of images are matched and "
            "requests are answered: --labels FILE gives them"
        )
    if origin.top1_percent is not None:
        print_message(
            f"to check the preprocessing on validation images of ImageNet: regnet-deploy evaluate{bundle.argument} "
            "--data DIR --expect"
        )
    print_message(f"wrote {bundle.path} - next: regnet-deploy export{bundle.argument}")


def _print_bundle(bundle: Bundle) -> None:
    architecture, origin = bundle.architecture, bundle.manifest.imported
    assert origin is not None
    network, pixels = architecture.network, bundle.preprocessing
    print_text(
        f"{architecture.name} of {origin.source}: depths {' '.join(map(str, network.depths))}, widths "
        f"{' '.join(map(str, network.widths))}, group widths {' '.join(map(str, network.group_widths))}, "
        f"{architecture.classes:,} classes."
    )
    print_text(
        f"Preprocessing: short side {pixels.resize}, center {pixels.crop} x {pixels.crop} pixels, "
        f"{pixels.interpolation} {'with' if pixels.antialias else 'without'} antialiasing."
    )
    if origin.published:
        accuracy = ""
        if origin.top1_percent is not None:
            accuracy = f", {origin.top1_percent:.2f} % top-1 on ImageNet ({origin.top1_setting})"
        print_text(f"Public weights: {origin.published}{origin.doubt}, license {origin.license}{accuracy}.")
