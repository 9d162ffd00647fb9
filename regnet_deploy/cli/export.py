"""``regnet-deploy export``: the network as ONNX and TensorRT, proved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import ensure_writable, open_bundle
from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import bundle_word, print_json, print_table, progress, say, stdout_console
from regnet_deploy.errors import require

if TYPE_CHECKING:
    from regnet_deploy.exporting.export import Exported


class Error(click.FloatRange):
    """How far a logit may be off: a finite number, 0 or more."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number, 0 or more", param, ctx)
        return number


@click.command()
@bundle_argument
@click.option(
    "--onnx", is_flag=True, help="Write the ONNX variant onnx-fp32; meant where neither this nor --trt is given."
)
@click.option(
    "--uint8", is_flag=True, help="Also onnx-fp32-uint8, which takes pixels and normalises them in the graph."
)
@click.option(
    "--trt", is_flag=True, help="Also a TensorRT engine, or one of TensorRT-RTX where only that is installed."
)
@click.option(
    "--images",
    multiple=True,
    metavar="DIR|FILE",
    type=click.Path(path_type=Path),
    help="Prove on these images of yours (may be repeated; of more than 64, 64 are taken evenly).",
)
@click.option(
    "--atol",
    type=Error(),
    default=1e-4,
    show_default=True,
    help="Absolute error allowed; at most 1% of how much the logits vary from image to image.",
)
@click.option("--rtol", type=Error(), default=1e-3, show_default=True, help="And relative to the logit.")
@click.option(
    "--max-batch", type=click.IntRange(1, 4096), default=32, show_default=True, help="Largest batch of the engine."
)
@json_option
def command(bundle_path: str, onnx: bool, as_json: bool, atol: float, rtol: float, **options: Any) -> None:
    """Export the network as ONNX, and as a TensorRT engine with --trt, and prove that they agree with the model.

    Proved on the golden set: images from the training data, or yours with --images, or seeded noise where nothing is
    trained yet. A variant whose logits do not agree is not added and the exit code is 3; one that was held to a looser
    tolerance than the default is only served when it is named. Where --trt cannot be had, the
    ONNX variant is still written, the last line says what is missing, and the exit code is 2.

    \b
    Example:
      regnet-deploy export --onnx
      regnet-deploy export my-bundle --uint8 --images holiday.jpg --images more-photos
      regnet-deploy export --trt --max-batch 64
    """
    ensure_writable(open_bundle(bundle_path))  # says what is missing before torch takes its seconds
    for module in ("torch", "safetensors", "onnx", "PIL"):
        require(module, "export")
    from regnet_deploy.exporting.export import Wish, export
    from regnet_deploy.serving.golden import Tolerance

    wish = Wish(tolerance=Tolerance(atol, rtol), **options)
    with progress() as display:
        task = display.add_task("export", total=None, note="")

        def step(what: str) -> None:
            display.update(task, description=what, total=None, note="")

        exported = export(bundle_path, wish, step, lambda steps, phase: display.update(task, note=f"{phase} ({steps})"))
    say(_golden_line(exported.golden))
    if exported.left_out:
        say(f"{len(exported.left_out)} files of --images could not be used:")
        for reason in exported.left_out[:10]:
            say(f"  {reason}")
    for name, variant in exported.made.items():
        if variant["proof"] and not variant["proof"]["standard"]:
            say(
                f"{name} is held to atol {variant['proof']['atol']:g}, rtol {variant['proof']['rtol']:g} only, looser "
                f"than {variant['precision']} has: it does not count as proved and is served only with --variant {name}"
            )
    if as_json:
        print_json({"golden": exported.golden, "variants": exported.made, "bundle": str(exported.bundle.path)})
    else:
        _print(exported)
    loose = [name for name, one in exported.made.items() if one["proof"] and not one["proof"]["standard"]]
    named = f" --variant {loose[0]}" if loose else ""
    say(f"wrote {exported.bundle.path} - next: regnet-deploy serve{bundle_word(exported.bundle.path)}{named}")
    missing = exported.missing_engine
    if missing is not None:
        raise type(missing)(f"{missing} (the ONNX variants are written)")


def _golden_line(golden: dict[str, Any]) -> str:
    line = f"golden set: {golden['images']} images ({golden['source']})"
    if golden["source"] == "seeded noise":
        line += "; nothing is trained yet, so the weights are seeded too and the logits mean nothing"
    elif golden["images"] < 16:
        line += "; 16 or more prove more"
    return line


def _print(exported: Exported) -> None:
    rows = []
    for name, variant in exported.made.items():
        proof = variant["proof"]
        figures = (
            (
                f"{proof['max_abs_error']:.2g}",
                f"{proof['top1_agreement']:.0%}",
                f"{proof['runtime']}, {proof['device']}" + ("" if proof["standard"] else ", loosely"),
            )
            if proof
            else ("-", "-", "not proved")
        )
        rows.append((name, variant["runtime"], variant["input"], f"{variant['bytes'] / 2**20:.1f}", *figures))
    print_table(
        f"Exported to {exported.bundle.path}",
        ("variant", "runtime", "input", "MiB", "max |logit error|", "same top-1", "proved on"),
        rows,
        left=3,
    )
    console = stdout_console()
    for name, variant in exported.made.items():
        if variant["note"]:
            console.print(f"{name}: {variant['note']}", soft_wrap=True)
