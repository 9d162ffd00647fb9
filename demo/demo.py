"""Runs the whole chain on real images: select, train, export, profile, verify, show, serve. Run it with `make demo`.

Every step is a command that works in the same way on your own images. Everything is written into ./demo-run.
demo/weights.py goes on with the network: it gives its weights away as a file, and imports that file.
"""

from __future__ import annotations

import json
import shutil
import sys
import time

from digits import write_digits
from steps import BUNDLE, FOLDER, classify, run, served, show

#: Least share of the validation images that the trained network must get right.
TARGET = 0.95


def main() -> None:
    """Run the whole chain."""
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    counts = write_digits(FOLDER / "digits")
    print(
        f"wrote {counts['train']} images of digits to train on, {counts['val']} to validate with and {counts['test']} "
        f"to test with to {FOLDER / 'digits'}"
    )
    run("select", "--gflops", "0.016", "--resolution", "32", "--classes", "10", "--group-multiple", "8", "-o", BUNDLE)
    run("train", BUNDLE, "--data", "digits", "--epochs", "12")
    run("export", BUNDLE, "--data", "digits", "--seconds", "1")
    run("profile", BUNDLE, "--batch", "1,8,32", "--seconds", "1")
    run("verify", BUNDLE)
    run("show", BUNDLE, "--html", "card.html")
    manifest = json.loads((FOLDER / BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    accuracy = manifest["parts"]["training"]["best"]["val_top1"]
    image = next((FOLDER / "digits" / "val" / "7").iterdir())
    with served(BUNDLE) as url:
        show(f"$ curl --data-binary @{image.relative_to(FOLDER)} '{url}/classify?k=3'")
        answer = classify(url, image)
    print(json.dumps(answer, indent=2))
    best = answer["predictions"][0]["label"]
    print(f"\nThe image shows a 7, the server says {best}. Validation top-1: {accuracy * 100:.2f} %.")
    print(f"Model card: {FOLDER / 'card.html'}. This took {time.perf_counter() - start:.0f} s.")
    if accuracy < TARGET:
        sys.exit(f"demo: validation top-1 is below {TARGET * 100:g} %")


if __name__ == "__main__":
    main()
