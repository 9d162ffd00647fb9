"""Records the interface of ``cuda-bindings`` into cuda_api.json, which the fake is compared with.

    python tests/engines/record_cuda_api.py

Run it with an interpreter for each version to record: it adds the version that is installed. It needs no driver.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

RECORDING = Path(__file__).parent / "cuda_api.json"

#: What the package calls.
FUNCTIONS = (
    "cudaFree",
    "cudaFreeHost",
    "cudaGetErrorString",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMalloc",
    "cudaMemcpyAsync",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamSynchronize",
)
#: Enumeration -> members that the package names.
MEMBERS = {
    "cudaError_t": ("cudaSuccess", "cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver"),
    "cudaMemcpyKind": ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"),
    "cudaStreamCaptureMode": ("cudaStreamCaptureModeThreadLocal",),
}
CONSTANTS = ("cudaHostAllocDefault", "cudaStreamNonBlocking")


def interface_of(module: ModuleType) -> dict[str, object]:
    """Return the names of the parameters of each function, and the numbers of constants and members."""
    functions = {name: parameters_of(getattr(module, name)) for name in FUNCTIONS}
    members = {
        name: {member: int(getattr(getattr(module, name), member)) for member in named}
        for name, named in MEMBERS.items()
    }
    return {**functions, **members, **{name: int(getattr(module, name)) for name in CONSTANTS}}


def parameters_of(function: object) -> list[str]:
    """Return the names of the parameters, from the first line of the documentation."""
    (line, *_) = (function.__doc__ or "").splitlines()
    inside = line[line.index("(") + 1 : line.rindex(")")]
    names = [re.split(r"[ :]", part.split(":")[0].strip())[-1] for part in inside.split(",")]
    return [name for name in names if name]


def main() -> None:
    """Record the version that is installed."""
    import cuda.bindings.runtime as runtime

    recorded = json.loads(RECORDING.read_text(encoding="utf-8")) if RECORDING.exists() else {}
    recorded[metadata.version("cuda-bindings")] = interface_of(runtime)
    RECORDING.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
