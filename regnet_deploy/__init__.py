"""From a compute budget to a served model: RegNets selected, trained, profiled, exported, proved and served.

::

    import regnet_deploy as rd

    rd.create_bundle("regnet-bundle", rd.select(rd.Budget(macs=0.4e9, classes=10)))
    rd.train("regnet-bundle", "my-images", rd.Recipe(epochs=50))
    rd.export("regnet-bundle", "my-images")
    rd.predict("regnet-bundle", "cat.jpg")

Names are imported when they are used first, so that ``import regnet_deploy`` is fast and imports no other library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regnet_deploy.api.bundles import create_bundle, load_model, load_recipe, select, select_published, train
    from regnet_deploy.api.images import check_folder
    from regnet_deploy.api.inference import open_classifier, predict, serve
    from regnet_deploy.api.timing import calibrate, select_by_time
    from regnet_deploy.api.variants import evaluate, export, export_file, profile, verify
    from regnet_deploy.bundle import Bundle, open_bundle
    from regnet_deploy.bundle.engine_options import EngineOptions
    from regnet_deploy.bundle.variants import Gate
    from regnet_deploy.errors import RegnetDeployError
    from regnet_deploy.exporting.options import ExportOptions
    from regnet_deploy.latency.candidates import TimeLimits
    from regnet_deploy.latency.measuring import Setup
    from regnet_deploy.progress import Progress
    from regnet_deploy.selection.budget import Budget
    from regnet_deploy.serving.limits import Limits
    from regnet_deploy.serving.model_version import ServeOptions
    from regnet_deploy.serving.server import ServerSettings
    from regnet_deploy.space.enumeration import Bounds
    from regnet_deploy.training.execution import ExecutionRequest
    from regnet_deploy.training.recipe import Recipe
    from regnet_deploy.training.recipe_file import NamedRecipe
    from regnet_deploy.training.train import TrainOptions

__version__ = "0.1.0"

#: Public name -> the module that defines it.
_MODULES = {
    "Bounds": "space.enumeration",
    "Budget": "selection.budget",
    "Bundle": "bundle",
    "EngineOptions": "bundle.engine_options",
    "ExecutionRequest": "training.execution",
    "ExportOptions": "exporting.options",
    "Gate": "bundle.variants",
    "Limits": "serving.limits",
    "NamedRecipe": "training.recipe_file",
    "Progress": "progress",
    "Recipe": "training.recipe",
    "RegnetDeployError": "errors",
    "ServeOptions": "serving.model_version",
    "ServerSettings": "serving.server",
    "Setup": "latency.measuring",
    "TimeLimits": "latency.candidates",
    "TrainOptions": "training.train",
    "calibrate": "api.timing",
    "check_folder": "api.images",
    "create_bundle": "api.bundles",
    "evaluate": "api.variants",
    "export": "api.variants",
    "export_file": "api.variants",
    "load_model": "api.bundles",
    "load_recipe": "api.bundles",
    "open_bundle": "bundle",
    "open_classifier": "api.inference",
    "predict": "api.inference",
    "profile": "api.variants",
    "select": "api.bundles",
    "select_by_time": "api.timing",
    "select_published": "api.bundles",
    "serve": "api.inference",
    "train": "api.bundles",
    "verify": "api.variants",
}

__all__ = [
    "Bounds",
    "Budget",
    "Bundle",
    "EngineOptions",
    "ExecutionRequest",
    "ExportOptions",
    "Gate",
    "Limits",
    "NamedRecipe",
    "Progress",
    "Recipe",
    "RegnetDeployError",
    "ServeOptions",
    "ServerSettings",
    "Setup",
    "TimeLimits",
    "TrainOptions",
    "__version__",
    "calibrate",
    "check_folder",
    "create_bundle",
    "evaluate",
    "export",
    "export_file",
    "load_model",
    "load_recipe",
    "open_bundle",
    "open_classifier",
    "predict",
    "profile",
    "select",
    "select_by_time",
    "select_published",
    "serve",
    "train",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is used first."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
