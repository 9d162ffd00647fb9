"""What an export has made so far."""

from __future__ import annotations

from typing import Any

from regnet_deploy.errors import RegnetDeployError
from regnet_deploy.exporting.engine_variants import EngineVariant
from regnet_deploy.exporting.onnx_variants import OnnxVariant

Variants = dict[str, dict[str, Any]]


class ExportState:
    """Variants by name, and why others are none.

    Attributes:
        onnx: ONNX files.
        engines: TensorRT engines.
        refused: name of a variant, or ``engines`` for all of them -> why it is not to be had.
    """

    def __init__(self) -> None:
        self.onnx: dict[str, OnnxVariant] = {}
        self.engines: dict[str, EngineVariant] = {}
        self.refused: dict[str, RegnetDeployError] = {}

    def entries(self) -> Variants:
        """Return what the manifest will say of the variants."""
        return {
            **{name: one.entry for name, one in self.onnx.items()},
            **{name: one.entry for name, one in self.engines.items()},
        }

    def accuracies(self) -> dict[str, dict[str, Any]]:
        """Return what was measured on validation images, by variant."""
        known = {name: one.own_entry.get("accuracy") for name, one in self.onnx.items()}
        known |= {name: one.own_entry.get("accuracy") for name, one in self.engines.items()}
        return {name: accuracy for name, accuracy in known.items() if accuracy}

    def files(self) -> dict[str, bytes]:
        """Return the files by their logical names."""
        return {
            **{one.entry["file"]: one.data for one in self.onnx.values()},
            **{one.file: one.plan for one in self.engines.values()},
        }

    def keep(self, names: set[str]) -> None:
        """Drop every variant but these."""
        self.onnx = {name: one for name, one in self.onnx.items() if name in names}
        self.engines = {name: one for name, one in self.engines.items() if name in names}
