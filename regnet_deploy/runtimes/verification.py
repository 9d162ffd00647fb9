"""Verifies a bundle: its bytes, and its networks on the golden set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from regnet_deploy.bundle import MANIFEST, WEIGHTS, Bundle, find_damage, find_leftovers
from regnet_deploy.bundle.manifest import Preprocessing
from regnet_deploy.bundle.variants import OnnxVariant
from regnet_deploy.errors import BundleError, MissingExtra, ProofError, RegnetDeployError, UsageError
from regnet_deploy.runtimes.gates import gate_of
from regnet_deploy.runtimes.golden_set import FILE, Agreement, GoldenSet, load_golden, replay
from regnet_deploy.runtimes.predictions import labels_of
from regnet_deploy.runtimes.runtime import Session, open_variant, runtime_unsupported_reason

#: ``damaged`` and ``disagrees`` are failures, ``not run`` is not.
CheckOutcome = Literal["ok", "damaged", "disagrees", "not run"]


@dataclass(frozen=True)
class VerificationCheck:
    """The result of one check.

    Attributes:
        subject: what was checked: a file, the manifest, a variant.
        outcome: the result.
        detail: figures or the reason, in words.
        agreement: figures of the golden set replay.
    """

    subject: str
    outcome: CheckOutcome
    detail: str
    agreement: Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "subject": self.subject,
            "outcome": self.outcome,
            "detail": self.detail,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "failures": list(self.agreement.failures) if self.agreement else [],
        }


def verify(
    bundle: Bundle,
    open_weights: Callable[[Bundle], Session],
    open_emulated: Callable[[Bundle, str], Session] | None = None,
) -> list[VerificationCheck]:
    """Check every byte of a bundle and replay its golden set on everything that this machine can run.

    Args:
        bundle: an opened bundle, whose manifest is undamaged.
        open_weights: opens the trained model; raises MissingExtra without PyTorch.
        open_emulated: opens an ONNX variant for TensorRT as it was proved, because ONNX Runtime does not support its
            types in every precision and release; raises MissingExtra if that is not possible here.
    """
    checks = [VerificationCheck(MANIFEST, "ok", f"sha256 {bundle.digest[:12]}..., {len(bundle.parts)} parts")]
    checks += [_file(bundle, logical) for logical in sorted(bundle.files)]
    named = {check.detail for check in checks}
    checks += [VerificationCheck("folder", "damaged", line) for line in find_damage(bundle) if line not in named]
    left = [path.name for path in find_leftovers(bundle)]
    if left:
        detail = f"{', '.join(left)}: of a command that writes now, or was interrupted; the next one deletes them"
        checks.append(VerificationCheck("folder", "ok", detail))
    checks.append(_labels(bundle))
    variants = bundle.manifest.variants
    if FILE not in bundle.files:
        reason = f"there is no golden set yet: run `regnet-deploy export --onnx{bundle.argument}`"
        return [
            *checks,
            *(VerificationCheck(name, "not run", reason) for name in ["weights", *variants, *bundle.unknown_variants]),
        ]
    try:
        golden = load_golden(bundle)
        preprocessing = bundle.preprocessing
    except BundleError as error:
        return [*checks, VerificationCheck("golden set", "damaged", str(error))]
    checks.append(_lineage(bundle))
    checks.append(_agreement("weights", partial(open_weights, bundle), "fp32", golden, preprocessing))
    for name, variant in variants.items():
        opener: Callable[[Bundle, str], Session] = open_variant
        if isinstance(variant, OnnxVariant) and variant.exact and open_emulated is not None:
            opener = open_emulated
        checks.append(_agreement(name, partial(opener, bundle, name), variant.precision, golden, preprocessing))
    for name in bundle.unknown_variants:
        checks.append(VerificationCheck(name, "not run", str(runtime_unsupported_reason(bundle, name))))
    return checks


def _file(bundle: Bundle, logical: str) -> VerificationCheck:
    try:
        data = bundle.read(logical)
    except BundleError as error:
        return VerificationCheck(logical, "damaged", str(error))
    return VerificationCheck(logical, "ok", f"sha256 {bundle.files[logical].sha256[:12]}..., {len(data):,} bytes")


def _labels(bundle: Bundle) -> VerificationCheck:
    try:
        labels = labels_of(bundle)
    except BundleError as error:
        return VerificationCheck("labels", "damaged", str(error))
    return VerificationCheck(
        "labels", "ok", f"{len(labels)} classes" if bundle.manifest.labels else "none before training"
    )


def _lineage(bundle: Bundle) -> VerificationCheck:
    """Check that the golden logits are those of the weights that the bundle holds."""
    golden = bundle.manifest.golden
    weights_sha256 = golden.weights_sha256 if golden else None
    weights = bundle.files.get(WEIGHTS)
    if weights_sha256 == (weights.sha256 if weights else None):
        return VerificationCheck(
            "golden set", "ok", f"its logits are of {'these weights' if weights else 'the untrained network'}"
        )
    return VerificationCheck(
        "golden set",
        "damaged",
        f"its logits are of other weights than the bundle's: run `regnet-deploy export --onnx{bundle.argument}`",
    )


def _agreement(
    subject: str, open_it: Callable[[], Session], precision: str, golden: GoldenSet, preprocessing: Preprocessing
) -> VerificationCheck:
    try:
        gate = gate_of(precision)
        session = open_it()
        agreement = replay(session, golden, preprocessing, gate)
    except (MissingExtra, UsageError) as error:
        return VerificationCheck(subject, "not run", str(error))
    except ProofError as error:
        return VerificationCheck(subject, "disagrees", str(error))
    except RegnetDeployError as error:  # BundleError, or an engine that does not load or run
        return VerificationCheck(subject, "damaged", str(error))
    outcome: CheckOutcome = "ok" if agreement.passed else "disagrees"
    return VerificationCheck(subject, outcome, f"golden set by {session.runtime} on {session.device}", agreement)
