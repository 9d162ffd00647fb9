"""The bundle: one folder that grows from a budget to a served model."""

from regnet_deploy.bundle.damage import find_damage, find_leftovers
from regnet_deploy.bundle.manifest import Manifest
from regnet_deploy.bundle.reading import (
    DEFAULT_PATH,
    MANIFEST,
    SCHEMA,
    WEIGHTS,
    Bundle,
    StoredFile,
    bundle_as_argument,
    open_bundle,
    read_bundle,
)
from regnet_deploy.bundle.repair import repair_bundle
from regnet_deploy.bundle.writing import create_bundle, ensure_creatable, ensure_writable, update_bundle

__all__ = [
    "DEFAULT_PATH",
    "MANIFEST",
    "SCHEMA",
    "WEIGHTS",
    "Bundle",
    "Manifest",
    "StoredFile",
    "bundle_as_argument",
    "create_bundle",
    "ensure_creatable",
    "ensure_writable",
    "find_damage",
    "find_leftovers",
    "open_bundle",
    "read_bundle",
    "repair_bundle",
    "update_bundle",
]
