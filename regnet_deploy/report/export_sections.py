"""The card's sections on what was exported: proofs, accuracy, calibration, and what was chosen from."""

from __future__ import annotations

from collections.abc import Iterator

from regnet_deploy.bundle import Manifest
from regnet_deploy.bundle.manifest import Choice
from regnet_deploy.bundle.variants import Accuracy, Calibration, Engine, Gate, OnnxVariant
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


def export_sections(manifest: Manifest) -> list[Section]:
    """Return the sections on exports, and on the choice between them where one was made."""
    if not manifest.variants:
        return [Section("Exports", [("state", "nothing exported yet: regnet-deploy export --onnx")])]
    golden, choice = manifest.golden, manifest.choice
    facts = [("golden set", f"{golden.images} images: {golden.source}")] if golden else []
    gates: dict[str, list[str]] = {}
    rows = []
    for name, variant in manifest.variants.items():
        if isinstance(variant, OnnxVariant) and variant.calibration:
            facts.append((f"calibration of {name}", _calibration(variant.calibration)))
        for exported in (variant,) if isinstance(variant, OnnxVariant) else variant.engines:
            if exported.proof and exported.proof.gate:
                names = gates.setdefault(_gate(exported.proof.gate), [])
                names += [name] if name not in names else []
            rows.append((name, variant.runtime, variant.precision, variant.input, *_figures(exported)))
    facts += [(f"gate of {', '.join(names)}", gate) for gate, names in gates.items()]
    return [Section("Exports", facts, [Table(_COLUMNS, rows)]), *([_choice(choice)] if choice else [])]


def _figures(exported: OnnxVariant | Engine) -> Iterator[str]:
    """Yield the cells on an ONNX file or an engine, from ``images`` on."""
    proof = exported.proof
    if proof is None:
        yield from ["-"] * 6
        yield _drop(exported.accuracy)
        yield exported.note or "not proved"
        return
    yield str(proof.images)
    yield _or_dash(proof.max_abs_error, "{:.2e}")
    yield _or_dash(proof.mean_abs_error, "{:.2e}")
    yield _or_dash(proof.relative_error, "{:.2%}").replace("%", " %")  # not in proofs of earlier versions
    yield _or_dash(proof.cosine, "{:.6f}")
    yield f"{proof.top1_agreement * 100:.1f} %"
    yield _drop(exported.accuracy)
    gate = "" if proof.standard else " a looser gate"
    yield f"{'passed' if proof.passed else 'FAILED'}{gate} on {proof.runtime} ({proof.device})"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _drop(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    return (
        f"{accuracy.drop:.2f} ({accuracy.low:.2f} to {accuracy.high:.2f}) on {accuracy.images:,} images, "
        f"{accuracy.reference_top1 * 100:.2f} to {accuracy.top1 * 100:.2f} %"
    )


def _gate(gate: Gate) -> str:
    """Return the limits in words."""
    words = {
        "atol": "absolute error {:g}",
        "rtol": "and {:g} of the logit",
        "mean": "mean error {:.2%} of the spread",
        "cosine": "cosine at least {:g}",
        "top1": "same first class on at least {:.1%}",
    }
    if gate.atol is None:
        del words["rtol"]
    limits = {name: getattr(gate, name) for name in words}
    return ", ".join(words[name].format(limit) for name, limit in limits.items() if limit is not None) or "none"


def _calibration(calibration: Calibration) -> str:
    return (
        f"{calibration.method} (of {', '.join(calibration.tried)}) on {calibration.images} images of "
        f"{calibration.source}, seed {calibration.seed}, digest {calibration.digest}"
    )


def _choice(choice: Choice) -> Section:
    rows = []
    for candidate in choice.candidates:
        medians = {row.batch: f"{row.p50_ms:.2f}" for row in candidate.latency}
        rows.append(
            (
                candidate.variant,
                candidate.precision,
                candidate.result,
                *(medians.get(batch, "-") for batch in choice.batches),
                f"{candidate.accuracy.drop:.2f}" if candidate.accuracy else "-",
                candidate.reason,
            )
        )
    columns = (
        "candidate",
        "precision",
        "result",
        *(f"ms, batch {batch}" for batch in choice.batches),
        "top-1 lost (points)",
        "reason",
    )
    facts = [
        ("maximum accuracy loss", f"{choice.max_drop:g} points of top-1"),
        ("measured on", f"{choice.machine.cpu}, {choice.cpu_instructions}"),
    ]
    return Section("Choice of precision", facts, [Table(columns, rows)])
