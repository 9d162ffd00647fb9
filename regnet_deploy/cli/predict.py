"""``regnet-deploy predict``: classifies image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.api.inference import open_classifier
from regnet_deploy.bundle import DEFAULT_PATH, MANIFEST, open_bundle
from regnet_deploy.cli.options import Whole, default_option, device_option, json_option, runtime_option, threads_type
from regnet_deploy.cli.output import print_json, print_message, print_table, terminal_progress
from regnet_deploy.errors import DataError, UsageError

if TYPE_CHECKING:
    from regnet_deploy.runtimes.classifier import FilePrediction

#: Of more images that cannot be read, each reason is shown once.
_LISTED = 10


@click.command()
@click.argument("paths", metavar="[BUNDLE] IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@default_option("-k", "--k", "k", type=Whole(1, 1_000_000), default=5, help="Classes to show for each image.")
@click.option("--variant", metavar="NAME", help="Exported variant to run.  [default: the fastest proved one]")
@click.option("--threads", type=threads_type(), help="CPU threads.  [default: all cores that this process may use]")
@device_option("auto: cuda if onnxruntime-gpu and a GPU are present. tensorrt: the TensorRT provider of ONNX Runtime.")
@runtime_option("tensorrt runs engines, the others run ONNX files; auto: the runtime that the variant is for.")
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
    """Classify images: files, or every image in a folder and its subfolders.

    Runs an exported variant, or the weights in PyTorch if nothing is exported yet. The first argument is the bundle,
    unless it is an image or a folder of images. If an image cannot be read, its error is shown, the other images are
    classified, and the exit code is 2.

    \b
    Example:
      regnet-deploy predict regnet-bundle cat.jpg dog.png
      regnet-deploy predict cat.jpg -k 1 --json
    """
    from regnet_deploy.images.dataset_summary import left_out_lines
    from regnet_deploy.images.decode import SUFFIXES
    from regnet_deploy.images.names import shortened
    from regnet_deploy.runtimes.classifier import find_image_files

    # os.path, for Path raises where a name is too long or a folder may not be read.
    folder_of_images = os.path.isdir(paths[0]) and not os.path.exists(paths[0] / MANIFEST)
    if os.path.isfile(paths[0]) or folder_of_images:
        bundle_path, given = Path(DEFAULT_PATH), paths
    elif paths[0].suffix.lower() in SUFFIXES and not os.path.exists(paths[0]):
        raise DataError(f"there is no image {paths[0]}: check its name (the bundle, if given, comes first)")
    else:
        bundle_path, given = paths[0], paths[1:]
    if not given:
        raise UsageError(f"no images given: regnet-deploy predict{open_bundle(bundle_path).argument} IMAGE...")
    for path in given:
        if str(path).startswith(("http:/", "https:/")):
            raise UsageError(f"{path} is an address, and addresses are not read: download the image first")
    found = find_image_files(given)
    files = found.files
    classifier = open_classifier(bundle_path, variant=variant, device=device, runtime=runtime, threads=threads)
    session = classifier.session
    for line in left_out_lines("left out", found.left_out):
        print_message(line)
    answers: list[FilePrediction] = []
    with terminal_progress() as progress:
        progress.step("images", len(files))
        for answer in classifier.predict_files(files, k=k):
            answers.append(answer)
            progress.update(len(answers))
    if as_json:
        used = {"variant": classifier.variant, "runtime": session.runtime, "device": session.device}
        print_json({"bundle": str(bundle_path), **used, "results": [answer.to_json() for answer in answers]})
    else:
        _show(answers)
        name = f"variant {classifier.variant}" if classifier.variant else "the weights"
        print_message(f"{name} of {bundle_path}, {session.runtime} on {session.device}")
    if classifier.note:
        print_message(classifier.note)
    if not classifier.trained:
        print_message(f"{bundle_path} is not trained: predictions are meaningless")
    blank = [str(answer.path) for answer in answers if answer.one_color]
    if blank:
        print_message(
            f"in {len(blank):,} of {len(answers):,} images the network sees one color, so the answer says nothing "
            f"(blank or transparent all over, or of 16 bits with few levels): {shortened(blank, 3)}"
        )
    failed = [answer for answer in answers if answer.error is not None]
    if len(failed) > _LISTED:
        reasons = {str(answer.path): str(answer.error).removeprefix(f"{answer.path}: ") for answer in failed}
        for line in left_out_lines("could not be classified", reasons):
            print_message(line)
    else:
        for answer in failed:
            print_message(str(answer.error))
    if failed:
        raise DataError(f"{len(failed)} of {len(answers)} images could not be classified")


def _show(answers: list[FilePrediction]) -> None:
    rows = []
    for answer in answers:
        for rank, prediction in enumerate(answer.predictions):
            rows.append((str(answer.path) if rank == 0 else "", prediction.label, f"{prediction.probability:.1%}"))
    if rows:
        print_table("", ("image", "label", "probability"), rows, left=2)
