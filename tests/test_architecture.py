"""Imports point one way, and the rooms keep to what they may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import regnet_deploy

PACKAGE = Path(regnet_deploy.__file__).parent

#: Room -> rooms it may import, beside itself, bundle and errors.
MAY_IMPORT = {
    "space": set(),
    "images": {"space"},
    "models": {"images", "space"},
    "populations": {"space"},
    "selection": {"populations", "images", "space"},
    "analysis": {"populations", "space"},
    "engines": set(),
    "runtimes": {"engines", "images", "space"},
    "protobuf": set(),
    "serving": {"protobuf", "runtimes", "engines", "images", "space"},
    "load_testing": {"runtimes", "engines", "images", "space"},
    "targets": {"protobuf", "runtimes", "engines", "images", "space"},
    "profiling": {"runtimes", "models", "images", "space"},
    "training": {"models", "images", "space"},
    "sweeping": {"training", "profiling", "populations", "models", "images", "space"},
    "exporting": {"engines", "runtimes", "models", "images", "space", "profiling"},
    "report": {"models", "images", "space"},
    "api": {
        "exporting",
        "training",
        "profiling",
        "runtimes",
        "serving",
        "selection",
        "models",
        "images",
        "space",
    },
    "cli": {
        "api",
        "analysis",
        "report",
        "engines",
        "exporting",
        "sweeping",
        "training",
        "profiling",
        "runtimes",
        "serving",
        "load_testing",
        "targets",
        "selection",
        "populations",
        "models",
        "images",
        "space",
    },
}

#: Room -> third-party packages that no module of it may import at its top.
NEVER_AT_THE_TOP = {
    "api": {"torch", "PIL", "onnx", "onnxruntime", "starlette", "uvicorn", "safetensors"},
    "cli": {
        "numpy",
        "rich",
        "torch",
        "PIL",
        "onnx",
        "onnxruntime",
        "starlette",
        "uvicorn",
        "matplotlib",
        "safetensors",
        "scipy",
        "yaml",
        "ray",
        "grpc",
        "openvino",
    },
    "space": {"torch", "PIL", "onnx", "onnxruntime", "scipy", "matplotlib", "yaml"},
    "selection": {"torch", "PIL", "onnx", "onnxruntime", "scipy", "matplotlib"},
    "images": {"torch", "onnx", "onnxruntime", "PIL", "matplotlib"},
    "populations": {"torch", "PIL", "scipy", "matplotlib", "yaml"},
    "analysis": {"torch", "scipy", "matplotlib", "yaml"},
    "sweeping": {"ray", "matplotlib", "scipy", "yaml"},
    "engines": {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"},
    "protobuf": {"google", "grpc", "grpc_tools"},
    "runtimes": {"torch", "onnx", "openvino", "matplotlib"},
    "serving": {"torch", "onnx", "onnxruntime", "openvino", "grpc", "google", "opentelemetry", "matplotlib"},
    "load_testing": {"torch", "onnx", "onnxruntime", "matplotlib"},
    "targets": {"torch", "onnx", "onnxruntime", "google", "yaml", "ray", "kserve"},
    "report": {"torch", "onnx", "onnxruntime", "matplotlib"},
    "profiling": {"matplotlib", "onnx"},
    "exporting": {"matplotlib", "onnxruntime", "tensorrt", "tensorrt_rtx"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path, *, top_only):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if top_only:
        nodes = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    else:
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        else:
            yield from (alias.name for alias in node.names)


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else {"__init__.py": "api"}.get(parts[0])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    for module in imports_of(path, top_only=False):
        parts = module.split(".")
        if parts[0] != "regnet_deploy" or len(parts) == 1:
            continue
        target = parts[1]
        if path.name in ("__main__.py",):
            continue
        if target in ("bundle", "cpu", "errors", "file_lock", "html", "plotting", "progress"):
            continue
        assert room is not None, f"{path.name} lies below every room and imports {module}"
        assert target == room or target in MAY_IMPORT[room], f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_heavy_is_imported_before_it_is_needed(path):
    forbidden = NEVER_AT_THE_TOP.get(room_of(path), set())
    for module in imports_of(path, top_only=True):
        assert module.split(".")[0] not in forbidden, f"{path} imports {module} at its top"


def test_serving_never_imports_torch():
    for path in [
        path for room in ("runtimes", "serving", "load_testing", "targets") for path in (PACKAGE / room).glob("*.py")
    ]:
        names = {module.split(".")[0] for module in imports_of(path, top_only=False)}
        assert "torch" not in names, path


def test_engines_never_import_torch_or_onnx():
    for path in (PACKAGE / "engines").glob("*.py"):
        names = {module.split(".")[0] for module in imports_of(path, top_only=False)}
        assert not names & {"torch", "onnx", "onnxruntime"}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_module_says_what_it_is():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
