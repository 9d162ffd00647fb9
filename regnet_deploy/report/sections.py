"""The model card as sections with facts and tables, for both the text and the HTML page."""

from __future__ import annotations

from collections.abc import Iterator

from regnet_deploy.bundle import Bundle
from regnet_deploy.bundle.manifest import Choice, Preprocessing, SelectionRecord
from regnet_deploy.bundle.measurements import EvaluationRecord, Profile
from regnet_deploy.bundle.variants import (
    Accuracy,
    Calibration,
    Engine,
    EngineVariant,
    Gate,
    OnnxVariant,
    OpenvinoVariant,
)
from regnet_deploy.evaluation.record import seen_in_training
from regnet_deploy.html import Section, Table
from regnet_deploy.report.answers_section import answers_section
from regnet_deploy.report.card import ModelCard
from regnet_deploy.report.training_section import recipe_section, training_section
from regnet_deploy.space.network import REFERENCE_RESOLUTION

_FAMILIES = {
    "x": "RegNetX",
    "y": "RegNetY (squeeze-and-excitation)",
    "v": "AnyNetV (one 3x3 convolution per block)",
    "vr": "AnyNetVR (one 3x3 convolution per block, residual)",
}

_CHANNELS = {1: "gray", 3: "RGB"}


def card_sections(card: ModelCard) -> list[Section]:
    """Return the sections of the card, in the order of the pipeline."""
    sections = [_architecture(card)]
    manifest = card.manifest
    if manifest.selection:
        sections.append(_selection(manifest.selection))
    sections.append(training_section(card))
    if manifest.training:
        sections.append(recipe_section(manifest.training))
    if card.answers:
        sections.append(answers_section(card.answers, manifest.labels))
    sections.append(_complexity(card))
    if manifest.profile:
        sections.append(_latency(manifest.profile))
    sections += _exports(card.bundle)
    if manifest.evaluation:
        sections.append(_evaluation(card.bundle, manifest.evaluation))
    if manifest.preprocessing:
        sections.append(_input(manifest.preprocessing, manifest.labels))
    sections.append(_origin(card))
    return sections


def headline(card: ModelCard) -> str:
    """Return a summary of the model in one line."""
    architecture = card.architecture
    macs = sum(stage.macs for stage in card.stages)
    parameters = sum(stage.parameters for stage in card.stages)
    text = (
        f"{architecture.name}: {quantity(macs)}MACs and {quantity(parameters).strip()} parameters for an image of "
        f"{architecture.resolution} x {architecture.resolution} pixels, {architecture.classes:,} classes"
    )
    if card.accuracy:
        text += f", {card.accuracy.val_top1 * 100:.2f} % validation top-1"
    if card.manifest.training and card.manifest.training.test:
        text += f", {card.manifest.training.test.top1 * 100:.2f} % test top-1"
    return text


def quantity(count: float) -> str:
    """Return a count with its prefix: ``4.03 G``, ``22.3 M``, ``512``."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:g} "


def _architecture(card: ModelCard) -> Section:
    a = card.architecture
    facts = [
        ("family", _FAMILIES[a.family]),
        ("blocks", f"d = {a.d}"),
    ]
    if a.w_a is not None:
        facts.append(("widths", f"w_0 = {a.w_0:g}, w_a = {a.w_a:g}, w_m = {a.w_m:g}"))
        facts.append(("bottleneck and groups", f"b = {a.b:g}, g = {a.g:g}"))
    facts.append(
        ("stem", f"3x3 of {_CHANNELS[a.input_channels]} images, {a.stem_width} channels, stride {a.stem_stride}")
    )
    return Section("Architecture", facts)


def _selection(selection: SelectionRecord) -> Section:
    budget = selection.budget
    facts = [
        ("budget", f"{budget.macs / 1e9:g} GMACs ± {budget.tolerance * 100:g} % at {budget.resolution} pixels"),
        ("reason", selection.reason),
    ]
    if selection.searched:
        facts.append(("searched", selection.searched))
    facts += [("evidence", note) for note in (selection.evidence or {}).get("notes", ())]
    expected = selection.expected_error
    if expected and budget.resolution == REFERENCE_RESOLUTION:  # earlier versions stated it for every resolution
        extrapolated = "; extrapolated" if expected.extrapolated else ""
        error = f"{expected.top1_error:.1f} % top-1 error ± {expected.leave_one_out_error:.2f}"
        facts.append(("expected on ImageNet", f"{error} ({expected.recipe}{extrapolated}); not valid for other data"))
    return Section("Selection", facts)


def _evaluation(bundle: Bundle, record: EvaluationRecord) -> Section:
    """Return the accuracy on the images of `evaluate`."""
    facts = [
        ("images", f"{record.images:,} of {record.where}"),
        ("a constant answer", f"{record.baseline_label} is right on {record.baseline * 100:.2f} % of them"),
    ]
    seen = seen_in_training(bundle, record.data, record.split)
    if seen:
        facts.append(("seen in training", seen))
    columns = ("variant", "top-1 (%)", "95 % interval", "top-5 (%)", "calibration error", "lost (points)", "runtime")
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{one.top1 * 100:.2f}",
            f"{one.low * 100:.2f} to {one.high * 100:.2f}",
            "-" if one.top5 is None else f"{one.top5 * 100:.2f}",
            f"{one.ece:.3f}",
            "-" if one.lost_points is None else f"{one.lost_points:+.2f}",
            one.runtime,
        )
        for name, one in record.variants.items()
    ]
    return Section(
        "Accuracy on a test set" if not seen else "Accuracy on labeled images", facts, [Table(columns, rows)]
    )


def _complexity(card: ModelCard) -> Section:
    table = Table(
        ("stage", "blocks", "width", "group width", "MACs (M)", "parameters (k)", "activations (k)"),
        [
            (
                stage.stage,
                str(stage.blocks),
                str(stage.width),
                "-" if stage.group_width is None else str(stage.group_width),
                f"{stage.macs / 1e6:,.2f}",
                f"{stage.parameters / 1e3:,.1f}",
                f"{stage.activations / 1e3:,.1f}",
            )
            for stage in card.stages
        ],
    )
    facts = []
    if card.manifest.profile:
        counted = card.manifest.profile.complexity
        facts = [
            ("MACs, the paper's number", f"{counted.macs:,} (equal to the closed form)"),
            ("MACs, fvcore's total", f"{counted.fvcore_total:,} (with batch norm and pooling, without biases)"),
            ("parameters", f"{counted.parameters:,}"),
            ("activations", f"{counted.activations:,}"),
        ]
    return Section("Complexity of one image", facts, [table])


def _latency(profile: Profile) -> Section:
    machine = profile.machine
    columns = ("runtime", "device", "precision", "threads", "batch", "p50 (ms)", "p95 (ms)", "p99 (ms)", "images/s")
    table = Table(
        columns,
        [
            (
                row.runtime if row.variant is None else f"{row.runtime}, {row.variant}",
                row.device,
                row.precision,
                str(row.threads),
                str(row.batch),
                f"{row.p50_ms:.2f}",
                f"{row.p95_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.images_per_second:,.0f}",
            )
            for row in profile.latency
        ],
    )
    where = ", ".join([machine.cpu, f"{machine.cores} cores", *machine.gpus, machine.system])
    return Section("Speed", [("measured on", where)], [table])


def _input(p: Preprocessing, labels: tuple[str, ...]) -> Section:
    facts = [
        (
            "resize",
            f"short side to {p.resize} pixels, {p.interpolation}{'' if p.antialias else ' without antialiasing'}, then "
            f"the center {p.crop} x {p.crop}",
        ),
        ("decode", "large JPEGs at 1/2, 1/4 or 1/8 of their size" if p.scaled_decoding else "at full size"),
        ("normalize", f"{_CHANNELS[p.channels]} in 0..1, mean {list(p.mean)}, deviation {list(p.std)}"),
    ]
    if labels:
        shown = ", ".join(labels[:20]) + (f", ... ({len(labels):,} in all)" if len(labels) > 20 else "")
        facts.append(("labels", shown))
    return Section("Input and labels", facts)


def _origin(card: ModelCard) -> Section:
    facts = [
        (command, ", ".join(f"{name} {value}" for name, value in sorted(written.items()) if isinstance(value, str)))
        for command, written in card.manifest.environment.items()
    ]
    files = Table(
        ("file", "bytes", "sha256"),
        [(logical, f"{file.bytes:,}", file.sha256) for logical, file in sorted(card.bundle.files.items())],
    )
    return Section("Written by", [*facts, ("manifest sha256", card.bundle.digest)], [files] if files.rows else [])


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


def _exports(bundle: Bundle) -> list[Section]:
    """Return the section on exports, and the one on the choice between them if there was one."""
    manifest, unknown = bundle.manifest, bundle.unknown_variants
    if not manifest.variants and not unknown:
        return [Section("Exports", [("state", f"nothing exported yet: regnet-deploy export --onnx{bundle.argument}")])]
    golden, choice = manifest.golden, manifest.choice
    facts = [("golden set", f"{golden.images} images: {golden.source}")] if golden else []
    gates: dict[str, list[str]] = {}
    rows = []
    for name, variant in manifest.variants.items():
        if isinstance(variant, OnnxVariant) and variant.exact and variant.note:
            facts.append((name, variant.note))
        if isinstance(variant, OpenvinoVariant):
            facts.append((name, f"the file of {variant.source} in OpenVINO, computed in {variant.compute.upper()}"))
        if isinstance(variant, OnnxVariant) and variant.calibration:
            facts.append((f"calibration of {name}", _calibration(variant.calibration)))
        for exported in variant.engines if isinstance(variant, EngineVariant) else (variant,):
            if exported.proof and exported.proof.gate:
                names = gates.setdefault(_gate(exported.proof.gate), [])
                names += [name] if name not in names else []
            rows.append((name, variant.runtime, variant.precision, variant.input, *_figures(exported)))
    facts += [(name, f"not known to this version: runtime {runtime!r}") for name, runtime in unknown.items()]
    facts += [(f"gate of {', '.join(names)}", gate) for gate, names in gates.items()]
    return [Section("Exports", facts, [Table(_COLUMNS, rows)]), *([_choice(choice)] if choice else [])]


def _figures(exported: OnnxVariant | OpenvinoVariant | Engine) -> Iterator[str]:
    """Yield the cells of a variant or an engine from the column ``images`` on."""
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
        "worst": "error of each image {:.2%} of the spread",
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
