"""Gives the weights of the demo's network away as a file of torchvision, and takes that file as a stranger would.

Import, evaluation on a test set, fine-tuning for other classes, export, a plain ONNX file, and a server; every step is
checked against the one before. `make demo` runs it after demo/demo.py, whose bundle and images it uses.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from typing import Any

from letters import FONTS, SIZES, write_letters
from steps import BUNDLE, FOLDER, classify, run, say, served, show, typed

FILE = "digits.pth"
IMPORTED = "imported"
#: Least share of the letters of the test set that must be right after fine-tuning.
TARGET = 0.85
#: Runs model.py as if the modules that it must not need were not installed.
_ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("regnet_deploy", "torch", "onnx")))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_NEXT = """
With weights of your own:

  regnet-deploy import FILE -o my-bundle          # or a name, hf:OWNER/NAME
  regnet-deploy evaluate my-bundle --data imagenet/val --expect
  regnet-deploy train my-bundle --data my-images  # where the classes are yours
  regnet-deploy export my-bundle --data my-images
  regnet-deploy serve my-bundle

docs/weights.md says what is recognized, what is assumed, and how to check it."""


def check(holds: bool, what: str) -> None:
    """End the demo if something does not hold."""
    if not holds:
        sys.exit(f"demo: {what}")


def accuracy(figures: dict[str, Any]) -> str:
    """Return an accuracy with its interval."""
    top1, images = figures["top1"], figures["images"]
    return f"{top1['value']:.2%} of {images} test images right (95 %: {top1['low']:.2%} to {top1['high']:.2%})"


def give_away() -> float:
    """Write the weights of the first part as a file of torchvision; return their accuracy on the test set."""
    measured = json.loads(run("evaluate", BUNDLE, "--data", "digits", "--split", "test", "--json", quiet=True))
    model = measured["variants"]["model"]
    say(accuracy(model))
    run("export-weights", BUNDLE, "--to", "torchvision", "-o", FILE, quiet=True)
    say(f"{FILE}: {(FOLDER / FILE).stat().st_size / 2**20:.1f} MiB, with the names of torchvision")
    return float(model["top1"]["value"])


def take(expected: float) -> None:
    """Import the file, and check that network, weights and accuracy are those that were given away."""
    (FOLDER / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8")
    told = ("--labels", "labels.txt", "--resolution", "32", "--resize", "32", "--stem-stride", "1")
    made = json.loads(run("import", FILE, "-o", IMPORTED, *told, "--json", quiet=True))
    network = made["architecture"]
    first, second = (json.loads((FOLDER / name / "bundle.json").read_bytes())["files"] for name in (BUNDLE, IMPORTED))
    equal = first["weights.safetensors"]["sha256"] == second["weights.safetensors"]["sha256"]
    check(equal, "the imported weights are not those that were given away")
    depths, widths = (" ".join(map(str, network[name])) for name in ("depths", "widths"))
    say(f"{network['name']} of {made['imported']['source']}: depths {depths}, widths {widths}; equal to the byte")
    percent = f"{100 * expected:.2f}"
    arguments = ("evaluate", IMPORTED, "--data", "digits", "--split", "test", "--expect", percent, "--json")
    model = json.loads(run(*arguments, quiet=True))["variants"]["model"]
    check(model["top1"]["value"] == expected, f"{accuracy(model)}, and not {percent} % as before")
    say(f"{percent} %, as before: the preprocessing and the order of the classes are right")


def fine_tune() -> None:
    """Fine-tune the imported weights for other classes, and export the network."""
    counts = write_letters(FOLDER / "letters")
    show(f"Other classes: six letters. {counts['train']} images, and {counts['test']} to test with, in other fonts.")
    run("train", IMPORTED, "--data", "letters", "--epochs", "12", quiet=True)
    training = json.loads((FOLDER / IMPORTED / "bundle.json").read_bytes())["parts"]["training"]
    best, probe = training["best"], training["probe"]
    say(
        f"linear probe {probe['val_top1']:.2%}, epoch {best['epoch']} {best['val_top1']:.2%} of {best['val_images']} "
        f"validation images right, in {training['seconds']:.0f} s"
    )
    run("export", IMPORTED, "--data", "letters", "--seconds", "1", "-o", "model.onnx", quiet=True)
    about = json.loads((FOLDER / "model.json").read_bytes())
    proof = about["proof"]
    say(
        f"{about['variant']} is the fastest in ONNX Runtime that keeps the accuracy; model.onnx: {proof['images']} "
        f"golden images replayed, mean |logit error| {proof['relative_error']:.2%} of the spread of the logits"
    )


def measure() -> None:
    """Measure all variants on the test set."""
    arguments = ("evaluate", IMPORTED, "--data", "letters", "--variant", "all", "--csv", "answers.csv", "--json")
    variants = json.loads(run(*arguments, quiet=True))["variants"]
    for name, figures in variants.items():
        say(f"{name}: {accuracy(figures)}")
    check(variants["model"]["top1"]["value"] >= TARGET, f"fewer than {TARGET:.0%} of the test images are right")


def answers_of(variant: str) -> dict[str, tuple[str, float]]:
    """Return what `evaluate` said of each test image: answer and probability of a variant."""
    with open(FOLDER / "answers.csv", newline="", encoding="utf-8") as file:
        return {
            row["image"]: (row[f"{variant}:answer"], float(row[f"{variant}:probability"]))
            for row in csv.DictReader(file)
        }


def run_alone() -> None:
    """Run the program beside the plain file on some images, without this program and without PyTorch."""
    answers = answers_of(json.loads((FOLDER / "model.json").read_bytes())["variant"])
    images = [image for image in answers if image.endswith(f"/{FONTS['test'][0]}-{SIZES[-1]}.png")]
    named = [f"letters/{image}" for image in images]
    show(f"$ python model.py letters/test/*/{FONTS['test'][0]}-{SIZES[-1]}.png")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[:1] = ['model.py']{_ALONE}", *named],
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    check(len(images) > 1 and done.returncode == 0, f"model.py failed: {done.stderr}")
    said = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    for image in images:
        label, share = next((label, share) for path, label, share in said if path == f"letters/{image}:")
        answer, probability = answers[image]
        near = abs(float(share.rstrip("%")) - 100 * probability) < 0.1
        check(label == answer and near, f"model.py says {label} {share} of {image}, and evaluate {answer}")
    say(f"{len(images)} images: the answers of `evaluate`, by onnxruntime alone")


def ask() -> None:
    """Serve the network, and compare its answers to all test images."""
    with served(IMPORTED, quiet=True) as url:
        with urllib.request.urlopen(f"{url}/card", timeout=30) as response:
            variant = json.load(response)["models"][0]["variant"]
        answers = answers_of(variant)
        shown = list(answers)[len(answers) // 2]
        show(typed("curl", "--data-binary", f"@letters/{shown}", f"{url}/classify?k=3"))
        said = {image: classify(url, FOLDER / "letters" / image)["predictions"] for image in answers}
    different = [image for image, (label, _) in answers.items() if said[image][0]["label"] != label]
    check(not different, f"the server answers {', '.join(different)} differently from `evaluate`")
    first = ", ".join(f"{each['label']} {each['probability']:.1%}" for each in said[shown])
    say(f"{first}; all {len(answers)} test images get the answers of `evaluate` by {variant}")


def main() -> None:
    """Run the walk."""
    start = time.perf_counter()
    check((FOLDER / BUNDLE).is_dir(), "run demo/demo.py first")
    for name in (IMPORTED, f"{IMPORTED}.training", "letters"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    show("Weights of others: the same network, as a file of torchvision and back")
    take(give_away())
    fine_tune()
    measure()
    run_alone()
    ask()
    print(_NEXT)
    print(f"\nThis took {time.perf_counter() - start:.0f} s; everything is in {FOLDER.name}/.")


if __name__ == "__main__":
    main()
