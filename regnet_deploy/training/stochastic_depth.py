"""Stochastic depth (drop path): in training, residual blocks are left out at random, image by image.

Source: Huang et al., arXiv 1603.09382. The rates are those of timm's RegNets: 0 for the first block, evenly rising to
that of the recipe for the last one. What a block adds to its shortcut is 0 for an image for which it is left out, and
otherwise divided by the share of images for which it is not, so that its mean is that of the whole network. That is
``torchvision.ops.stochastic_depth`` in its mode ``row``.

Which blocks are left out is a function of the seed, of epoch and step, and of the place of the image in the batch of
all processes. So a run continues to the bit, and the number of processes changes nothing, if all images can be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet_deploy.errors import UsageError
from regnet_deploy.models.anynet import Residual
from regnet_deploy.training.distributed import ALONE, ProcessGroup
from regnet_deploy.training.recipe import Recipe

#: Purpose of the random numbers; those of the other parts are 1 to 5.
_DEPTH = 6


@dataclass(frozen=True)
class StochasticDepth:
    """The blocks of a network that are left out at random.

    Attributes:
        blocks: residual blocks in their order.
        rates: share of the images for which each is left out, ``(blocks,)``.
        batch: images of a step, of all processes.
        seed: of the random numbers.
        group: the processes that share each step.
    """

    blocks: tuple[Residual, ...]
    rates: NDArray[np.float64]
    batch: int
    seed: int
    group: ProcessGroup = ALONE

    def factors(self, at: tuple[int, int]) -> NDArray[np.float32]:
        """Return the factors of what each block adds, for the images of this process: ``(blocks, images)``.

        Args:
            at: epoch and step, counted from 0.
        """
        draws = np.random.default_rng((self.seed, _DEPTH, *at)).random((self.batch, len(self.blocks)))
        kept = (draws >= self.rates) / (1 - self.rates)
        return np.ascontiguousarray(kept[self.group.rank :: self.group.size].T, np.float32)

    @contextlib.contextmanager
    def applied(self, at: tuple[int, int], first: int, images: int) -> Iterator[None]:
        """Leave blocks out in passes of these images of this process's share, while the context is open.

        Args:
            at: epoch and step, counted from 0.
            first: place of the first image in the share.
            images: number of images.
        """
        device = next(self.blocks[0].parameters()).device
        factors = torch.from_numpy(self.factors(at)[:, first : first + images]).to(device, non_blocking=True)
        for block, factor in zip(self.blocks, factors, strict=True):
            block.factor = factor.view(-1, 1, 1, 1)
        try:
            yield
        finally:
            for block in self.blocks:
                block.factor = None


def stochastic_depth(model: nn.Module, recipe: Recipe, group: ProcessGroup = ALONE) -> StochasticDepth | None:
    """Return the stochastic depth of a recipe for a network; None if it has none.

    Raises:
        UsageError: the network has no residual blocks.
    """
    if not recipe.stochastic_depth:
        return None
    blocks = tuple(module for module in model.modules() if isinstance(module, Residual))
    ensure_residual(recipe, bool(blocks))
    return StochasticDepth(blocks, depth_rates(recipe.stochastic_depth, len(blocks)), recipe.batch, recipe.seed, group)


def depth_rates(rate: float, blocks: int) -> NDArray[np.float64]:
    """Return the share of images for which each block is left out: 0 for the first one, ``rate`` for the last one."""
    return np.linspace(0.0, rate, blocks)


def ensure_residual(recipe: Recipe, residual: bool) -> None:
    """Check that blocks can be left out, if the recipe says that they are.

    Raises:
        UsageError: the network has no residual blocks.
    """
    if recipe.stochastic_depth and not residual:
        raise UsageError(
            f"stochastic_depth {recipe.stochastic_depth:g} leaves out residual blocks, and this network (blocks v) has "
            "none: set it to 0"
        )
