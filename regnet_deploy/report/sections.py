"""The model card as sections of rows: the one wording that both the text and the page show."""

from __future__ import annotations

from regnet_deploy.bundle.manifest import Preprocessing, SelectionRecord
from regnet_deploy.bundle.measurements import Profile
from regnet_deploy.html import Section, Table
from regnet_deploy.report.card import ModelCard
from regnet_deploy.report.export_sections import export_sections

_FAMILIES = {
    "x": "RegNetX",
    "y": "RegNetY (squeeze-and-excitation)",
    "v": "AnyNetV (one 3x3 convolution a block)",
    "vr": "AnyNetVR (one 3x3 convolution a block, residual)",
}


def card_sections(card: ModelCard) -> list[Section]:
    """Return the card's sections, in the order of the pipeline."""
    made = [_architecture(card)]
    manifest = card.manifest
    if manifest.selection:
        made.append(_selection(manifest.selection))
    made.append(_training(card))
    made.append(_complexity(card))
    if manifest.profile:
        made.append(_latency(manifest.profile))
    made += export_sections(manifest)
    if manifest.preprocessing:
        made.append(_input(manifest.preprocessing, manifest.labels))
    made.append(_origin(card))
    return made


def headline(card: ModelCard) -> str:
    """Return the model in one line."""
    architecture = card.architecture
    macs = sum(stage.macs for stage in card.stages)
    parameters = sum(stage.parameters for stage in card.stages)
    text = (
        f"{architecture.name}: {quantity(macs)}MACs and {quantity(parameters).strip()} parameters for an image of "
        f"{architecture.resolution} x {architecture.resolution} pixels, {architecture.classes:,} classes"
    )
    if card.accuracy:
        text += f", {card.accuracy.val_top1 * 100:.2f} % validation top-1"
    return text


def quantity(count: float) -> str:
    """Write a count with its prefix: ``4.03 G``, ``22.3 M``, ``512``."""
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
    facts.append(("stem", f"3x3, {a.stem_width} channels, stride {a.stem_stride}"))
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
    if expected:
        extrapolated = "; extrapolated" if expected.extrapolated else ""
        error = f"{expected.top1_error:.1f} % top-1 error ± {expected.leave_one_out_error:.2f}"
        facts.append(("expected on ImageNet", f"{error} ({expected.recipe}{extrapolated}); not valid for other data"))
    return Section("Selection", facts)


def _training(card: ModelCard) -> Section:
    training, measured = card.manifest.training, card.accuracy
    if training is None or measured is None:
        return Section("Training", [("state", "not trained yet: the weights are random")])
    data = training.data
    facts = [
        (
            "validation top-1",
            f"{measured.val_top1 * 100:.2f} % of {measured.val_images:,} images "
            f"(95 % interval {measured.low * 100:.2f} to {measured.high * 100:.2f} %), epoch {measured.epoch} of "
            f"{len(training.history)}; chosen on these images, so accuracy on new images is slightly lower",
        ),
        ("data", f"{data.train_images:,} training images of {data.classes:,} classes; {data.split}"),
        ("left out", f"{len(data.rejected):,} unusable files"),
        ("digest of the data", data.digest),
        ("recipe", ", ".join(f"{name} {value}" for name, value in training.recipe.items())),
        ("start", training.lineage.start),
        ("time", f"{training.seconds:.0f} s on {training.device}"),
    ]
    return Section("Training", facts)


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
            f"short side to {p.resize} pixels, {p.interpolation}, then the center {p.crop} x {p.crop}",
        ),
        ("decode", "large JPEGs at 1/2, 1/4 or 1/8 of their size" if p.scaled_decoding else "at full size"),
        ("normalize", f"{p.colours} in 0..1, mean {list(p.mean)}, deviation {list(p.std)}"),
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
