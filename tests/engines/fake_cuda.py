"""The CUDA runtime without a GPU: memory is this machine's, a stream does things at once, a graph is a list of them.

What it does not have, such as enumerations, is that of the real ``cuda.bindings.runtime``: it loads without a driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any


class FakeCuda:
    """Stands in for the module ``cuda.bindings.runtime``.

    Attributes:
        limit: bytes of the GPU's memory.
        fails: function -> name of the error that it returns.
        calls: names of the functions that were called.
        blocks: address -> memory that was not given back.
        replayed: how often a graph was given to the stream.
    """

    def __init__(self, real: Any, limit: int = 1 << 30) -> None:
        self._real, self.limit = real, limit
        self.fails: dict[str, str] = {}
        self.calls: list[str] = []
        self.blocks: dict[int, Any] = {}
        self.replayed = 0
        self._capturing: list[Callable[[], None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def do(self, work: Callable[[], None]) -> None:
        """Do it now, or where a capture is on, when the graph is replayed."""
        if self._capturing is None:
            work()
        else:
            self._capturing.append(work)

    @property
    def is_capturing(self) -> bool:
        return self._capturing is not None

    def _done(self, name: str, *values: Any) -> tuple[Any, ...]:
        self.calls.append(name)
        if name in self.fails:
            return (getattr(self._real.cudaError_t, self.fails[name]), *(None for _ in values))
        return (self._real.cudaError_t.cudaSuccess, *values)

    def _allocate(self, name: str, size: int) -> tuple[Any, ...]:
        used = sum(len(block) for block in self.blocks.values())
        if used + size > self.limit:
            return self._real.cudaError_t.cudaErrorMemoryAllocation, None
        block = (ctypes.c_uint8 * size)()
        self.blocks[ctypes.addressof(block)] = block
        return self._done(name, ctypes.addressof(block))

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return self._done("cudaSetDevice")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._done("cudaStreamCreateWithFlags", 77)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._done("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream == 77
        assert not self.is_capturing, "CUDA refuses to wait for a stream that is captured"
        return self._done("cudaStreamSynchronize")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMalloc", size)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        del self.blocks[devPtr]
        return self._done("cudaFree")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cudaHostAlloc", size)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        del self.blocks[ptr]
        return self._done("cudaFreeHost")

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        assert kind in self._real.cudaMemcpyKind
        self.do(lambda: ctypes.memmove(dst, src, count) and None)
        return self._done("cudaMemcpyAsync")

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert mode in self._real.cudaStreamCaptureMode
        self._capturing = []
        return self._done("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        graph, self._capturing = self._capturing, None
        return self._done("cudaStreamEndCapture", graph)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return self._done("cudaGraphInstantiate", list(graph))

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        graph.clear()  # what was instantiated of it must not need it
        return self._done("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        return self._done("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graphExec: Any, stream: int) -> tuple[Any, ...]:
        self.replayed += 1
        for work in graphExec:
            work()
        return self._done("cudaGraphLaunch")
