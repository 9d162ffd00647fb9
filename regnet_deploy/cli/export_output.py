"""What ``export`` tells of its result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from regnet_deploy.cli.output import print_message, print_table, stdout_console

if TYPE_CHECKING:
    from regnet_deploy.exporting.export import ExportResult

#: Files that are named of those that cannot be used.
_NAMED = 10


def print_golden_set(exported: ExportResult, *, measured: bool) -> None:
    """Say, to stderr, what was proved on, and which variants do not count as proved.

    Args:
        exported: what came of it.
        measured: whether validation images were given.
    """
    golden = exported.golden
    line = f"golden set: {golden['images']} images ({golden['source']})"
    if golden["source"] == "seeded noise":
        line += "; nothing is trained yet, so the weights are seeded too and the logits mean nothing"
    elif golden["images"] < 16:
        line += "; 16 or more prove more"
    print_message(line)
    if measured:
        _say_accuracy(exported)
    if exported.left_out:
        print_message(f"{len(exported.left_out)} files of --images could not be used:")
        for reason in exported.left_out[:_NAMED]:
            print_message(f"  {reason}")
    for name, variant in exported.made.items():
        if any(not proof["standard"] for proof in _proofs(variant)):
            print_message(
                f"{name} is held to a looser gate than {variant['precision']} has: it does not count as proved and is "
                f"served only with --variant {name}"
            )


def _say_accuracy(exported: ExportResult) -> None:
    """Say how good the model itself is on the images on which variants may lose."""
    accuracy = exported.made["onnx-fp32"].get("accuracy")
    if accuracy:
        print_message(
            f"the model answers {accuracy['reference_top1']:.2%} of {accuracy['images']:,} validation images right"
        )


def export_json(exported: ExportResult) -> dict[str, Any]:
    """Return the result as JSON data."""
    return {
        "golden": exported.golden,
        "variants": exported.made,
        "choice": exported.choice,
        "refused": {name: str(error) for name, error in exported.refused.items()},
        "bundle": str(exported.bundle.path),
    }


def print_export(exported: ExportResult) -> None:
    """Print what was made, and what was chosen from, as tables."""
    columns = (
        "variant",
        "runtime",
        "input",
        "proved on",
        "MiB",
        "max |logit error|",
        "mean, of spread",
        "same top-1",
        "top-1 lost",
    )
    rows = [row for name, variant in exported.made.items() for row in _rows(name, variant)]
    print_table(f"Exported to {exported.bundle.path}", columns, rows, left=4)
    console = stdout_console()
    for name, variant in exported.made.items():
        for note in _notes(variant):
            console.print(f"{name}: {note}", soft_wrap=True, markup=False)
    if exported.choice is not None:
        _print_choice(exported.choice)


def _rows(name: str, variant: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for made in variant.get("engines", [variant])[-1:]:
        proof, accuracy = made["proof"], made.get("accuracy")
        figures = ("not proved", f"{made['bytes'] / 2**20:.1f}", "-", "-", "-")
        if proof:
            figures = (
                f"{proof['runtime']}, {proof['device']}" + ("" if proof["standard"] else ", loosely"),
                f"{made['bytes'] / 2**20:.1f}",
                f"{proof['max_abs_error']:.2g}",
                f"{proof['relative_error']:.2%}",
                f"{proof['top1_agreement']:.0%}",
            )
        yield (name, variant["runtime"], variant["input"], *figures, _lost(accuracy))


def _lost(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "-"
    return f"{accuracy['drop']:.2f} ({accuracy['low']:.2f} to {accuracy['high']:.2f})"


def _print_choice(choice: dict[str, Any]) -> None:
    batches = choice["batches"]
    columns = ("candidate", "result", "why", *(f"ms (images/s), batch {batch}" for batch in batches))
    rows = []
    for one in choice["candidates"]:
        medians = {row["batch"]: f"{row['p50_ms']:.2f} ({row['images_per_second']:,.0f})" for row in one["latency"]}
        rows.append((one["variant"], one["result"], one["reason"], *(medians.get(batch, "-") for batch in batches)))
    cpu = f"{choice['machine']['cpu']}, {choice['cpu_instructions']}"
    print_table(
        f"Chosen by median latency (mean over the batches) and at most {choice['max_drop']:g} points lost, on {cpu}",
        columns,
        rows,
        left=3,
    )


def _notes(variant: dict[str, Any]) -> list[str]:
    return [one["note"] for one in variant.get("engines", [variant])[-1:] if one["note"]]


def _proofs(variant: dict[str, Any]) -> list[dict[str, Any]]:
    return [one["proof"] for one in variant.get("engines", [variant])[-1:] if one["proof"]]
