"""Whether a batch of images can be measured at all."""

from __future__ import annotations

from regnet_deploy.errors import UsageError
from regnet_deploy.space.complexity import stage_resolutions
from regnet_deploy.space.network import Network


def check_memory(network: Network, resolution: int, batch: int, memory_bytes: int) -> None:
    """Refuse a batch whose first feature maps alone are larger than the memory: the system would kill the process.

    Args:
        network: the stages.
        resolution: pixels a side.
        batch: images.
        memory_bytes: that this process may use.

    Raises:
        UsageError: it is too large; the message has the largest that may do.
    """
    side = stage_resolutions(resolution, network.stem_stride, 0)[0]
    # The first block keeps its input for the shortcut while its first convolution and batch norm each put out a map.
    an_image = 4 * side**2 * (network.stem_width + 2 * network.bottleneck_widths[0])
    if batch * an_image > memory_bytes:
        raise UsageError(
            f"--batch {batch} needs more than {batch * an_image / 2**30:,.0f} GiB, this process may use "
            f"{memory_bytes / 2**30:,.1f} GiB: give at most --batch {max(1, memory_bytes // (2 * an_image))}"
        )
