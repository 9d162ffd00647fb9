"""Recognizes the library of a weight file, and converts its tensors to those of this program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regnet_deploy.errors import DataError, UsageError, did_you_mean
from regnet_deploy.importing.file_digest import digest_of
from regnet_deploy.importing.hub_config import STATED, stated_in
from regnet_deploy.importing.layouts import OWN, SOURCES, Layout, match_counts
from regnet_deploy.importing.pycls_config import uses_ffcv
from regnet_deploy.importing.recover import classes_of, recover_network
from regnet_deploy.importing.weight_file import WeightFile, read_weight_file
from regnet_deploy.models.weights import METADATA
from regnet_deploy.space.network import Network

_NAMED = 5
#: Patterns of names of other networks, and what they are.
_OTHERS = (
    (r"\As1\.b1\.norm1\.|\Astem\.weight\Z", "a RegNetV of timm, whose blocks normalize before they convolve"),
    (r"final_conv\.conv\.|head\.(?:conv|bn)\.", "a RegNetZ, whose blocks are inverted bottlenecks"),
    (r"stages\.\d+\.\d+\.conv1_1x1\.", "a network of timm's byobnet, such as its RegNetZ"),
    (r"stages\.\d+\.\d+\.(?:conv1|norm1|conv2)\.", "an NF-RegNet or another network of timm with numbered stages"),
    (r"layer[1-4]\.\d+\.conv1\.weight", "a ResNet"),
    (r"features\.\d+\.(?:conv|block)\.", "a MobileNet or an EfficientNet of torchvision"),
    (r"features\.denseblock", "a DenseNet"),
    (r"blocks\.\d+\.(?:attn|\d+\.conv_pw)", "a vision transformer or an EfficientNet of timm"),
    (r"encoder\.layers?\.", "a transformer"),
    (r"model\.\d+\.(?:conv|cv1)\.", "a YOLO network"),
    (r"s1\.b1\.b\.weight|s1\.b1\.f\.b\.weight", "a RegNet of pycls with blocks of two 3x3 convolutions"),
)
#: Entries that checkpoints of networks have beside weights and batch norm statistics.
_IGNORED = re.compile(r".*(?:total_ops|total_params|projection_head\..*|prototypes.*|head\.fc_aux\..*)\Z")


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of another library as this program has them.

    Attributes:
        file: the file, with its container and what was chosen in it.
        source: name of the library, one of :data:`regnet_deploy.importing.layouts.SOURCES`.
        state: tensors with the names of this program, for RGB images, or gray ones where the stem has one channel.
        network: the network.
        classes: number of outputs.
        assumptions: what the file does not say and was assumed, one sentence each.
    """

    file: WeightFile
    source: str
    state: Mapping[str, Tensor]
    network: Network
    classes: int
    assumptions: tuple[str, ...]


def read_foreign_weights(
    path: Path,
    *,
    source: str | None = None,
    channels: str | None = None,
    stem_stride: int | None = None,
    named_by: str = "--from",
) -> ForeignWeights:
    """Read the weights of a RegNet that another library saved.

    Args:
        path: the file; see :mod:`regnet_deploy.importing.weight_file` for its containers.
        source: the library; None recognizes it by the names of the tensors.
        channels: ``rgb`` or ``bgr``, the order in which the network takes the channels of an image; None takes that of
            the library, and of pycls's stored configuration. A network of gray images has one channel.
        stem_stride: stride of the stem, 1 or 2, which the weights do not tell; None takes what the file says, else 2.
        named_by: option that named the library, for the error where the file is of another.

    Raises:
        UsageError: the library is not known, or BGR is given for a network of gray images.
        DataError: the file cannot be read, or does not hold a RegNet; the message names the network or the tensors.
    """
    if source is not None and source not in SOURCES:
        raise UsageError(f"--from must be one of {', '.join(SOURCES)}, got {source!r}{did_you_mean(source, SOURCES)}")
    file = read_weight_file(path)
    names = [name for name in file.tensors if not _IGNORED.match(name)]
    layout = _recognize(names, source or (OWN if _is_own(file, path) else None), path, named_by)
    unknown = [name for name in names if layout.own_name(name) is None]
    if unknown:
        raise DataError(f"{path} is {_description(names, layout, unknown)}")
    state = {own: file.tensors[name] for name in names if (own := layout.own_name(name))}
    if layout.inputs_first:
        state = {name: _outputs_first(name, tensor) for name, tensor in state.items()}
    biases = _fold_biases(state)
    if biases:
        remark = f"{biases} biases of convolutions are taken into the batch norms behind them"
        file = replace(file, remarks=(*file.remarks, remark))
    if "head.fc.weight" not in state:
        raise DataError(
            f"{path} has no classifier: it holds the trunk of a network alone, such as of self-supervised training; "
            "give the file that was fine-tuned on classes"
        )
    try:
        network = recover_network(state, stem_stride or stated_in(file.metadata, path)[1] or 2)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    bgr, assumptions = _channel_order(file, layout, channels)
    if network.input_channels == 1:
        if channels == "bgr":
            raise UsageError(f"{path} takes gray images, whose one channel has no order: omit --channels bgr")
        bgr, assumptions = False, []
    if bgr:
        state["stem.conv.weight"] = state["stem.conv.weight"].flip(1)
    for name in [name for name in state if name.endswith("running_mean")]:
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        if counter not in state or state[counter].shape != () or state[counter].dtype != torch.int64:
            state[counter] = torch.zeros((), dtype=torch.int64)  # nothing is computed with it
    return ForeignWeights(file, layout.name, state, network, classes_of(state), tuple(assumptions))


def assumed_of_stem(weights: ForeignWeights, channels: str | None, stem_stride: int | None) -> list[str]:
    """Return what is assumed of the first convolution, beside what ``weights.assumptions`` says of pycls's.

    Args:
        weights: as they were read.
        channels: order of the channels that was given; None if none was.
        stem_stride: stride that was given; None if none was.
    """
    assumed, source = [], weights.source
    if channels is None and weights.network.input_channels == 3 and source not in ("pycls", OWN):
        order, other = ("BGR", "rgb") if source == "mmpretrain" else ("RGB", "bgr")
        assumed.append(f"the order of the channels is {order}, as {source} has it: --channels {other} says otherwise")
    if stem_stride is None and f"metadata.{STATED}" not in weights.file.metadata:
        assumed.append("the stem has stride 2, as in published networks; weights do not tell it: --stem-stride sets it")
    return assumed


def _outputs_first(name: str, tensor: Tensor) -> Tensor:
    """Return a matrix of (inputs, outputs) as (outputs, inputs), and of squeeze-and-excitation as a 1x1 convolution."""
    if tensor.ndim != 2:
        return tensor
    return tensor.T[:, :, None, None].contiguous() if ".se." in name else tensor.T.contiguous()


def _fold_biases(state: dict[str, Tensor]) -> int:
    """Replace biases of convolutions by what they are in the batch norm behind them, and return how many there were."""
    biases = 0
    for name in [name for name in state if name.endswith(".bias")]:
        module = name.removesuffix(".bias")
        block, _, last = module.rpartition(".")
        mean = {"stem.conv": "stem.bn", f"{block}.proj": f"{block}.bn"}.get(module, f"{module}_bn") + ".running_mean"
        if last != "bn" and mean in state and state[mean].shape == state[name].shape:
            state[mean] = state[mean] - state.pop(name)
            biases += 1
    return biases


def _recognize(names: Sequence[str], source: str | None, path: Path, named_by: str) -> Layout:
    """Return the layout that knows most of the names."""
    counts = [(layout, count) for layout, count in match_counts(names) if source in (None, layout.name)]
    layout, count = counts[0]
    best, known = match_counts(names)[0]
    if source is not None and count < known == len(names):
        raise DataError(f"{path} has the names of {best.name}, not of {source}: omit {named_by}")
    if 2 * count > len(names) or (source is not None and count):
        return layout
    other = _other_network(names)
    listed = ", ".join(list(names)[:_NAMED])
    if other:
        raise DataError(f"{path} is {other}, not a RegNet that can be imported; its tensors are {listed}, ...")
    expected = f"names of {source}" if source else f"the names of {', '.join(SOURCES)}"
    raise DataError(f"{path} has no RegNet with {expected}; its first tensors are {listed}")


def _is_own(file: WeightFile, path: Path) -> bool:
    """Tell whether this program wrote the file into a bundle: by its metadata, or by its name, which has its digest."""
    if file.container != "safetensors":
        return False
    if any(file.metadata.get(f"metadata.{name}") == text for name, text in METADATA.items()):
        return True
    named = re.fullmatch(r"weights-([0-9a-f]{12})\.safetensors", path.name)  # earlier versions wrote no metadata
    return named is not None and digest_of(path).startswith(named[1])


def _other_network(names: Sequence[str]) -> str | None:
    return next((what for pattern, what in _OTHERS if any(re.search(pattern, name) for name in names)), None)


def _description(names: Sequence[str], layout: Layout, unknown: Sequence[str]) -> str:
    other = _other_network(unknown)
    listed = ", ".join(unknown[:_NAMED]) + (f", and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else "")
    if other:
        return f"{other}, not a RegNet that can be imported; tensors: {listed}"
    are = "is" if len(unknown) == 1 else "are"
    return f"almost a RegNet of {layout.name}, but {len(unknown)} of {len(names)} tensors {are} of no RegNet: {listed}"


def _channel_order(file: WeightFile, layout: Layout, channels: str | None) -> tuple[bool, list[str]]:
    """Return whether the network takes BGR, and what was assumed."""
    if channels is not None:
        return channels == "bgr", []
    said = file.metadata.get("metadata.channels")
    if layout.name == "pycls" and said in ("rgb", "bgr"):  # this program writes it into what it exports
        return said == "bgr", []
    if layout.name == "pycls":
        ffcv = uses_ffcv(file.metadata)
        if ffcv is not None:
            return not ffcv, []
        assumed = (
            "the file does not say the order of the channels: BGR is assumed, as pycls's loader gives it; --channels "
            "rgb is for weights that were trained with ffcv or converted before"
        )
        own = f", and --from {OWN} for those of a bundle" if file.container == "safetensors" else ""
        return True, [assumed + own]
    return layout.bgr, []
