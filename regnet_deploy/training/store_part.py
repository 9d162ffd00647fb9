"""The part of a launcher's store that the processes have which run now, without what earlier ones have left in it.

torchrun keeps its store when it starts the processes again, and PyTorch reads from it where the others listen. An early
process finds the address of one that has ended, and cannot connect to it or waits for an answer
(https://github.com/pytorch/pytorch/issues/135712). The number of the restart does not tell the starts apart: launchers
of several machines count each for itself.
"""

from __future__ import annotations

import datetime
import secrets
import time
from typing import TypeAlias

import torch.distributed as dist

Store: TypeAlias = "dist.Store"  # type: ignore[name-defined]  # public, but not in the types of PyTorch

_POLL_S = 0.05
_PREFIX = "regnet-deploy"


def part_of_this_start(store: Store, rank: int, size: int, timeout: datetime.timedelta) -> Store:
    """Return the part of a store that has its own name at each start of the processes.

    The first process draws the name. Each of the others draws a key and is told the name under that key, which no
    earlier process can have known.

    Args:
        store: of the launcher, perhaps with what earlier processes have written.
        rank: number of this process.
        size: number of processes, each of which calls this.
        timeout: of the wait for the others.

    Raises:
        RuntimeError: the others have not come in time.
    """
    drawn = secrets.token_hex(16)
    if rank:
        store.set(f"{_PREFIX}/key/{rank}", drawn)
        told = f"{_PREFIX}/name/{drawn}"
        store.wait([told], timeout)
        name = store.get(told).decode()
        store.add(f"{_PREFIX}/joined/{name}", 1)
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    deadline = time.monotonic() + timeout.total_seconds()
    answered: set[str] = set()
    while (joined := store.add(f"{_PREFIX}/joined/{drawn}", 0)) < size - 1:
        for other in range(1, size):
            if store.check([f"{_PREFIX}/key/{other}"]):
                key = store.get(f"{_PREFIX}/key/{other}").decode()
                if key not in answered:
                    store.set(f"{_PREFIX}/name/{key}", drawn)
                    answered.add(key)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{joined + 1} of {size} processes have started")
        time.sleep(_POLL_S)
    return dist.PrefixStore(drawn, store)  # type: ignore[attr-defined]
