"""``regnet-deploy verify``: checks the files of a bundle, and its networks against the golden set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from regnet_deploy.api.variants import verify
from regnet_deploy.bundle import repair_bundle
from regnet_deploy.cli.options import bundle_argument, json_option
from regnet_deploy.cli.output import print_json, print_message, print_table, terminal_progress
from regnet_deploy.errors import BundleError, ProofError

if TYPE_CHECKING:
    from regnet_deploy.runtimes.verification import VerificationCheck


@click.command()
@bundle_argument
@click.option("--repair", is_flag=True, help="Restore a damaged bundle.json first, from its copy.")
@json_option
def command(bundle_path: str, repair: bool, as_json: bool) -> None:
    """Check every file of a bundle, and run its golden set on every network that this machine can run.

    What an interrupted command left in the folder is listed and is no damage: the next command that writes deletes it.

    Exit codes: 0 if all checks pass; 2 if a file is damaged, missing or not part of the bundle; 3 if a network does not
    agree with the golden set.

    \b
    Example:
      regnet-deploy verify
      regnet-deploy verify my-bundle --json
      regnet-deploy verify my-bundle --repair
    """
    repaired = repair_bundle(bundle_path) if repair else None
    if repaired is not None:
        print_message(f"repaired: {repaired}")
    with terminal_progress() as progress:
        progress.step("checks")
        checks = verify(bundle_path)
    if as_json:
        failed = [check.subject for check in checks if check.outcome in ("damaged", "disagrees")]
        print_json({"bundle": bundle_path, "ok": not failed, "checks": [check.to_json() for check in checks]})
    else:
        columns = ("what", "outcome", "detail", "max |error|", "mean, of spread", "worst image", "same top-1", "images")
        print_table(f"{bundle_path}: {_summary(checks)}", columns, [_row(check) for check in checks], left=3)
    for outcome, error in (("damaged", BundleError), ("disagrees", ProofError)):
        # A damaged file fails two checks, as a file and as its content; it is reported once.
        lines = {
            check.detail: f"{check.subject}: {check.detail}" + (f", {check.agreement}" if check.agreement else "")
            for check in reversed(checks)
            if check.outcome == outcome
        }
        if lines:
            raise error(f"{bundle_path} does not verify - {'; '.join(reversed(lines.values()))}")


def _row(check: VerificationCheck) -> tuple[str, ...]:
    figures = check.agreement
    if figures is None:
        return (check.subject, check.outcome, check.detail, "", "", "", "", "")
    return (
        check.subject,
        check.outcome,
        check.detail,
        _finite(figures.max_abs_error, ".2g"),
        _finite(figures.relative_error, ".2%"),
        _finite(figures.worst_error, ".2%"),
        f"{figures.top1_agreement:.1%}",
        str(figures.images),
    )


def _finite(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _summary(checks: list[VerificationCheck]) -> str:
    outcomes = [check.outcome for check in checks]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
