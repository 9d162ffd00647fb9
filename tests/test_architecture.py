"""Imports point one way, and packages import only what they may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import regnet_deploy

PACKAGE = Path(regnet_deploy.__file__).parent

#: Package -> packages that it may import, beside itself and SHARED.
MAY_IMPORT = {
    "space": set(),
    "bundle": {"space"},
    "images": {"space"},
    "models": {"images", "space"},
    "populations": {"space"},
    "selection": {"populations", "images", "space"},
    "analysis": {"populations", "space"},
    "engines": set(),
    "runtimes": {"engines", "protobuf", "images", "space"},
    "protobuf": set(),
    "serving": {"protobuf", "runtimes", "engines", "images", "space"},
    "load_testing": {"runtimes", "engines", "images", "space"},
    "targets": {"protobuf", "runtimes", "engines", "images", "space"},
    "profiling": {"runtimes", "models", "images", "space"},
    "tracking": set(),
    "training": {"evaluation", "tracking", "models", "images", "space"},
    "checking": {"training", "models", "images", "space"},
    "sweeping": {"evaluation", "selection", "training", "profiling", "populations", "models", "images", "space"},
    "exporting": {"engines", "runtimes", "models", "images", "space", "profiling"},
    "evaluation": {"exporting", "profiling", "runtimes", "models", "images", "space"},
    "importing": {"models", "profiling", "images", "space"},
    "report": {"evaluation", "models", "images", "space"},
    "latency": {
        "selection",
        "exporting",
        "profiling",
        "runtimes",
        "engines",
        "models",
        "images",
        "populations",
        "space",
    },
    "api": {
        "checking",
        "latency",
        "evaluation",
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
        "checking",
        "analysis",
        "evaluation",
        "importing",
        "report",
        "engines",
        "exporting",
        "sweeping",
        "tracking",
        "training",
        "profiling",
        "runtimes",
        "serving",
        "latency",
        "load_testing",
        "targets",
        "selection",
        "populations",
        "models",
        "images",
        "space",
    },
}

#: Package -> third-party packages that no module of it may import at its top.
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
    "images": {"torch", "onnx", "onnxruntime", "PIL", "imagehash", "matplotlib"},
    "checking": {"torch", "PIL", "matplotlib"},
    "populations": {"torch", "PIL", "scipy", "matplotlib", "yaml"},
    "analysis": {"torch", "scipy", "matplotlib", "yaml"},
    "sweeping": {"ray", "matplotlib", "scipy", "yaml"},
    "training": {"ray"},
    "tracking": {"torch", "tensorboard", "mlflow", "wandb"},
    "engines": {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"},
    "protobuf": {"google", "grpc", "grpc_tools"},
    "runtimes": {"torch", "onnx", "openvino", "matplotlib"},
    "serving": {"torch", "onnx", "onnxruntime", "openvino", "grpc", "google", "opentelemetry", "matplotlib"},
    "load_testing": {"torch", "onnx", "onnxruntime", "matplotlib"},
    "targets": {"torch", "onnx", "onnxruntime", "google", "yaml", "ray", "kserve"},
    "report": {"torch", "onnx", "onnxruntime", "matplotlib"},
    "latency": {"torch", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "pynvml"},
    "profiling": {"matplotlib", "onnx"},
    "exporting": {"matplotlib", "onnxruntime", "tensorrt", "tensorrt_rtx"},
}

#: Modules that every package may import.
SHARED = {
    "bundle",
    "cgroup",
    "cpu",
    "cpu_load",
    "durable_files",
    "errors",
    "field_types",
    "file_lock",
    "html",
    "output_file",
    "plotting",
    "progress",
    "ray_cluster",
    "user_cache",
    "user_data",
}

#: Module, as its path within the package -> its syntax tree.
MODULES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(tree, *, top_only=False):
    """Yield the names of the modules that a module imports; a relative import as ``.``."""
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def package_of(path):
    """Return the package of a module; None for those that lie beside the packages."""
    return path.split("/")[0] if "/" in path else {"__init__.py": "api"}.get(path)


def test_imports_point_one_way():
    violations = []
    for path, tree in MODULES.items():
        package = package_of(path)
        allowed = SHARED | MAY_IMPORT.get(package, set()) | {package}
        for module in imports_of(tree):
            root, _, rest = module.partition(".")
            if root == "regnet_deploy" and rest and path != "__main__.py" and rest.split(".")[0] not in allowed:
                violations.append(f"{path} imports {module}")
    assert not violations


def test_no_import_is_relative():
    assert not [path for path, tree in MODULES.items() if "." in imports_of(tree)]


def test_nothing_heavy_is_imported_before_it_is_needed():
    assert not [
        f"{path} imports {module} at its top"
        for path, tree in MODULES.items()
        for module in imports_of(tree, top_only=True)
        if module.split(".")[0] in NEVER_AT_THE_TOP.get(package_of(path), set())
    ]


@pytest.mark.parametrize(
    ("packages", "libraries"),
    [
        ({"runtimes", "serving", "load_testing", "targets"}, {"torch"}),
        ({"engines"}, {"torch", "onnx", "onnxruntime"}),
    ],
)
def test_some_packages_never_import_a_library(packages, libraries):
    assert not [
        f"{path} imports {module}"
        for path, tree in MODULES.items()
        for module in imports_of(tree)
        if package_of(path) in packages and module.split(".")[0] in libraries
    ]


def test_modules_stay_small():
    sizes = {path: len((PACKAGE / path).read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {path: size for path, size in sizes.items() if size > 400}


def test_every_module_has_a_docstring():
    assert not [path for path, tree in MODULES.items() if not ast.get_docstring(tree)]
