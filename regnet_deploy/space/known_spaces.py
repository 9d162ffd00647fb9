"""The design spaces of the paper, and variants of them (arXiv 2003.13678, sections 3.2 to 4 and appendix D)."""

from __future__ import annotations

from dataclasses import replace

from regnet_deploy.space.ranges import Range, Values
from regnet_deploy.space.spaces import B_VALUES, G_VALUES, ONE, AnyNetSpace, RegNetSpace, Space, Stages, same

#: Bounds that the sampler of pycls recommends: at most 3 + 5.5 F million parameters, 6.5 sqrt(F) million activations.
#: They refer to 224 pixels, whatever the resolution of the drawn networks.
RECOMMENDED = (
    "reference_parameters <= 3e6 + 5.5e-3 * reference_macs",
    "reference_activations <= 6.5e6 * (reference_macs / 1e9) ** 0.5",
)


def known_spaces() -> dict[str, Space]:
    """Return the named spaces, in the order in which the paper refines them."""
    a = AnyNetSpace("AnyNetX_A")
    b = replace(a, name="AnyNetX_B", bottleneck=same(B_VALUES))
    c = replace(b, name="AnyNetX_C", group_width=same(G_VALUES))
    d = replace(c, name="AnyNetX_D", width=Stages(a.width.choices, "rising"))
    e = replace(d, name="AnyNetX_E", depth=Stages(a.depth.choices, "rising"))
    x = RegNetSpace("RegNetX")
    no_groups = replace(a, group_width=same(ONE))
    plain = replace(no_groups, bottleneck=same(ONE))
    spaces: list[Space] = [
        a,
        b,
        c,
        d,
        replace(c, name="AnyNetX_C_falling_widths", width=Stages(a.width.choices, "falling")),
        replace(c, name="AnyNetX_C_same_width", width=same(a.width.choices[0])),
        e,
        replace(d, name="AnyNetX_D_falling_depths", depth=Stages(a.depth.choices, "falling")),
        replace(d, name="AnyNetX_D_same_depth", depth=same(a.depth.choices[0])),
        x,
        replace(x, name="RegNetX_w_m_2", w_m=Values((2,))),
        replace(x, name="RegNetX_w_0_is_w_a", w_a="w_0"),
        replace(x, name="RegNetX_b_1", bottleneck=ONE),
        replace(x, name="RegNetX_d_20", d=Values((20,))),
        replace(
            x,
            name="RegNetX_constrained",
            d=Range(12, 28, counted=17),
            w_m=replace(x.w_m, low=2.0) if isinstance(x.w_m, Range) else x.w_m,
            bottleneck=ONE,
            where=RECOMMENDED,
        ),
        replace(x, name="RegNetY", block="y"),
        replace(no_groups, name="AnyNetR_A", block="r"),
        replace(no_groups, name="AnyNetR_E", block="r", depth=e.depth, width=e.width, bottleneck=e.bottleneck),
        replace(plain, name="AnyNetV_A", block="v"),
        replace(plain, name="AnyNetV_E", block="v", depth=e.depth, width=e.width),
        replace(plain, name="AnyNetVR_A", block="vr"),
        replace(plain, name="AnyNetVR_E", block="vr", depth=e.depth, width=e.width),
        replace(x, name="RegNetR", block="r", group_width=ONE),
    ]
    return {space.name: space for space in spaces}
