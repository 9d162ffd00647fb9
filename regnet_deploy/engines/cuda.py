"""Memory, copies, a stream and graphs of the CUDA runtime, through NVIDIA's ``cuda-bindings``.

PyTorch is not needed to run an engine. Everything is on the first GPU that the driver shows to the process.
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
    """A CUDA stream and its memory, which are freed with the object.

    Every call is checked. The object must not be used by several threads at the same time.

    Raises:
        MissingExtra: ``cuda-bindings`` is not installed.
        RegnetDeployError: CUDA cannot be used; one line with its reason.
    """

    def __init__(self) -> None:
        self._api = require("cuda.bindings.runtime", "trt")
        self._resources: list[tuple[str, Any]] = []  # function that frees it, handle
        # Not at the end of the process, which frees everything: a thread may still use them then.
        weakref.finalize(self, _free, self._api, self._resources).atexit = False
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)
        self._resources.append(("cudaStreamDestroy", self._stream))

    @property
    def stream(self) -> int:
        """The stream's handle, as other libraries take it."""
        return int(self._stream)

    def memory(self, count: int) -> int:
        """Return the address of ``count`` bytes on the GPU.

        Raises:
            RegnetDeployError: there is not enough memory.
        """
        address = self._call("cudaMalloc", count, purpose=f"{count / 2**20:.1f} MiB on the GPU")
        self._resources.append(("cudaFree", address))
        return int(address)

    def pinned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a float32 array in page-locked host memory, which the GPU can read and write directly.

        Raises:
            RegnetDeployError: there is not enough memory.
        """
        count = 4 * int(np.prod(shape))
        address = self._call(
            "cudaHostAlloc", count, self._api.cudaHostAllocDefault, purpose=f"{count / 2**20:.1f} MiB of pinned memory"
        )
        self._resources.append(("cudaFreeHost", address))
        block = (ctypes.c_float * (count // 4)).from_address(int(address))
        array: NDArray[np.float32] = np.ctypeslib.as_array(block).reshape(shape)
        return array

    def copy_in(self, to: int, source: NDArray[np.float32]) -> None:
        """Enqueue a copy of an array of :meth:`pinned` to the GPU."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source.ctypes.data, source.nbytes, kind, self._stream)

    def copy_out(self, to: NDArray[np.float32], source: int) -> None:
        """Enqueue a copy from the GPU into an array of :meth:`pinned`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to.ctypes.data, source, to.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Wait until the stream is idle.

        Raises:
            RegnetDeployError: an operation of the stream failed.
        """
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """Return a graph of the operations that ``work`` enqueues, for :meth:`replay`; they are not executed.

        Raises:
            RegnetDeployError: it cannot be captured.
        """
        # Thread-local mode: other threads may use CUDA meanwhile.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._api.cudaStreamEndCapture(self._stream)  # ends the capture state; the first error is reported
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._resources.append(("cudaGraphExecDestroy", ready))
        self._call("cudaGraphDestroy", graph)
        return ready

    def replay(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def _call(self, name: str, *arguments: Any, purpose: str = "") -> Any:
        """Call a function of the runtime, check its status and return its result."""
        status, *values = getattr(self._api, name)(*arguments)
        if status == self._api.cudaError_t.cudaSuccess:
            return values[0] if values else None
        _, text = self._api.cudaGetErrorString(status)
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation and purpose:
            raise RegnetDeployError(
                f"{purpose} could not be allocated: {reason}; end other programs on the GPU, or use an engine with a "
                "smaller maximum batch"
            )
        if status == self._api.cudaError_t.cudaErrorInsufficientDriver:
            raise RegnetDeployError(_old_driver(self._api))
        raise RegnetDeployError(f"CUDA failed at {name}: {reason} ({status.name})")


def _old_driver(api: ModuleType) -> str:
    """Return the message for a driver that is too old for these bindings."""
    (_, needed), gpu = api.cudaRuntimeGetVersion(), find_gpu()
    driver = gpu.driver if gpu else driver_version()
    if gpu is None and driver is None:
        return (
            "CUDA does not start: the NVIDIA driver is not loaded; install it (in a container: docker run --gpus all)"
        )
    major, known = needed // 1000, f" and knows CUDA {gpu.cuda} at most" if gpu else ""
    return (
        f"CUDA does not start: cuda-bindings is for CUDA {major}.{needed % 1000 // 10}, and the NVIDIA driver is "
        f"{driver or 'of an unknown version'}{known}: install a newer one, or pip install 'cuda-bindings<{major}'"
    )


def _free(api: ModuleType, resources: list[tuple[str, Any]]) -> None:
    """Free all resources, the last one first."""
    while resources:
        function, what = resources.pop()
        getattr(api, function)(what)
