"""The CUDA runtime as engines need it: memory, copies, a stream and graphs, through NVIDIA's own ``cuda-bindings``.

No other library's memory is used, so that PyTorch is not needed to run an engine. Everything is on the first GPU that
the driver shows to the process.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_deploy.engines.gpu import driver_version, find_gpu
from regnet_deploy.errors import RegnetDeployError, require


class Cuda:
    """A stream of work on the GPU and the memory that it uses; all is given back when the object goes.

    Every call is checked. Not for several threads at once.

    Raises:
        MissingExtra: ``cuda-bindings`` is not installed.
        RegnetDeployError: CUDA cannot be used; one line with its reason.
    """

    def __init__(self) -> None:
        self._api = require("cuda.bindings.runtime", "trt")
        self._held: list[tuple[str, Any]] = []  # function that frees it, what is freed
        # Not at the end of the process, which frees everything anyhow: a thread may still be using it then.
        weakref.finalize(self, _free, self._api, self._held).atexit = False
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)
        self._held.append(("cudaStreamDestroy", self._stream))

    @property
    def stream(self) -> int:
        """The stream's handle, as other libraries take it."""
        return int(self._stream)

    def memory(self, count: int) -> int:
        """Return the address of ``count`` bytes on the GPU.

        Raises:
            RegnetDeployError: there is not as much.
        """
        address = self._call("cudaMalloc", count, wanted=f"{count / 2**20:.1f} MiB on the GPU")
        self._held.append(("cudaFree", address))
        return int(address)

    def pinned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array of this machine's memory, float32, that the GPU reads and writes without a copy between.

        Raises:
            RegnetDeployError: there is not as much.
        """
        count = 4 * int(np.prod(shape))
        address = self._call(
            "cudaHostAlloc", count, self._api.cudaHostAllocDefault, wanted=f"{count / 2**20:.1f} MiB of pinned memory"
        )
        self._held.append(("cudaFreeHost", address))
        block = (ctypes.c_float * (count // 4)).from_address(int(address))
        array: NDArray[np.float32] = np.ctypeslib.as_array(block).reshape(shape)
        return array

    def copy_in(self, to: int, source: NDArray[np.float32]) -> None:
        """Have an array of :meth:`pinned` copied to the GPU, in the stream's turn."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source.ctypes.data, source.nbytes, kind, self._stream)

    def copy_out(self, to: NDArray[np.float32], source: int) -> None:
        """Have what lies on the GPU copied into an array of :meth:`pinned`, in the stream's turn."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to.ctypes.data, source, to.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Wait until the stream is done.

        Raises:
            RegnetDeployError: what it did failed.
        """
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph of what ``work`` gives to the stream, for :meth:`replay`; nothing of it is done.

        Raises:
            RegnetDeployError: it cannot be captured.
        """
        # Other threads may use CUDA meanwhile; only this one is watched.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(self._stream)  # or the stream stays in this state; its own error is known
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._held.append(("cudaGraphExecDestroy", ready))
        self._call("cudaGraphDestroy", graph)
        return ready

    def replay(self, graph: Any) -> None:
        """Give a captured graph to the stream."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def _call(self, name: str, *arguments: Any, wanted: str = "") -> Any:
        """Call a function of the runtime and return what it gives beside its status."""
        status, *values = getattr(self._api, name)(*arguments)
        if status == self._api.cudaError_t.cudaSuccess:
            return values[0] if values else None
        _, text = self._api.cudaGetErrorString(status)
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation and wanted:
            raise RegnetDeployError(
                f"{wanted} could not be allocated: {reason}; end other programs on the GPU, or use an engine with a "
                "smaller largest batch"
            )
        if status == self._api.cudaError_t.cudaErrorInsufficientDriver:
            raise RegnetDeployError(_old_driver(self._api))
        raise RegnetDeployError(f"CUDA failed at {name}: {reason} ({status.name})")


def _old_driver(api: ModuleType) -> str:
    """Return in one line that the driver is too old for these bindings, and what there is to do."""
    (_, needed), there = api.cudaRuntimeGetVersion(), find_gpu()
    driver = there.driver if there else driver_version()
    if there is None and driver is None:
        return (
            "CUDA does not start: the NVIDIA driver is not loaded; install it (in a container: docker run --gpus all)"
        )
    major, known = needed // 1000, f" and knows CUDA {there.cuda} at most" if there else ""
    return (
        f"CUDA does not start: cuda-bindings is for CUDA {major}.{needed % 1000 // 10}, and the NVIDIA driver is "
        f"{driver or 'of an unknown version'}{known}: install a newer one, or pip install 'cuda-bindings<{major}'"
    )


def _free(api: ModuleType, held: list[tuple[str, Any]]) -> None:
    """Give everything back, last first."""
    while held:
        function, what = held.pop()
        getattr(api, function)(what)
