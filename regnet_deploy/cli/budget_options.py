"""The budget that the options of ``select`` describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regnet_deploy.errors import UsageError

if TYPE_CHECKING:
    from regnet_deploy.selection.budget import Budget


def budget_of(options: dict[str, Any], macs: float) -> Budget:
    """Return the budget of options, with these MACs.

    Raises:
        UsageError: a value is not valid.
    """
    from regnet_deploy.errors import did_you_mean
    from regnet_deploy.selection.budget import FAMILIES, Budget
    from regnet_deploy.space.enumeration import Bounds

    family = options["family"].lower().removeprefix("regnet").strip("-_ ")
    if family not in FAMILIES:
        raise UsageError(
            f"--family must be one of {', '.join(FAMILIES)}, got {options['family']!r}{did_you_mean(family, FAMILIES)}"
        )
    given = {
        "d": options["depth"],
        "g": options["group_width"],
        "w_0": options["w_0"],
        "w_a": options["w_a"],
        "w_m": options["w_m"],
        "parameters": options["params_bound"],
        "activations": options["acts_bound"],
    }
    bounds = {name: value for name, value in given.items() if value is not None}
    if options["no_bounds"]:
        bounds.update(parameters=None, activations=None)
    return Budget(
        macs=macs,
        tolerance=options["tolerance"] / 100,
        family=family,
        resolution=options["resolution"],
        classes=options["classes"],
        max_parameters=None if options["max_params"] is None else options["max_params"] * 1e6,
        max_activations=None if options["max_acts"] is None else options["max_acts"] * 1e6,
        stem_stride=options["stem_stride"],
        input_channels=options["input_channels"],
        bounds=Bounds(g_multiple=options["group_multiple"], **bounds),
    )
