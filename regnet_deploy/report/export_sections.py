"""The card's sections on what was exported: proofs, accuracy, calibration, and what was chosen from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regnet_deploy.html import Section, Table

_COLUMNS = (
    "variant",
    "runtime",
    "precision",
    "input",
    "images",
    "max error",
    "mean error",
    "of the spread",
    "cosine",
    "top-1 agreement",
    "top-1 lost (points)",
    "proof",
)


def export_sections(card: dict[str, Any]) -> list[Section]:
    """Return the sections on exports, and on the choice between them where one was made."""
    if not card["variants"]:
        return [Section("Exports", [("state", "nothing exported yet: regnet-deploy export --onnx")])]
    golden = card["golden"]
    facts = [("golden set", f"{golden['images']} images: {golden['source']}")] if golden else []
    gates: dict[str, list[str]] = {}
    rows = []
    for name, variant in card["variants"].items():
        facts += _calibration(name, variant)
        for made in variant.get("engines", [variant]):
            proof = made["proof"]
            if proof and proof.get("gate"):
                names = gates.setdefault(_gate(proof["gate"]), [])
                names += [name] if name not in names else []
            rows.append((name, variant["runtime"], variant["precision"], variant["input"], *_figures(made)))
    facts += [(f"gate of {', '.join(names)}", gate) for gate, names in gates.items()]
    choice = card["choice"]
    return [Section("Exports", facts, [Table(_COLUMNS, rows)]), *([_choice(choice)] if choice else [])]


def _figures(made: dict[str, Any]) -> Iterator[str]:
    """Yield the cells on a variant, or on one of the engines of a variant, from ``images`` on."""
    proof = made["proof"]
    if not proof:
        yield from ["-"] * 6
        yield _lost(made)
        yield made.get("note") or "not proved"
        return
    yield str(proof["images"])
    yield f"{proof['max_abs_error']:.2e}"
    yield f"{proof['mean_abs_error']:.2e}"
    relative = proof.get("relative_error")  # not in proofs of earlier versions
    yield "-" if relative is None else f"{relative * 100:.2f} %"
    yield f"{proof['cosine']:.6f}"
    yield f"{proof['top1_agreement'] * 100:.1f} %"
    yield _lost(made)
    loosely = "" if proof.get("standard", True) else ", loosely,"
    yield f"{'passed' if proof['passed'] else 'FAILED'}{loosely} on {proof['runtime']} ({proof['device']})"


def _lost(made: dict[str, Any]) -> str:
    accuracy = made.get("accuracy")
    if not accuracy:
        return "-"
    return (
        f"{accuracy['drop']:.2f} ({accuracy['low']:.2f} to {accuracy['high']:.2f}) on {accuracy['images']:,} images, "
        f"{accuracy['reference_top1'] * 100:.2f} to {accuracy['top1'] * 100:.2f} %"
    )


def _gate(gate: dict[str, float | None]) -> str:
    """Return the limits that hold, in words."""
    words = {
        "atol": "absolute error {:g}",
        "rtol": "and {:g} of the logit",
        "mean": "mean error {:.2%} of the spread",
        "cosine": "cosine at least {:g}",
        "top1": "same first class on at least {:.1%}",
    }
    held = {name: text for name, text in words.items() if gate[name] is not None}
    if gate["atol"] is None:
        held.pop("rtol", None)
    return ", ".join(text.format(gate[name]) for name, text in held.items()) or "none"


def _calibration(name: str, variant: dict[str, Any]) -> list[tuple[str, str]]:
    calibration = variant.get("calibration")
    if not calibration:
        return []
    return [
        (
            f"calibration of {name}",
            f"{calibration['method']} (of {', '.join(calibration['tried'])}) on {calibration['images']} images of "
            f"{calibration['source']}, seed {calibration['seed']}, digest {calibration['digest']}",
        )
    ]


def _choice(choice: dict[str, Any]) -> Section:
    batches = choice["batches"]
    rows = []
    for one in choice["candidates"]:
        medians = {row["batch"]: f"{row['p50_ms']:.2f}" for row in one["latency"]}
        lost = one["accuracy"]["drop"] if one["accuracy"] else None
        rows.append(
            (
                one["variant"],
                one["precision"],
                one["result"],
                *(medians.get(batch, "-") for batch in batches),
                "-" if lost is None else f"{lost:.2f}",
                one["reason"],
            )
        )
    columns = (
        "candidate",
        "precision",
        "result",
        *(f"ms, batch {batch}" for batch in batches),
        "top-1 lost (points)",
        "reason",
    )
    facts = [
        ("may lose", f"{choice['max_drop']:g} points of top-1"),
        ("measured on", f"{choice['machine']['cpu']}, {choice['cpu_instructions']}"),
    ]
    return Section("Choice of precision", facts, [Table(columns, rows)])
