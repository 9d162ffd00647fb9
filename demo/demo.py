"""Runs the whole chain on real images: select, train, export, profile, verify, show, serve. Run it with `make demo`.

Every step is a command that works in the same way on your own images. Everything is written into ./demo-run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from digits import write_digits

FOLDER = Path(__file__).resolve().parents[1] / "demo-run"
BUNDLE = "digits-bundle"
#: Least share of the validation images that the trained network must get right.
TARGET = 0.97


def show(line: str) -> None:
    """Print a line, in bold on a terminal."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{line}{plain}", flush=True)


def command(*arguments: str) -> list[str]:
    """Print a command as the user types it, and return the arguments of its process."""
    show(f"$ regnet-deploy {shlex.join(arguments)}")
    return [sys.executable, "-m", "regnet_deploy", *arguments]


def run(*arguments: str) -> None:
    """Run a command of the pipeline; end the demo if it fails."""
    done = subprocess.run(command(*arguments), cwd=FOLDER)
    if done.returncode:
        sys.exit(f"demo: `regnet-deploy {shlex.join(arguments)}` failed with exit code {done.returncode}")


def ask_the_server(image: Path) -> dict[str, object]:
    """Start the server, send an image, stop the server, and return the response."""
    server = subprocess.Popen(
        command("serve", BUNDLE, "--port", "0", "--json"), cwd=FOLDER, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        if not first:
            sys.exit(f"demo: the server failed with exit code {server.wait()}")
        url = json.loads(first)["url"]
        show(f"$ curl --data-binary @{image.relative_to(FOLDER)} {url}/classify?k=3")
        request = urllib.request.Request(f"{url}/classify?k=3", data=image.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, object] = json.load(response)
            return answer
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    """Run the whole chain."""
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    counts = write_digits(FOLDER / "digits")
    print(f"wrote {counts['train']} training and {counts['val']} validation images of digits to {FOLDER / 'digits'}")
    run("select", "--gflops", "0.016", "--resolution", "32", "--classes", "10", "--group-multiple", "8", "-o", BUNDLE)
    run("train", BUNDLE, "--data", "digits", "--epochs", "12", "--no-flip", "--crop-area", "0.7", "--batch-size", "32")
    run("export", BUNDLE, "--data", "digits", "--seconds", "1")
    run("profile", BUNDLE, "--batch", "1,8,32", "--seconds", "1")
    run("verify", BUNDLE)
    run("show", BUNDLE, "--html", "card.html")
    manifest = json.loads((FOLDER / BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    accuracy = manifest["parts"]["training"]["best"]["val_top1"]
    image = next((FOLDER / "digits" / "val" / "7").iterdir())
    answer = ask_the_server(image)
    print(json.dumps(answer, indent=2))
    best = answer["predictions"][0]["label"]  # type: ignore[index]
    print(f"\nThe image shows a 7, the server says {best}. Validation top-1: {accuracy * 100:.2f} %.")
    print(f"Model card: {FOLDER / 'card.html'}. Everything took {time.perf_counter() - start:.0f} s.")
    if accuracy < TARGET:
        sys.exit(f"demo: validation top-1 is below {TARGET * 100:g} %")


if __name__ == "__main__":
    main()
