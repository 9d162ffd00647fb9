"""What is done to the server while it answers: decode processes killed, versions put, changed, spoilt and removed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds in which the server has to see what has changed: looks are half a second apart, and a proof takes little.
SEEN_S = 30.0


def kill_decoders(
    field: Any, books: Any, process: int, children_of: Callable[[int], list[int]], every_s: float
) -> None:
    """Kill one decode process after the other with SIGKILL."""
    draw = random.Random(1)
    while not field.stop.wait(every_s):
        decoders = [child for child in children_of(process) if _is_decoder(child)]
        if decoders:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(decoders), signal.SIGKILL)
                books.killed()


def _is_decoder(process: int) -> bool:
    try:
        return b"decode_worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


class Swaps:
    """Changes of the repository, one after the other; each is waited for."""

    def __init__(self, field: Any, repository: Path, worlds: Any, moving: str, in_place: str) -> None:
        self._field, self._repository, self._worlds = field, repository, worlds
        self._moving, self._in_place = moving, in_place
        self._number = 1
        self._content = 1
        self._in_place_version = 1

    def run(self, every_s: float) -> None:
        """Change something every so many seconds, until it is time to stop."""
        steps = [self._new_version, self._update, self._wrong_version, self._spoil, self._new_version, self._remove]
        step = 0
        while not self._field.stop.wait(every_s):
            steps[step % len(steps)]()
            step += 1

    def _new_version(self) -> None:
        self._number += 1
        bundle = self._worlds_bundle(self._number)
        self._worlds.put_version(bundle, self._folder(self._number), slowly=self._number % 2 == 0)
        self._expect("new version", self._moving, self._is(self._number, "READY"))

    def _wrong_version(self) -> None:
        """A version whose golden set disagrees, or whose network is cut off: refused, and taken away."""
        self._number += 1
        folder = self._folder(self._number)
        if self._number % 4 < 2:
            self._worlds.put_version(self._field.world.wrong, folder, slowly=False)
        else:
            hidden = folder.parent / f".{folder.name}"
            shutil.copytree(self._worlds_bundle(self._number), hidden)
            network = next(hidden.glob("*.onnx"))
            network.write_bytes(network.read_bytes()[:-100])
            hidden.rename(folder)
        self._expect("wrong version refused", self._moving, self._is(self._number, "UNAVAILABLE"))
        shutil.rmtree(folder)
        self._gone(self._number)

    def _remove(self) -> None:
        """Take the newest version away, and all others but the first, which clients ask for by its number."""
        for folder in sorted(self._repository.joinpath(self._moving).iterdir()):
            if folder.name != "1":
                shutil.rmtree(folder)
        self._gone(self._number)

    def _update(self) -> None:
        self._content += 1
        before = str(self._in_place_version)
        self._worlds.update_in_place(self._worlds_bundle(self._content), self._repository / self._in_place)
        entries = self._expect(
            "updated in place",
            self._in_place,
            lambda entries: [one["state"] for one in entries] == ["READY"] and entries[0]["version"] != before,
        )
        if entries:
            self._in_place_version = int(entries[0]["version"])
            self._sweep()

    def _spoil(self) -> None:
        """Spoil the manifest of a bundle that is served: it goes on as it was, and says why; then put it right."""
        manifest = self._repository / self._in_place / "bundle.json"
        right = manifest.read_bytes()
        (manifest.parent / ".spoilt").write_bytes(right[: len(right) // 2])
        os.replace(manifest.parent / ".spoilt", manifest)
        self._expect("spoilt refused", self._in_place, _is_ready(because=True))
        (manifest.parent / ".right").write_bytes(right)
        os.replace(manifest.parent / ".right", manifest)
        self._expect("put right", self._in_place, _is_ready(because=False))

    def _worlds_bundle(self, number: int) -> Path:
        bundles: list[Path] = self._field.world.bundles
        return bundles[number % len(bundles)]

    def _folder(self, number: int) -> Path:
        return self._repository / self._moving / str(number)

    def _sweep(self) -> None:
        """Delete the files of contents before this one."""
        folder = self._repository / self._in_place
        used = {path.name for path in self._worlds_bundle(self._content).iterdir()}
        for path in folder.iterdir():
            if path.name not in used:
                path.unlink()

    def _is(self, number: int, state: str) -> Callable[[list[Any]], bool]:
        return lambda entries: any((one["version"], one["state"]) == (str(number), state) for one in entries)

    def _expect(self, what: str, model: str, holds: Callable[[list[Any]], bool]) -> list[Any]:
        """Wait until the entries of a model in the repository's index are as they are to be, and return them."""
        give_up, entries = time.monotonic() + SEEN_S, []
        while time.monotonic() < give_up:
            entries = [entry for entry in self._index() if entry["name"] == model]
            if holds(entries):
                self._field.books.event(what)
                return entries
            time.sleep(0.1)
        self._field.books.fail(f"{what}: {model}: not within {SEEN_S:g} s: {entries}")
        return []

    def _gone(self, number: int) -> None:
        give_up = time.monotonic() + SEEN_S
        while time.monotonic() < give_up:
            if all(entry["version"] != str(number) for entry in self._index() if entry["name"] == self._moving):
                self._field.books.event("removed")
                return
            time.sleep(0.1)
        self._field.books.fail(f"removed: {number} is still there after {SEEN_S:g} s")

    def _index(self) -> list[Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._field.port, timeout=20)
        try:
            connection.request("POST", "/v2/repository/index")
            entries: list[Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._field.books.fail(f"index: {type(error).__name__} {error}")
            return []
        finally:
            connection.close()
        return entries


def _is_ready(*, because: bool) -> Callable[[list[Any]], bool]:
    """Hold that the one version is ready, with or without the reason why another was refused in its place."""
    return lambda entries: [(one["state"], bool(one["reason"])) for one in entries] == [("READY", because)]
