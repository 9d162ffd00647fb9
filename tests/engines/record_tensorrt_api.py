"""Records the interface of TensorRT's Python bindings into tensorrt_api.json, where the fake is held against it.

    python tests/engines/record_tensorrt_api.py WHEEL...

The wheels are those of ``pip download --no-deps tensorrt-cu13-bindings==VERSION`` for the running Python, or of
``tensorrt-cu12-bindings`` for versions before 10.13. Recorded are the oldest version that is supported, the newest one
of each major version, and one between. Bindings load without TensorRT's own libraries where stubs of the few functions
that they link to stand in.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

RECORDING = Path(__file__).parent / "tensorrt_api.json"

#: What the package uses, or a user of it is handed.
CLASSES = (
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInspector",
    "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IErrorRecorder",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)


def interface_of(module: ModuleType) -> dict[str, Any]:
    """Return what the classes have: ``"property"``, ``"constant"``, or the signatures of a method."""
    return {name: _class(getattr(module, name)) for name in CLASSES if hasattr(module, name)}


def _class(kind: type) -> dict[str, Any]:
    if hasattr(kind, "__members__"):
        return {"members": {name: int(member) for name, member in kind.__members__.items()}}
    names = [name for name in dir(kind) if not name.startswith("_") or name == "__init__"]
    return {name: _member(kind, name) for name in names}


def _member(kind: type, name: str) -> Any:
    for owner in kind.__mro__:
        if isinstance(owner.__dict__.get(name), property):
            return "property" if owner.__dict__[name].fset else "read-only property"
    member = getattr(kind, name)
    if not callable(member) or isinstance(member, type):
        return "constant"
    lines = [re.sub(r"^\d+\. ", "", line).strip() for line in (member.__doc__ or "").splitlines()]
    found = [line for line in lines if line.startswith(f"{name}(") and line != f"{name}(*args, **kwargs)"]
    return [re.sub(r"\w+_bindings\.\w+\.", "", line) for line in found]


def stub_libraries(bindings: Path, folder: Path) -> None:
    """Compile the libraries that bindings want, of functions that do nothing."""
    dynamic = subprocess.run(["readelf", "-d", bindings], capture_output=True, text=True, check=True).stdout
    undefined = subprocess.run(["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True)
    functions = re.findall(r" U (\w*(?:Infer|Nv|Plugin)\w*)$", undefined.stdout, re.M)
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions), encoding="ascii")
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)


def record(wheel: Path) -> tuple[str, dict[str, Any]]:
    """Return the version of a wheel of bindings, and its interface, read in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (bindings,) = folder.glob("tensorrt_bindings/tensorrt.so")
        stub_libraries(bindings, folder)
        command = [sys.executable, __file__, "--read", bindings]
        environment = {"LD_LIBRARY_PATH": str(folder), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return wheel.name.split("-")[1], json.loads(done.stdout)


def load(path: Path) -> ModuleType:
    """Import an extension module from a file."""
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Record the wheels that are named."""
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(interface_of(load(Path(sys.argv[2])))))
        return
    recorded = dict(record(Path(argument)) for argument in sys.argv[1:])
    RECORDING.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
