"""``regnet-deploy predict``: what do these images show?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.bundle import DEFAULT_PATH, MANIFEST, Bundle, open_bundle
from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, progress
from regnet_deploy.errors import DataError, MissingExtra, MissingPart, UsageError, require

if TYPE_CHECKING:
    from regnet_deploy.runtimes.predict_files import FilePrediction
    from regnet_deploy.runtimes.runtime import Device, Runtime, Session


@click.command()
@click.argument("paths", metavar="[BUNDLE] IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", type=click.IntRange(1), default=5, show_default=True, help="Classes to show for each image.")
@click.option("--variant", metavar="NAME", help="Exported variant to run.  [default: the fastest that is proved]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the cores this process may use]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="auto is cuda where onnxruntime-gpu and a GPU are there; tensorrt is ONNX Runtime's provider of TensorRT.",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "openvino"]),
    default="auto",
    show_default=True,
    help="Who runs it: tensorrt takes engines, the others ONNX variants; auto never takes openvino.",
)
@json_option
def command(
    paths: tuple[Path, ...],
    k: int,
    variant: str | None,
    threads: int | None,
    device: Any,
    runtime: Any,
    as_json: bool,
) -> None:
    """Classify images: files, or every file in a folder.

    Runs an exported variant; before anything has been exported, the weights by PyTorch. The first argument is the
    bundle, unless it is a file or a folder of images. An image that cannot be read is named, the others are answered,
    and the exit code is 2.

    \b
    Example:
      regnet-deploy predict regnet-bundle cat.jpg dog.png
      regnet-deploy predict cat.jpg -k 1 --json
    """
    from regnet_deploy.images.decode import SUFFIXES
    from regnet_deploy.images.preprocessing import Preprocessing
    from regnet_deploy.runtimes.bundle_reader import read_bundle
    from regnet_deploy.runtimes.predict_files import image_files, predict_files
    from regnet_deploy.runtimes.predictions import labels_of

    # os.path, for Path raises where a name is too long or a folder may not be read.
    folder_of_images = os.path.isdir(paths[0]) and not os.path.exists(paths[0] / MANIFEST)
    if os.path.isfile(paths[0]) or folder_of_images:
        bundle_path, given = Path(DEFAULT_PATH), paths
    elif paths[0].suffix.lower() in SUFFIXES and not os.path.exists(paths[0]):
        raise DataError(f"there is no image {paths[0]}: check its name (the bundle, if given, comes first)")
    else:
        bundle_path, given = paths[0], paths[1:]
    if not given:
        open_bundle(bundle_path)
        raise UsageError(f"no images given: regnet-deploy predict {bundle_path} IMAGE...")
    files = image_files(given)

    def load(bundle: Bundle) -> tuple[Bundle, Preprocessing, tuple[str, ...], str | None, Session]:
        preprocessing, labels = Preprocessing.from_json(bundle.part("preprocessing")), labels_of(bundle)
        return (bundle, preprocessing, labels, *_open(bundle, variant, threads, device, runtime))

    bundle, preprocessing, labels, name, session = read_bundle(bundle_path, load)
    answers: list[FilePrediction] = []
    with progress() as bar:
        task = bar.add_task("images", total=len(files), note="")
        for answer in predict_files(session, preprocessing, labels, files, k):
            answers.append(answer)
            bar.advance(task)
    if as_json:
        facts = {"bundle": str(bundle_path), "variant": name, "runtime": session.runtime, "device": session.device}
        print_json({**facts, "results": [answer.to_json() for answer in answers]})
    else:
        _show(answers)
        print_message(f"by {name or 'the weights'} of {bundle_path}, {session.runtime} on {session.device}")
    if not bundle.is_trained:
        print_message(f"{bundle_path} is not trained: its answers mean nothing yet")
    failed = [answer for answer in answers if answer.error is not None]
    for answer in failed:
        print_message(str(answer.error))
    if failed:
        raise DataError(f"{len(failed)} of {len(answers)} images could not be classified")


def _open(
    bundle: Bundle, variant: str | None, threads: int | None, device: Device, runtime: Runtime
) -> tuple[str | None, Session]:
    """Open the variant to run, or the weights where nothing has been exported."""
    from regnet_deploy.runtimes.default_variant import default_variant
    from regnet_deploy.runtimes.runtime import check_runtime, open_variant

    if variant is not None or bundle.parts.get("variants"):
        name = default_variant(bundle, variant, device, runtime)
        return name, open_variant(bundle, name, threads=threads, device=device, runtime=runtime)
    check_runtime(runtime, device)
    if runtime != "auto":
        raise MissingPart(
            f"--runtime {runtime} runs an exported variant, and {bundle.path} has none: run `regnet-deploy export "
            f"--onnx {bundle.path}` first"
        )
    if device not in ("auto", "cpu"):
        raise MissingPart(
            f"--device {device} runs an exported variant, and {bundle.path} has none: run `regnet-deploy export --onnx "
            f"{bundle.path}` first, or choose --device cpu"
        )
    try:
        require("torch", "train")
    except MissingExtra as error:
        raise MissingPart(f"{bundle.path} has nothing exported, and its weights need PyTorch - {error}") from None
    from regnet_deploy.models.torch_session import TorchSession

    return None, TorchSession(bundle)


def _show(answers: list[FilePrediction]) -> None:
    rows = []
    for answer in answers:
        for rank, prediction in enumerate(answer.predictions):
            rows.append((str(answer.path) if rank == 0 else "", prediction.label, f"{prediction.probability:.1%}"))
    if rows:
        print_table("", ("image", "label", "probability"), rows, left=2)
