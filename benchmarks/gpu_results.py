"""The result file of a GPU, and its tables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gpu_ways import PRECISIONS, Setting

from regnet_deploy.profiling.machine import describe_machine

SCHEMA = 1
#: Fields that identify a measurement.
_KEY = ("network", "way", "precision", "batch")
#: Fields that are equal for the ways of a unit.
_UNIT = ("network", "precision", "batch")
#: Description of the measurement in the file.
_MEASURED = (
    "FP32 images (n, 3, h, w) in the device's memory to logits there, with what a way converts them to; p50 of the "
    "ways in turns; untrained weights; PyTorch with torch.backends.cudnn.benchmark, ONNX Runtime with "
    "cudnn_conv_algo_search EXHAUSTIVE; TensorRT by engines of exactly the batch size"
)


class Results:
    """Rows in a file that is complete after every change."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.path, self._document = path, document

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, measured or failed."""
        return self._document["rows"]

    def has(self, network: str, way: str, precision: str, batch: int) -> bool:
        """Return whether this was measured, or failed, before."""
        return any(tuple(row[key] for key in _KEY) == (network, way, precision, batch) for row in self.rows)

    def begin(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write what is measured now, so that the next process knows it if this one crashes."""
        self._document["running"] = list(rows)
        self._write()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows and write the file."""
        self.rows.extend(rows)
        self._document.pop("running", None)
        self._write()

    def set_apart(self, row: dict[str, Any]) -> None:
        """Mark the unit of a row: its ways are measured one by one from now on, because one of them fails in turns."""
        self._document.setdefault("apart", []).append([row[key] for key in _UNIT])
        self._document.pop("running", None)
        self._write()

    def is_apart(self, row: dict[str, Any]) -> bool:
        """Return whether the ways of a row's unit are measured one by one."""
        return [row[key] for key in _UNIT] in self._document.get("apart", ())

    def bury(self) -> str | None:
        """Record the measurement that crashed an earlier process, and return a line about it, or None."""
        running = self._document.get("running")
        if not running:
            return None
        names = ", ".join(row["way"] for row in running)
        if len(running) == 1:
            self.add([{**running[0], "failed": "it ended the process"}])
        else:
            self.set_apart(running[0])
        return f"{names} ended the process at {_unit_of(running[0])}"

    def note(self, name: str, value: Any) -> None:
        """Write a value beside the rows."""
        self._document[name] = value
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(self._document, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.path)


def open_results(path: Path, setting: Setting, seconds: float, *, retry: bool) -> Results:
    """Open the file of this machine, or create it.

    Args:
        path: the file.
        setting: where it is measured.
        seconds: measured for each way and batch size.
        retry: forget what failed, so that it is tried again.

    Raises:
        SystemExit: the file is of another machine, other versions or another time, or none that this program wrote.
    """
    gpu = None if setting.gpu is None else asdict(setting.gpu)
    cudnn = torch.backends.cudnn.version() if setting.device == "cuda" else None
    machine = describe_machine().to_json()
    where = {
        "schema": SCHEMA,
        "measured": _MEASURED,
        "machine": machine,
        "gpu": gpu,
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn},
        "timm": _version("timm"),
        "seconds": seconds,
    }
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return Results(path, {**where, "rows": []})
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = _deciding({name: document[name] for name in where})
        rows = document["rows"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemExit(
            f"gpu.py: {path} is not a file that this program wrote: move it away, or give --output"
        ) from None
    wanted = _deciding(json.loads(json.dumps(where)))
    differs = [name for name in wanted if found[name] != wanted[name]]
    if differs:
        raise SystemExit(
            f"gpu.py: {path} was measured with another {' and '.join(differs)}: move it away, or give --output FILE"
        )
    if retry:
        document["rows"] = [row for row in rows if "failed" not in row]
    return Results(path, document)


def _deciding(where: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that can change a measurement on a GPU, without memory, kernel, cores and Python version."""
    machine, gpu = where["machine"], where["gpu"]
    return {
        **where,
        "machine": {key: machine[key] for key in ("cpu", "versions")},
        "gpu": gpu and {key: value for key, value in gpu.items() if key != "memory_bytes"},
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def file_name(gpu: str) -> str:
    """Return the file name of a GPU: ``NVIDIA H100 80GB HBM3`` is ``gpu_nvidia-h100-80gb-hbm3.json``."""
    return f"gpu_{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the tables: throughput by group width and precision, and the comparison with timm."""
    measured = [row for row in rows if "failed" not in row]
    tables = [*_group_tables(measured), *_timm_table(measured)]
    failed = [row for row in rows if "failed" in row]
    if failed:
        tables.append("\n".join(["Failed:", *(f"  {_named(row)}: {row['failed']}" for row in failed)]))
    return "\n\n".join(tables) if tables else "nothing was measured yet"


def _group_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table for each way and batch size, in GMACs per second (images/s of a network with one GMAC)."""
    tables = []
    grouped = [row for row in rows if row["kind"] in ("groups", "tiny")]
    for way in dict.fromkeys(row["way"] for row in grouped):
        for batch in sorted({row["batch"] for row in grouped if row["way"] == way}):
            here = [row for row in grouped if (row["way"], row["batch"]) == (way, batch)]
            rates = {
                (row["group_widths"][-1], row["precision"]): row["images_per_second"] * row["gmacs"] for row in here
            }
            precisions = [name for name in PRECISIONS if any(key[1] == name for key in rates)]
            lines = [
                [str(width), *(f"{rates[width, name]:,.1f}" if (width, name) in rates else "-" for name in precisions)]
                for width in sorted({width for width, _ in rates})
            ]
            title = f"{way}, batch {batch}: images/s x GMACs of an image, by group width and precision"
            tables.append(_table(title, ["group width", *precisions], lines))
    return tables


def _timm_table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the speed relative to timm's model, for networks of which both were measured in turns."""
    speed = {tuple(row[key] for key in _KEY): row["images_per_second"] for row in rows}
    lines = []
    for (network, way, precision, batch), theirs in speed.items():
        ours = speed.get((network, way.replace("timm-", "torch-"), precision, batch))
        if way.startswith("timm-") and ours is not None:
            how = way.removeprefix("timm-")
            lines.append(
                [network, how, precision, str(batch), f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"]
            )
    columns = ["network", "torch", "precision", "batch", "ours, images/s", "timm, images/s", "ratio"]
    return [_table("Beside timm's model of the same name", columns, lines)] if lines else []


def _unit_of(row: dict[str, Any]) -> str:
    return f"{row['network']}, {row['precision']}, batch {row['batch']}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['network']}, {row['way']}, {row['precision']}, batch {row['batch']}"


def _table(title: str, columns: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in [columns, *lines]
    ]
    return "\n".join([title, *text])
