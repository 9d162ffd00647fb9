"""Prints the result of ``export``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from regnet_deploy.bundle.record import to_json
from regnet_deploy.bundle.variants import EngineVariant, OpenvinoVariant
from regnet_deploy.cli.output import print_message, print_table, print_text

if TYPE_CHECKING:
    from regnet_deploy.bundle.manifest import Choice
    from regnet_deploy.bundle.variants import Accuracy, Engine, OnnxVariant, Variant
    from regnet_deploy.exporting.plain_file import PlainFile
    from regnet_deploy.exporting.state import ExportResult


def print_golden_set(result: ExportResult, *, validated: bool) -> None:
    """Print to stderr which images the variants were compared on, and which variants do not count as proved.

    Args:
        result: of the export.
        validated: whether validation images were given.
    """
    from regnet_deploy.images.dataset_summary import left_out_lines

    golden = result.golden
    line = f"golden set: {golden.images} images ({golden.source})"
    if golden.source == "seeded noise" and result.bundle.is_trained:
        line += "; --images DIR or --data DIR proves the variants on real images"
    elif golden.source == "seeded noise":
        line += "; the network is not trained, so its weights are random and its logits have no meaning"
    elif golden.images < 16:
        line += "; 16 or more images make a stronger proof"
    print_message(line)
    accuracy = _files(result.variants["onnx-fp32"])[-1].accuracy
    if validated and accuracy:
        print_message(
            f"the model classifies {accuracy.reference_top1:.2%} of {accuracy.images:,} validation images correctly"
        )
    for line in left_out_lines("of --images could not be used", result.skipped_images):
        print_message(line)
    for name, variant in result.variants.items():
        if passed_looser_gate(variant):
            print_message(
                f"{name} passed a looser gate than that of {variant.precision}: it does not count as proved and is "
                f"served only with --variant {name}"
            )


def passed_looser_gate(variant: Variant) -> bool:
    """Tell whether the exported file passed a gate that is looser than that of its precision."""
    return any(one.proof is not None and not one.proof.standard for one in _files(variant))


def export_json(result: ExportResult) -> dict[str, Any]:
    """Return the result as JSON data."""
    return {
        "golden": result.golden.to_json(),
        "variants": to_json(result.variants),
        "choice": result.choice and result.choice.to_json(),
        "refused": {name: str(error) for name, error in result.rejected.items()},
        "bundle": str(result.bundle.path),
    }


def print_export(result: ExportResult) -> None:
    """Print the exported variants and the candidates of ``auto`` as tables."""
    columns = (
        "variant",
        "runtime",
        "input",
        "proved on",
        "MiB",
        "max |logit error|",
        "mean / spread",
        "same first class",
        "top-1 lost, points",
    )
    rows = [row for name, variant in result.variants.items() for row in _rows(name, variant)]
    print_table(f"Exported to {result.bundle.path}", columns, rows, left=4)
    for name, variant in result.variants.items():
        for one in _files(variant):
            if one.note:
                print_text(f"{name}: {one.note}")
    if result.choice is not None:
        _print_choice(result.choice)


def print_plain_file(written: PlainFile) -> None:
    """Print what was written as a plain file, how it was proved, and what its user has to know."""
    first, *others = written.files
    proof = written.proof
    print_text(
        f"{first}: {written.variant or f'{written.precision} weights'}; max |logit error| {proof.max_abs_error:.2g} on "
        f"{proof.images} golden images, by {proof.runtime} on {proof.device}"
    )
    print_text(f"beside it: {', '.join(path.name for path in others)}")
    for note in written.notes:
        print_text(f"note: {note}")


def _rows(name: str, variant: Variant) -> Iterable[tuple[str, ...]]:
    for one in _files(variant):
        proof = one.proof
        size = f"of {one.source}" if isinstance(one, OpenvinoVariant) else f"{one.bytes / 2**20:.1f}"
        figures = ("not proved", size, "-", "-", "-")
        if proof:
            figures = (
                f"{proof.runtime}, {proof.device}" + ("" if proof.standard else ", looser gate"),
                size,
                f"{proof.max_abs_error:.2g}",
                f"{proof.relative_error:.2%}",
                f"{proof.top1_agreement:.0%}",
            )
        yield (name, variant.runtime, variant.input, *figures, _drop(one.accuracy))


def _drop(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    return f"{accuracy.drop:.2f} ({accuracy.low:.2f} to {accuracy.high:.2f})"


def _print_choice(choice: Choice) -> None:
    batches = choice.batches
    columns = ("candidate", "result", "reason", *(f"ms (images/s), batch {batch}" for batch in batches))
    rows = []
    for one in choice.candidates:
        medians = {row.batch: f"{row.p50_ms:.2f} ({row.images_per_second:,.0f})" for row in one.latency}
        rows.append((one.variant, one.result, one.reason, *(medians.get(batch, "-") for batch in batches)))
    cpu = f"{choice.machine.cpu}, {choice.cpu_instructions}"
    print_table(
        f"Chosen by median latency (mean over batch sizes), with at most {choice.max_drop:g} points lost, on {cpu}",
        columns,
        rows,
        left=3,
    )


def _files(variant: Variant) -> Sequence[OnnxVariant | OpenvinoVariant | Engine]:
    """Return the record with the proof: the variant, or the last engine of a variant of engines."""
    return variant.engines[-1:] if isinstance(variant, EngineVariant) else [variant]
