"""How libraries name the tensors of a RegNet, in both directions.

The names of this program are those of pycls. A layout is a table of the parts of a network: the module of each part by
a template with the stage ``{i}`` and the block ``{j}``. A pattern for import and a name for export follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

#: Parts of a network: the module of each is a column of :func:`_modules`.
_PARTS = ("stem.conv", "stem.bn", "proj", "proj_bn", "a", "a_bn", "b", "b_bn", "se_1", "se_2", "c", "c_bn", "fc")


def _modules(stem: str, block: str, parts: str, fc: str) -> dict[str, str]:
    """Return part -> template of its module.

    Args:
        stem: modules of the stem's convolution and batch norm.
        block: prefix of a block.
        parts: modules in a block, in the order of :data:`_PARTS`; ``-`` where the library has none.
        fc: module of the classifier.
    """
    modules = [*stem.split(), *(f"{block}.{module}" for module in parts.split()), fc]
    return {part: module for part, module in zip(_PARTS, modules, strict=True) if not module.endswith(".-")}


_OWN = _modules(
    "stem.conv stem.bn", "s{i}.b{j}", "proj bn f.a f.a_bn f.b f.b_bn f.se.f_ex.0 f.se.f_ex.2 f.c f.c_bn", "head.fc"
)


@dataclass(frozen=True)
class Layout:
    """The names of one library.

    Attributes:
        name: of the library.
        modules: part -> template of its module.
        first_block: number of the first block of a stage.
        first_stage: number of the first stage.
        bgr: whether the network takes blue, green, red.
        rewrites: (pattern, replacement) of names before they are compared, in order.
        with_se: whether it is the layout of networks with squeeze-and-excitation, None where both have the same names.
        tensors: name of a tensor in its module -> this program's, where they differ.
        inputs_first: whether matrices are (inputs, outputs), and squeeze-and-excitation is made of them.
    """

    name: str
    modules: Mapping[str, str] = field(repr=False)
    first_block: int = 1
    first_stage: int = 1
    bgr: bool = False
    rewrites: tuple[tuple[str, str], ...] = ()
    with_se: bool | None = None
    tensors: Mapping[str, str] = field(default_factory=dict, repr=False)
    inputs_first: bool = False

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        patterns = []
        for part, template in self.modules.items():
            pattern = re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)", 1).replace(r"\{i\}", r"(?P=i)")
            pattern = pattern.replace(r"\{any\}", r"\d+").replace(r"\{j\}", r"(?P<j>\d+)")
            patterns.append((re.compile(pattern + r"\.(?P<tensor>\w+)"), part))
        return patterns

    def own_name(self, name: str) -> str | None:
        """Return this program's name of a tensor, None where the layout does not have it."""
        for written, replacement in self.rewrites:
            name = re.sub(f"\\A(?:{written})", replacement, name)
        for pattern, part in self._patterns:
            if found := pattern.fullmatch(name):
                numbers = found.groupdict()
                i = int(numbers.get("i") or self.first_stage) - self.first_stage + 1
                j = int(numbers.get("j") or self.first_block) - self.first_block + 1
                return f"{_OWN[part].format(i=i, j=j)}.{self.tensors.get(found['tensor'], found['tensor'])}"
        return None

    def foreign_name(self, name: str) -> str:
        """Return the layout's name of a tensor of this program."""
        module, _, tensor = name.rpartition(".")
        tensor = next((foreign for foreign, own in self.tensors.items() if own == tensor), tensor)
        for own, part in _OWN_PATTERNS:
            if found := own.fullmatch(module):
                numbers = found.groupdict()
                i = int(numbers.get("i") or 1) + self.first_stage - 1
                j = int(numbers.get("j") or 1) + self.first_block - 1
                return f"{self.modules[part].format(i=i, j=j, any=i)}.{tensor}"
        raise KeyError(name)


#: Name of this program among the libraries: weights of a bundle have the names of pycls, and take RGB.
OWN = "regnet-deploy"
_OWN_PATTERNS = [
    (re.compile(re.escape(own).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")), part)
    for part, own in _OWN.items()
]
_CLASSY_BLOCK = "proj bn f.a.0 f.a.1 f.b.0 f.b.1 f.se.excitation.0 f.se.excitation.2 f.c f.final_bn"
#: Classy and VISSL keep trunk and heads apart; a head has the name of its block, or a number.
#: In the state dict of a whole model of Classy, blocks with a head are in a wrapper.
_CLASSY_NAMES = (
    (r"trunk\.|base_model\.", ""),
    (r"(trunk_output\..*)\._module\.", r"\1."),
    (r"(?:_?heads\..*\b|head\.)(?:fc|clf\.0)\.(weight|bias)", r"heads.fc.\1"),  # head.fc is that of SWAG
)
_TRANSFORMERS = (
    "regnet.embedder.embedder.convolution regnet.embedder.embedder.normalization",
    "regnet.encoder.stages.{i}.layers.{j}",
    "shortcut.convolution shortcut.normalization layer.0.convolution layer.0.normalization "
    "layer.1.convolution layer.1.normalization ",
    "classifier.1",
)

LAYOUTS = (
    Layout("pycls", _OWN, bgr=True),
    Layout(
        "timm",
        _modules(
            "stem.conv stem.bn",
            "s{i}.b{j}",
            "downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn se.fc1 se.fc2 conv3.conv conv3.bn",
            "head.fc",
        ),
    ),
    Layout(
        "torchvision",
        _modules(
            "stem.0 stem.1",
            "trunk_output.block{i}.block{i}-{j}",
            "proj.0 proj.1 f.a.0 f.a.1 f.b.0 f.b.1 f.se.fc1 f.se.fc2 f.c.0 f.c.1",
            "fc",
        ),
        first_block=0,
    ),
    Layout(
        "classy",
        _modules("stem.stem.0 stem.stem.1", "trunk_output.block{i}.block{any}-{j}", _CLASSY_BLOCK, "heads.fc"),
        first_block=0,
        rewrites=_CLASSY_NAMES,
    ),
    Layout(
        "vissl",
        _modules(
            "_feature_blocks.conv1.stem.0 _feature_blocks.conv1.stem.1",
            "_feature_blocks.res{i}.block{any}-{j}",
            _CLASSY_BLOCK,
            "heads.fc",
        ),
        first_block=0,
        first_stage=2,
        rewrites=_CLASSY_NAMES,
    ),
    Layout(
        "transformers",
        _modules(
            *_TRANSFORMERS[:2], _TRANSFORMERS[2] + "- - layer.2.convolution layer.2.normalization", _TRANSFORMERS[3]
        ),
        first_block=0,
        first_stage=0,
        with_se=False,
    ),
    Layout(
        "transformers",
        _modules(
            *_TRANSFORMERS[:2],
            _TRANSFORMERS[2] + "layer.2.attention.0 layer.2.attention.2 layer.3.convolution layer.3.normalization",
            _TRANSFORMERS[3],
        ),
        first_block=0,
        first_stage=0,
        with_se=True,
    ),
    Layout(
        "mmpretrain",
        _modules(
            "backbone.conv1 backbone.bn1",
            "backbone.layer{i}.{j}",
            "downsample.0 downsample.1 conv1 bn1 conv2 bn2 - - conv3 bn3",
            "head.fc",
        ),
        first_block=0,
        bgr=True,
    ),
    Layout(
        "paddleclas",
        _modules(
            "conv._conv conv._batch_norm",
            "s{i}_b{j}",
            "short._conv short._batch_norm conv0._conv conv0._batch_norm conv1._conv conv1._batch_norm "
            "se_block.squeeze se_block.excitation conv2._conv conv2._batch_norm",
            "out",
        ),
        tensors={"_mean": "running_mean", "_variance": "running_var"},
        inputs_first=True,
    ),
    Layout(
        "pytorchcv",
        _modules(
            "features.init_block.conv features.init_block.bn",
            "features.stage{i}.unit{j}",
            "identity_conv.conv identity_conv.bn body.conv1.conv body.conv1.bn body.conv2.conv body.conv2.bn "
            "body.se.conv1 body.se.conv2 body.conv3.conv body.conv3.bn",
            "output",
        ),
    ),
    Layout(OWN, _OWN),
)
#: Names that ``--from`` takes.
SOURCES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))
#: Libraries for which weights are written, names that ``--to`` takes.
TARGETS = ("timm", "torchvision", "pycls", "transformers")


def match_counts(names: Iterable[str]) -> list[tuple[Layout, int]]:
    """Return the layouts with the number of these names that each knows, the best first."""
    listed = list(names)
    counted = [(layout, sum(layout.own_name(name) is not None for name in listed)) for layout in LAYOUTS]
    return sorted(counted, key=lambda pair: -pair[1])


def layout_for_export(name: str, se: bool) -> Layout:
    """Return the layout of a library for a network with or without squeeze-and-excitation."""
    return next(each for each in LAYOUTS if each.name == name and each.with_se in (None, se))
