"""AnyNet in PyTorch: stem, stages of blocks, head.

Weight names are those of pycls; its vanilla and basic blocks have two convolutions where the paper's V and VR have one,
which has the name of the first of the two.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_deploy.space.network import Network

BN_EPS = 1e-5
BN_MOMENTUM = 0.1
#: Start of the names of the head's tensors.
HEAD = "head."


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W_2 relu(W_1 mean(x))): one factor per channel, computed from the whole image."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(
            nn.Conv2d(width, squeezed, 1), nn.ReLU(inplace=True), nn.Conv2d(squeezed, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of x, ``(n, width, h, w)``."""
        weighed: Tensor = x * self.f_ex(x.mean((2, 3), keepdim=True))
        return weighed


class BottleneckTransform(nn.Sequential):
    """1x1, grouped 3x3 with the stride, SE (family Y), 1x1; batch norm after each convolution."""

    def __init__(self, width_in: int, width: int, inner: int, group_width: int, stride: int, se_ratio: float) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["a"] = nn.Conv2d(width_in, inner, 1, bias=False)
        parts["a_bn"] = _norm(inner)
        parts["a_af"] = nn.ReLU(inplace=True)
        parts["b"] = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner // group_width, bias=False)
        parts["b_bn"] = _norm(inner)
        parts["b_af"] = nn.ReLU(inplace=True)
        if se_ratio:
            parts["se"] = SqueezeExcitation(inner, round(se_ratio * width_in))  # of the block's input, half to even
        parts["c"] = nn.Conv2d(inner, width, 1, bias=False)
        parts["c_bn"] = _norm(width)
        super().__init__(parts)


class Projection(nn.Conv2d):
    """1x1 convolution with a stride, without bias, by taking every ``stride``-th pixel first: the same numbers.

    The strided kernel of PyTorch 2.13 on a CPU writes outside its memory in the backward pass where the tensors are
    channels_last and threads are two or more (``tests/models/test_anynet.py`` has the shape): the process dies, at once
    or later.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, width_in, h, w)`` to ``(n, width, h / stride, w / stride)``, rounded up."""
        rows, columns = self.stride
        return functional.conv2d(x[:, :, ::rows, ::columns], self.weight)


class Residual(nn.Module):
    """relu(shortcut(x) + f(x)); the shortcut is a 1x1 projection where the shape changes. Subclasses set ``f``.

    Attributes:
        factor: of f(x) for each image, ``(n, 1, 1, 1)``; None in everything but a training step with stochastic depth.
    """

    f: nn.Module
    factor: Tensor | None = None

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.proj: nn.Conv2d | None = None
        self.bn: nn.BatchNorm2d | None = None
        if width_in != width or stride != 1:
            self.proj = Projection(width_in, width, stride)
            self.bn = _norm(width)
        self.af = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, width_in, h, w)`` to ``(n, width, h / stride, w / stride)``."""
        shortcut = x if self.proj is None or self.bn is None else self.bn(self.proj(x))
        added = self.f(x)
        if self.factor is not None:
            added = added * self.factor.to(added.dtype)
        out: Tensor = self.af(shortcut + added)
        return out


class Block(Residual):
    """Residual bottleneck block (X; Y with SE; R where its one group is the whole bottleneck)."""

    def __init__(self, width_in: int, width: int, inner: int, group_width: int, stride: int, se_ratio: float) -> None:
        super().__init__(width_in, width, stride)
        self.f = BottleneckTransform(width_in, width, inner, group_width, stride, se_ratio)


class PlainTransform(nn.Sequential):
    """3x3 convolution with the stride, batch norm."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__(OrderedDict(a=nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False), a_bn=_norm(width)))


class PlainBlock(PlainTransform):
    """3x3 convolution with the stride, batch norm, ReLU: the V block."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__(width_in, width, stride)
        self.a_af = nn.ReLU(inplace=True)


class PlainResidualBlock(Residual):
    """V with a shortcut, before the ReLU: the VR block."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__(width_in, width, stride)
        self.f = PlainTransform(width_in, width, stride)


class Stem(nn.Sequential):
    """3x3 convolution of the image, batch norm, ReLU."""

    def __init__(self, width: int, stride: int, input_channels: int = 3) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(input_channels, width, 3, stride, padding=1, bias=False),
                bn=_norm(width),
                af=nn.ReLU(inplace=True),
            )
        )


class Head(nn.Module):
    """Global average pool and linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, width, h, w)`` to logits, ``(n, classes)``."""
        logits: Tensor = self.fc(self.avg_pool(x).flatten(1))
        return logits


class AnyNet(nn.Sequential):
    """The network of a :class:`Network`: normalized images ``(n, input_channels, h, w)`` to logits ``(n, classes)``.

    Args:
        network: its stages.
        classes: outputs.
        seed: initializes the weights, by the paper's rule, from this seed; None takes torch's global state.
    """

    def __init__(self, network: Network, classes: int, seed: int | None = None) -> None:
        stem = Stem(network.stem_width, network.stem_stride, network.input_channels)
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
        width_in = network.stem_width
        for i, (depth, width) in enumerate(zip(network.depths, network.widths, strict=True)):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(1, depth + 1):
                stride = 2 if j == 1 else 1
                blocks[f"b{j}"] = _block(network, i, width_in, stride)
                width_in = width
            parts[f"s{i + 1}"] = nn.Sequential(blocks)
        parts["head"] = Head(width_in, classes)
        super().__init__(parts)
        initialize(self, seed)

    def pooled_features(self, images: Tensor) -> Tensor:
        """Return what the head's linear classifier gets of images, ``(n, input_channels, h, w)``: ``(n, width)``."""
        features: Tensor = self.get_submodule("head.avg_pool")(self.stage_features(images)[-1]).flatten(1)
        return features

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage, for a detector or a segmentation head.

        Args:
            images: ``(n, input_channels, h, w)``, normalized.

        Returns:
            One tensor a stage, ``(n, width, h_i, w_i)``; every stage halves height and width, rounded up.
        """
        features = []
        x = images
        for name, module in self.named_children():
            if name == "head":
                break
            x = module(x)
            if name != "stem":
                features.append(x)
        return features


def start_as_identity(model: AnyNet) -> None:
    """Set the scale of the last batch norm of each residual block to 0: at first each block is its shortcut.

    Source: Goyal et al., arXiv 1706.02677, section 5.1.
    """
    for module in model.modules():
        if isinstance(module, Residual):
            last = [each for each in module.f.modules() if isinstance(each, nn.BatchNorm2d)][-1]
            nn.init.zeros_(last.weight)


def initialize(model: nn.Module, seed: int | None = None) -> None:
    """Initialise as the paper and pycls do.

    Convolutions N(0, sqrt(2 / fan_out)) with fan_out = k k C_out, not divided by groups; batch norm 1 and 0; the linear
    N(0, 0.01) and 0. Biases of the SE convolutions keep PyTorch's default.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.in_channels)
                    module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, 0.01, generator=generator)
                module.bias.zero_()


def _block(network: Network, stage: int, width_in: int, stride: int) -> nn.Module:
    """Return a block of ``stage``, counted from 0."""
    width = network.widths[stage]
    if network.block == "bottleneck":
        inner, group_width = network.bottleneck_widths[stage], network.group_widths[stage]
        return Block(width_in, width, inner, group_width, stride, network.se_ratio)
    return (PlainResidualBlock if network.block == "vr" else PlainBlock)(width_in, width, stride)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)
