"""A function that is called between the layers of a network, so that what takes seconds on a CPU can be ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def between_layers(model: nn.Module, call: Callable[[], None]) -> Iterator[None]:
    """Call a function after each layer of each forward pass, and before each of the backward pass, on a CPU.

    What the function raises ends the pass. Python handles signals at such a call, at the latest.
    """

    def after(module: nn.Module, inputs: object, output: object) -> None:
        call()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(before)  # type: ignore[no-untyped-call]

    def before(gradient: Tensor) -> None:
        call()

    handles = [module.register_forward_hook(after) for module in model.modules() if not any(module.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
