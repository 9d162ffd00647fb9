"""Targets written from a tiny bundle, and a real Triton where there is one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from regnet_deploy.bundle import open_bundle, update_bundle
from regnet_deploy.targets.packaged_variant import PackagedVariant, choose_packaged_variant
from regnet_deploy.targets.settings import DeploymentSettings


@pytest.fixture(scope="session")
def twin() -> ModuleType:
    """The module triton_twin/twin.py."""
    path = Path(__file__).parent / "triton_twin" / "twin.py"
    spec = importlib.util.spec_from_file_location("triton_twin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def subject(exported_bundle: Path) -> Callable[..., PackagedVariant]:
    """What is packaged of the tiny bundle; settings as keywords."""

    def choose(**settings: object) -> PackagedVariant:
        wanted = DeploymentSettings(**settings)  # type: ignore[arg-type]
        return choose_packaged_variant(open_bundle(exported_bundle), wanted.variant, gpu=wanted.gpu)

    return choose


@pytest.fixture
def for_tensorrt(exported_bundle: Path) -> PackagedVariant:
    """An ONNX file for TensorRT engines: it is proved without graph optimizations."""
    variants = open_bundle(exported_bundle).variants
    variants["onnx-int8"] = variants["onnx-fp32"].replace(precision="int8", exact=True)
    return choose_packaged_variant(update_bundle(exported_bundle, {"variants": variants}), "onnx-int8", gpu=False)
